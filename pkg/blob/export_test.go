package blob

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Uploads counts unfinished uploads of a Store in a bucket.
func (s *Store) Uploads(ctx context.Context) (int, error) {
	b := s.driver.(*bucket)
	out, err := b.client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &b.prefix})
	if err != nil {
		return 0, err
	}
	return len(out.Uploads), nil
}

// BeginUpload leaves an upload as a killed process does.
func (s *Store) BeginUpload(ctx context.Context, name string) error {
	b := s.driver.(*bucket)
	_, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: b.key(name)})
	return err
}

// PartSize is what is sent at once.
const PartSize = partSize
