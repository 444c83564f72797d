package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// BlobServices are the services that keep blobs.
var BlobServices = []string{"workspace", "compute", "inference"}

// Bucket is where services keep their blobs in place of their folders: s3://… (blob.CheckURL), the file with its credentials, and the one
// with the roots to believe at its endpoint. The zero value is none.
type Bucket struct{ URL, CredentialsFile, RootFile string }

// bucket gives the configuration of a service that keeps blobs their bucket.
func (s *Service) bucket(b Bucket) {
	if slices.Contains(BlobServices, s.Name) {
		s.BlobURL, s.BlobCredentialsFile, s.BlobRootFile = b.URL, b.CredentialsFile, b.RootFile
	}
}

// checkBlobs looks at where the blobs are to be.
func (s *Service) checkBlobs(bad func(field, what string) error) error {
	if s.BlobURL == "" {
		switch {
		case s.BlobCredentialsFile != "":
			return bad("service.blob_credentials_file", "is set without service.blob_url")
		case s.BlobRootFile != "":
			return bad("service.blob_root_file", "is set without service.blob_url")
		}
		return nil
	}
	if !slices.Contains(BlobServices, s.Name) {
		return bad("service.blob_url", "is for workspace, compute and inference: the others keep no blobs")
	}
	var wrong *fault.Error
	if err := blob.CheckURL(s.BlobURL); errors.As(err, &wrong) {
		return bad("service.blob_url", "cannot be used: "+wrong.Message())
	}
	if !filepath.IsAbs(s.BlobCredentialsFile) {
		return bad("service.blob_credentials_file", "is not an absolute path: it names the file (0600) with access_key_id and secret_access_key")
	}
	if s.BlobRootFile != "" && !filepath.IsAbs(s.BlobRootFile) {
		return bad("service.blob_root_file", "is not an absolute path")
	}
	return nil
}

// openBlobs opens the service's folder of blobs, or its part of the bucket.
func (n *Node) openBlobs(ctx context.Context) (*blob.Store, error) {
	c := blob.Config{Dir: n.path("blob")}
	if s := &n.cfg.Service; s.BlobURL != "" {
		c = blob.Config{URL: s.BlobURL, CredentialsFile: s.BlobCredentialsFile, RootFile: s.BlobRootFile, Prefix: n.name, Now: n.opts.Now}
	}
	b, err := blob.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = b.Close() })
	n.blobs = b
	return b, nil
}
