package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// members writes the folders of the etcd cluster.
func (m *maker) members() error {
	for _, e := range m.Etcd {
		if m.made[e.folder()] || there(m.at(e.folder(), memberFile)) {
			continue
		}
		if err := m.authority(); err != nil {
			return err
		}
		dir := m.at(e.folder())
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := m.pki.WriteMember(filepath.Join(dir, "pki"), e.Name, e.Host); err != nil {
			return err
		}
		b, err := yaml.Marshal(map[string]any{"etcd": m.member(e)})
		if err != nil {
			return fmt.Errorf("the configuration of %s: %w", e.folder(), err)
		}
		if err := svid.WritePrivate(filepath.Join(dir, memberFile), b); err != nil {
			return err
		}
		m.out.Added = append(m.out.Added, e.folder())
	}
	return nil
}

// member is what etcdnode.Member reads.
func (m *maker) member(e Member) map[string]any {
	dir := m.seen(m.data, e.folder())
	at := func(port int) string { return net.JoinHostPort(bind(e.Host, e.Listen, "0.0.0.0"), strconv.Itoa(port)) }
	var cluster []string
	for _, other := range m.Etcd {
		cluster = append(cluster, other.Name+"="+other.peerURL())
	}
	// The same for all members, and another one for every installation.
	root := sha256.Sum256(m.pki.RootPEM())
	return map[string]any{
		"name": e.Name, "dir": dir, "tls": filepath.Join(dir, "pki"), "client_listen": at(e.ClientPort), "peer_listen": at(e.PeerPort),
		"client_url": e.clientURL(), "peer_url": e.peerURL(), "cluster": cluster, "token": "redoubt-" + hex.EncodeToString(root[:8]),
	}
}
