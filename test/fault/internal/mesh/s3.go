//go:build linux

package mesh

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/redoubt-ml/redoubt/test/fault/internal/netns"
)

const (
	s3Service = "s3"
	s3Port    = "9000"
	s3Bucket  = "redoubt"
)

// addS3 makes and starts a server of S3 with a certificate of a root of its own, on a host and a disk of its own. It gives the plan's section.
func (m *Mesh) addS3() (map[string]any, error) {
	p, err := m.add(s3Service, s3Service)
	if err != nil {
		return nil, err
	}
	if err := netns.Disk(p.Dir, postgresDisk); err != nil {
		return nil, err
	}
	root, cert, key, err := certificate(p.Host.Addr)
	if err != nil {
		return nil, err
	}
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	word := hex.EncodeToString(secret)
	rootFile, keyFile := filepath.Join(netns.Root, "s3-root.pem"), filepath.Join(netns.Root, "s3-credentials.yaml")
	for path, b := range map[string][]byte{
		rootFile: root, filepath.Join(p.Dir, "server.crt"): cert, filepath.Join(p.Dir, "server.key"): key,
		keyFile: fmt.Appendf(nil, "access_key_id: fault\nsecret_access_key: %s\n", word),
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return nil, err
		}
	}
	store := filepath.Join(p.Dir, "store")
	if err := os.MkdirAll(filepath.Join(store, s3Bucket), 0o700); err != nil {
		return nil, err
	}
	at := net.JoinHostPort(p.Host.Addr, s3Port)
	p.program = m.cfg.S3
	p.args = []string{"--port", at, "--cert", filepath.Join(p.Dir, "server.crt"), "--key", filepath.Join(p.Dir, "server.key"), "--region", "us-east-1", "--keep-alive", "--quiet", "posix", store}
	p.env = func() []string { return []string{"ROOT_ACCESS_KEY=fault", "ROOT_SECRET_KEY=" + word} }
	return map[string]any{"url": "s3://" + s3Bucket + "?endpoint=https://" + at + "&region=us-east-1", "credentials": keyFile, "root": rootFile}, p.Start()
}
