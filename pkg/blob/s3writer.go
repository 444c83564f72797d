package blob

import (
	"bytes"
	"context"
	"crypto/rand"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// putMark is the metadata by which an upload knows its own object again.
const putMark = "redoubt-put"

// s3Writer sends a blob as one object, or in parts of partSize when there is more. It keeps one part in memory.
type s3Writer struct {
	ctx    context.Context //nolint:containedctx // its end makes Close throw the upload away, as gocloud defines it
	bucket *bucket
	key    *string

	part   bytes.Buffer
	upload *string // nil until there is more than one part
	mark   string
	done   []types.CompletedPart
	failed error
}

// Write implements driver.Writer.
func (w *s3Writer) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 && w.failed == nil {
		if w.part.Len() == partSize {
			w.failed = w.send()
			continue
		}
		k := min(len(p), partSize-w.part.Len())
		w.part.Write(p[:k])
		n, p = n+k, p[k:]
	}
	return n, w.failed
}

// send brings a part away, and begins the upload with the first.
func (w *s3Writer) send() error {
	b := w.bucket
	if w.upload == nil {
		w.mark = rand.Text()
		out, err := b.client.CreateMultipartUpload(w.ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: w.key, Metadata: map[string]string{putMark: w.mark}, ContentType: aws.String(contentType)})
		if err != nil {
			return s3Fault(w.ctx, err)
		}
		w.upload = out.UploadId
	}
	if len(w.done) == maxParts {
		return fault.InvalidArgument("a blob in a bucket is at most %d GiB", int64(MaxS3)>>30)
	}
	number := aws.Int32(int32(len(w.done) + 1))
	out, err := b.client.UploadPart(w.ctx, &s3.UploadPartInput{Bucket: &b.name, Key: w.key, UploadId: w.upload, PartNumber: number, Body: bytes.NewReader(w.part.Bytes())})
	if err != nil {
		return s3Fault(w.ctx, err)
	}
	w.done = append(w.done, types.CompletedPart{ETag: out.ETag, PartNumber: number})
	w.part.Reset()
	return nil
}

// Close implements driver.Writer: the blob is there, or the upload is thrown away.
func (w *s3Writer) Close() error {
	err := w.failed
	if err == nil {
		err = w.ctx.Err()
	}
	b := w.bucket
	switch {
	case err != nil:
	case w.upload == nil:
		_, err = b.client.PutObject(w.ctx, &s3.PutObjectInput{Bucket: &b.name, Key: w.key, Body: bytes.NewReader(w.part.Bytes()), ContentType: aws.String(contentType)})
		return s3Fault(w.ctx, err)
	default:
		if err = w.send(); err == nil {
			err = w.complete()
		}
	}
	if err != nil && w.upload != nil {
		w.abort()
	}
	return err
}

// complete makes the parts the blob. A lost answer is made good by a look at what stands there.
func (w *s3Writer) complete() error {
	b := w.bucket
	_, err := b.client.CompleteMultipartUpload(w.ctx, &s3.CompleteMultipartUploadInput{Bucket: &b.name, Key: w.key, UploadId: w.upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: w.done}})
	if err == nil {
		return nil
	}
	o, look := b.client.HeadObject(w.ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: w.key})
	if look == nil && o.Metadata[putMark] == w.mark {
		return nil
	}
	return s3Fault(w.ctx, err)
}

// abort frees the parts. What it cannot free, Open does after a day.
func (w *s3Writer) abort() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), s3Abort)
	defer cancel()
	_, _ = w.bucket.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &w.bucket.name, Key: w.key, UploadId: w.upload})
}
