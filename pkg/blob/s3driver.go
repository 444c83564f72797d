package blob

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

var _ driver.Bucket = (*bucket)(nil)

func (b *bucket) key(name string) *string { return aws.String(b.prefix + name) }

// ErrorCode implements driver.Bucket. Every error of the driver is a fault already.
func (*bucket) ErrorCode(err error) gcerrors.ErrorCode {
	if fault.Is(err, codes.NotFound) {
		return gcerrors.NotFound
	}
	return gcerrors.Unknown
}

// As implements driver.Bucket.
func (*bucket) As(any) bool { return false }

// ErrorAs implements driver.Bucket.
func (*bucket) ErrorAs(error, any) bool { return false }

// Close implements driver.Bucket.
func (b *bucket) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

// Attributes implements driver.Bucket.
func (b *bucket) Attributes(ctx context.Context, name string) (*driver.Attributes, error) {
	o, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: b.key(name)})
	if err != nil {
		return nil, b.headFault(ctx, err)
	}
	return &driver.Attributes{Size: aws.ToInt64(o.ContentLength), ModTime: aws.ToTime(o.LastModified), AsFunc: func(any) bool { return false }}, nil
}

// headFault tells a blob that is not there from a bucket that is not there: a HEAD's answer has no words.
func (b *bucket) headFault(ctx context.Context, err error) error {
	f := s3Fault(ctx, err)
	if !fault.Is(f, codes.NotFound) {
		return f
	}
	if _, err := b.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.name}); err != nil {
		if fault.Is(s3Fault(ctx, err), codes.NotFound) {
			return bucketGone(err)
		}
		return s3Fault(ctx, err)
	}
	return f
}

// NewTypedWriter implements driver.Bucket.
func (b *bucket) NewTypedWriter(ctx context.Context, name, _ string, options *driver.WriterOptions) (driver.Writer, error) {
	if options.IfNotExist || len(options.Metadata) > 0 {
		return nil, errUnsupported
	}
	return &s3Writer{ctx: ctx, bucket: b, key: b.key(name)}, nil
}

// NewRangeReader implements driver.Bucket.
func (b *bucket) NewRangeReader(ctx context.Context, name string, offset, length int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	return openS3Reader(ctx, b, name, offset, length)
}

// Delete implements driver.Bucket. That a key is not there is no error of S3's.
func (b *bucket) Delete(ctx context.Context, name string, _ *driver.DeleteOptions) error {
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: b.key(name)})
	return s3Fault(ctx, err)
}

// Copy implements driver.Bucket.
func (*bucket) Copy(context.Context, string, string, *driver.CopyOptions) error {
	return errUnsupported
}

// SignedURL implements driver.Bucket.
func (*bucket) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errUnsupported
}

// ListPaged implements driver.Bucket. Keys that no Store can have made are left out.
func (b *bucket) ListPaged(ctx context.Context, options *driver.ListOptions) (*driver.ListPage, error) {
	if options.Delimiter != "" {
		return nil, errUnsupported
	}
	size := options.PageSize
	if size <= 0 {
		size = defaultPage
	}
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: b.key(options.Prefix), MaxKeys: aws.Int32(int32(size))}
	if len(options.PageToken) > 0 {
		in.ContinuationToken = aws.String(string(options.PageToken))
	}
	out, err := b.client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, s3Fault(ctx, err)
	}
	page := &driver.ListPage{}
	for _, o := range out.Contents {
		name, ours := strings.CutPrefix(aws.ToString(o.Key), b.prefix)
		if !ours || CheckName(name) != nil {
			continue
		}
		page.Objects = append(page.Objects, &driver.ListObject{Key: name, Size: aws.ToInt64(o.Size), ModTime: aws.ToTime(o.LastModified), AsFunc: func(any) bool { return false }})
	}
	if aws.ToBool(out.IsTruncated) {
		page.NextPageToken = []byte(aws.ToString(out.NextContinuationToken))
	}
	return page, nil
}

// removeAll deletes what begins with prefix and a slash, page by page.
func (b *bucket) removeAll(ctx context.Context, prefix string) error {
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: b.key(prefix + "/")}
	for {
		page, err := b.client.ListObjectsV2(ctx, in)
		if err != nil {
			return s3Fault(ctx, err)
		}
		doomed := make([]types.ObjectIdentifier, 0, len(page.Contents))
		for _, o := range page.Contents {
			doomed = append(doomed, types.ObjectIdentifier{Key: o.Key})
		}
		if len(doomed) > 0 {
			out, err := b.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &b.name, Delete: &types.Delete{Objects: doomed, Quiet: aws.Bool(true)}})
			if err != nil {
				return s3Fault(ctx, err)
			}
			if len(out.Errors) > 0 {
				return codeFault(aws.ToString(out.Errors[0].Code), fmt.Errorf("%d of %d deletions were refused: %w", len(out.Errors), len(doomed), errors.New(aws.ToString(out.Errors[0].Code))))
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		in.ContinuationToken = page.NextContinuationToken
	}
}
