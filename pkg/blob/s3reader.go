package blob

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob/driver"
)

const (
	// readAgain is how often in a row a read that broke off is taken up again, readPause the wait before the second time; it doubles.
	readAgain = 3
	readPause = 100 * time.Millisecond
)

// s3Reader reads one version of an object, over as many connections as it takes.
type s3Reader struct {
	ctx    context.Context //nolint:containedctx // gocloud's readers end with the context of their opening
	bucket *bucket
	key    *string

	body      io.ReadCloser // nil: to be opened at next
	etag      *string
	next, end int64
	broken    int // connections in a row that gave nothing
	attrs     driver.ReaderAttributes
}

func openS3Reader(ctx context.Context, b *bucket, name string, offset, length int64) (driver.Reader, error) {
	r := &s3Reader{ctx: ctx, bucket: b, key: b.key(name)}
	none := length == 0
	if none {
		length = 1 // a range has a byte
	}
	in := &s3.GetObjectInput{Bucket: &b.name, Key: r.key}
	if offset > 0 || length > 0 {
		in.Range = aws.String(byteRange(offset, length))
	}
	out, err := b.client.GetObject(ctx, in)
	if apiCode(err) == "InvalidRange" { // past the end: there, and without bytes
		a, err := b.Attributes(ctx, name)
		if err != nil {
			return nil, err
		}
		r.attrs = driver.ReaderAttributes{Size: a.Size, ModTime: a.ModTime}
		return r, nil
	}
	if err != nil {
		return nil, s3Fault(ctx, err)
	}
	sent := aws.ToInt64(out.ContentLength)
	r.attrs = driver.ReaderAttributes{Size: sent, ModTime: aws.ToTime(out.LastModified)}
	if in.Range != nil {
		// bytes 0-9/100; a store that does not do ranges sends all, and says no range.
		_, size, ok := strings.Cut(aws.ToString(out.ContentRange), "/")
		if r.attrs.Size, err = strconv.ParseInt(size, 10, 64); !ok || err != nil || !strings.HasPrefix(aws.ToString(out.ContentRange), fmt.Sprintf("bytes %d-", offset)) {
			_ = out.Body.Close()
			return nil, storeBroken(fmt.Errorf("the answer to a range is %q", aws.ToString(out.ContentRange)))
		}
	}
	r.body, r.etag, r.next, r.end = out.Body, out.ETag, offset, offset+sent
	if none {
		r.end = r.next
	}
	return r, nil
}

func byteRange(offset, length int64) string {
	if length < 0 {
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
}

// Read implements driver.Reader.
func (r *s3Reader) Read(p []byte) (int, error) {
	for {
		if r.next >= r.end {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if r.body == nil {
			if err := r.reopen(); err != nil {
				return 0, err
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.end-r.next)])
		r.next += int64(n)
		if n > 0 {
			r.broken = 0
			return n, nil // an error comes again
		}
		if err == nil {
			continue
		}
		_ = r.Close()
		if r.ctx.Err() != nil {
			return 0, r.ctx.Err()
		}
		if r.broken++; r.broken > readAgain {
			return 0, storeAway(err)
		}
		if r.broken > 1 {
			pause := time.NewTimer(readPause << (r.broken - 2))
			select {
			case <-r.ctx.Done():
				pause.Stop()
				return 0, r.ctx.Err()
			case <-pause.C:
			}
		}
	}
}

// reopen goes on where the last connection broke off, in the same version.
func (r *s3Reader) reopen() error {
	out, err := r.bucket.client.GetObject(r.ctx, &s3.GetObjectInput{Bucket: &r.bucket.name, Key: r.key, IfMatch: r.etag, Range: aws.String(byteRange(r.next, r.end-r.next))})
	switch code := apiCode(err); {
	case code == "PreconditionFailed", code == "NoSuchKey":
		return replaced(err)
	case err != nil:
		return s3Fault(r.ctx, err)
	case aws.ToInt64(out.ContentLength) != r.end-r.next:
		_ = out.Body.Close()
		return storeBroken(fmt.Errorf("%d bytes where %d were asked for", aws.ToInt64(out.ContentLength), r.end-r.next))
	}
	r.body = out.Body
	return nil
}

// Close implements driver.Reader.
func (r *s3Reader) Close() error {
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.body = nil
	return err
}

// Attributes implements driver.Reader.
func (r *s3Reader) Attributes() *driver.ReaderAttributes { return &r.attrs }

// As implements driver.Reader.
func (*s3Reader) As(any) bool { return false }
