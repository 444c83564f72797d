package plan

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// files of the folder of an instance that keeps blobs in a bucket.
const (
	blobKey  = "blobs.yaml"
	blobRoot = "blobs.crt"
)

// Blobs is a bucket of S3, of which each service that keeps blobs has a part of its own.
type Blobs struct {
	// URL is s3://bucket?endpoint=https://host:port&region=…&prefix=….
	URL string `koanf:"url" config:"visible"`
	// Credentials is the file, for its owner alone, with access_key_id and secret_access_key as YAML. It is copied into the folders.
	Credentials string `koanf:"credentials" config:"visible"`
	// Root is the file with the certificates that are believed at the endpoint; without it the system's are.
	Root string `koanf:"root" config:"visible"`
}

// relative makes the files' paths absolute, from the plan's folder.
func (b *Blobs) relative(dir string) (err error) {
	if b == nil {
		return nil
	}
	for _, p := range []*string{&b.Credentials, &b.Root} {
		if *p != "" && !filepath.IsAbs(*p) {
			if *p, err = filepath.Abs(filepath.Join(dir, *p)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Plan) checkBlobs() error {
	if p.Blobs == nil {
		count := make(map[string]int)
		for i, in := range p.Instances {
			if count[in.Service]++; count[in.Service] > 1 && slices.Contains(node.BlobServices, in.Service) {
				return bad("blobs", "is not set, and instances["+strconv.Itoa(i)+"] is a second one of "+in.Service+": its instances share their blobs in a bucket")
			}
		}
		return nil
	}
	var wrong *fault.Error
	if err := blob.CheckURL(p.Blobs.URL); errors.As(err, &wrong) {
		return bad("blobs.url", "cannot be used: "+wrong.Message())
	}
	if p.Blobs.Credentials == "" {
		return bad("blobs.credentials", "is missing: it names the file with access_key_id and secret_access_key")
	}
	return nil
}

// bucket gives an instance its bucket, for a folder at dir as it sees it.
func (p *Plan) bucket(s *node.Service, dir string) {
	if p.Blobs == nil || !slices.Contains(node.BlobServices, s.Name) {
		return
	}
	s.BlobURL, s.BlobCredentialsFile = p.Blobs.URL, filepath.Join(dir, blobKey)
	if p.Blobs.Root != "" {
		s.BlobRootFile = filepath.Join(dir, blobRoot)
	}
}

// blobFiles writes the bucket's key and root into an instance's folder.
func (m *maker) blobFiles(in Instance) error {
	if m.Blobs == nil || !slices.Contains(node.BlobServices, in.Service) {
		return nil
	}
	for _, f := range []struct{ field, from, to string }{{"blobs.credentials", m.Blobs.Credentials, blobKey}, {"blobs.root", m.Blobs.Root, blobRoot}} {
		if f.from == "" || there(m.at(in.Folder(), f.to)) {
			continue
		}
		if info, err := os.Stat(f.from); err == nil && f.to == blobKey && info.Mode().Perm()&0o077 != 0 {
			return bad(f.field, "can be read by others: chmod 600 it")
		}
		b, err := os.ReadFile(f.from)
		if err != nil {
			return bad(f.field, "cannot be read: "+err.Error())
		}
		err = svid.WritePrivate(m.at(in.Folder(), f.to), b)
		clear(b)
		if err != nil {
			return err
		}
	}
	return nil
}
