package node

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/redoubt-ml/redoubt/pkg/seal"
)

// CheckFiles looks at the files that a configuration names, as a start would use them, and changes nothing.
func (c *Config) CheckFiles() (bad []error) {
	add := func(field string, err error) {
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", field, err))
		}
	}
	if info, err := os.Stat(c.Service.Dir); err != nil || !info.IsDir() {
		add("service.dir", errors.Join(err, notFolder(info)))
	}
	_, err := etcdClientTLS(c.Mesh.EtcdTLS)
	add("mesh.etcd_tls", err)
	if c.Service.Name != "gateway" {
		s, err := seal.OpenFile(c.sealFile(), false)
		if err == nil {
			err = s.Close()
		}
		if _, marked := os.Stat(filepath.Join(c.Service.Dir, "seal.id")); c.Service.SealFile == "" && marked != nil && errors.Is(marked, fs.ErrNotExist) {
			if _, there := os.Stat(c.sealFile()); errors.Is(there, fs.ErrNotExist) {
				err = nil // it is made at the first start
			}
		}
		add("service.seal_file", err)
	}
	for field, path := range map[string]string{"service.postgres_file": c.Service.PostgresFile, "service.join_token_file": c.Service.JoinTokenFile} {
		if path == "" {
			continue
		}
		_, err := readSecret(path)
		if field == "service.join_token_file" && errors.Is(err, fs.ErrNotExist) {
			err = nil // it is used up
		}
		add(field, err)
	}
	return bad
}

// sealFile is where the service's seal is.
func (c *Config) sealFile() string {
	return cmp.Or(c.Service.SealFile, filepath.Join(c.Service.Dir, "seal.key"))
}

func notFolder(info fs.FileInfo) error {
	if info != nil && !info.IsDir() {
		return errors.New("it is not a folder")
	}
	return nil
}
