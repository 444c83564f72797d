package installation

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/node"
)

// blobFlags name a bucket for the blobs, in place of the services' folders.
type blobFlags struct{ node.Bucket }

func (b *blobFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&b.URL, "blobs", "", "the bucket for blobs, s3://bucket?endpoint=https://host:port&region=us-east-1&prefix=name; without it the services' folders")
	f.StringVar(&b.CredentialsFile, "blobs-credentials", "", "the file with its access_key_id and secret_access_key, as YAML, that only its owner may read")
	f.StringVar(&b.RootFile, "blobs-root", "", "the certificates that are believed at its endpoint, as PEM; without them the system's")
}

// absolute makes paths what a service can read from anywhere.
func (b *blobFlags) absolute() (err error) {
	for _, p := range []*string{&b.CredentialsFile, &b.RootFile} {
		if *p != "" {
			if *p, err = filepath.Abs(*p); err != nil {
				return err
			}
		}
	}
	return nil
}
