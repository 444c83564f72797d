package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// claim has this process be the only one of its service, where the store is a SQLite database: it waits until etcd has its claim, and
// serves nothing before. A process that serves goes on while etcd is away; it ends when it learns that another store is the service's.
func (n *Node) claim(ctx context.Context, m *mesh) error {
	if n.cfg.Service.PostgresFile != "" {
		return nil
	}
	o, err := n.owner()
	if err != nil {
		return err
	}
	c, err := m.registry.Claim(ctx, n.name, o)
	if err != nil {
		return err
	}
	n.background("claim of the store", func(ctx context.Context) error {
		defer c.Close()
		select {
		case err := <-c.Lost():
			return err
		case <-ctx.Done():
			return nil
		}
	})
	return nil
}

// owner says where the store is. A copy of it is another store: it is in another file.
func (n *Node) owner() (discovery.Owner, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "an unknown host"
	}
	var stat unix.Stat_t
	if err := unix.Stat(n.path("db.sqlite"), &stat); err != nil {
		return discovery.Owner{}, fault.Internal(err, "the database of %s could not be looked at", n.name)
	}
	place := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d\x00%d", n.cfg.Service.Dir, stat.Dev, stat.Ino))
	return discovery.Owner{Place: hex.EncodeToString(place[:16]), Instance: n.instance(), Host: host, Dir: n.cfg.Service.Dir}, nil
}
