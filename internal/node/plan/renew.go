package plan

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Renewed is one certificate that was signed again.
type Renewed struct {
	Path string
	End  time.Time
}

// Renew signs every certificate of etcd's root again that lies in the folders below data, which were made with a plan or without one.
// Keys stay, and nothing else is changed.
func Renew(data string, now func() time.Time) ([]Renewed, error) {
	data, err := filepath.Abs(data)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(data, etcdRoot)
	if !there(root) {
		root = filepath.Join(data, "etcd", "pki")
	}
	if !there(filepath.Join(root, "root.key")) {
		return nil, fault.FailedPrecondition("the key of etcd's root is needed to sign with: bring %s back", filepath.Join(data, etcdRoot))
	}
	unlock, err := node.LockFolder(data)
	if err != nil {
		return nil, err
	}
	defer unlock()
	pki, err := etcdnode.OpenPKI(root, now)
	if err != nil {
		return nil, err
	}
	var out []Renewed
	for _, pattern := range []string{"*/etcd/client.crt", "*/pki/server.crt", "*/pki/peer.crt"} {
		found, err := filepath.Glob(filepath.Join(data, pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			end, err := pki.RenewLeaf(filepath.Dir(path), strings.TrimSuffix(filepath.Base(path), ".crt"))
			if err != nil {
				return out, err
			}
			out = append(out, Renewed{Path: path, End: end})
		}
	}
	slices.SortFunc(out, func(a, b Renewed) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}
