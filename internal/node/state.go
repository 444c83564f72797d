package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authn/proofs"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// state is what a service keeps: its seal, its database, its own keys, its outbox; the engine that decides for it, and who of its
// instances leads.
type state struct {
	db       *sqldb.DB
	own      *envelope.Keyring
	outbox   *audit.Outbox
	engine   *authz.Engine
	leader   *leader.Leader
	election *election
	fence    *lateFence
	proofs   authn.SharedProofs // used proofs of possession; nil where this process has the database for itself
	seal     string             // its fingerprint
}

// election is etcd's, which is reached later than the state is opened.
type election struct {
	ready chan struct{}
	in    leader.Election
}

// Campaign implements leader.Election.
func (e *election) Campaign(ctx context.Context, role string) (leader.Seat, error) {
	select {
	case <-e.ready:
		return e.in.Campaign(ctx, role)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// elect lets the service's instances stand for its roles.
func (n *Node) elect(st *state, m *mesh) {
	st.election.in = leader.Etcd(m.registry, n.name, n.instance())
	close(st.election.ready)
}

// instance is this process's name in the mesh, "identity-a".
func (n *Node) instance() string { return n.name + "-" + n.cfg.Service.Instance }

func (n *Node) openState(ctx context.Context, own ...sqldb.MigrationSet) (*state, error) {
	s, err := n.openSeal()
	if err != nil {
		return nil, err
	}
	cfg := sqldb.Config{Driver: sqldb.SQLite, Path: n.path("db.sqlite"), Migrations: sets(own...), Finish: rpc.Finish, Logger: n.log, Now: n.opts.Now}
	if f := n.cfg.Service.PostgresFile; f != "" {
		dsn := n.opts.Postgres
		if dsn.Empty() {
			if dsn, err = readSecret(f); err != nil {
				return nil, err
			}
		}
		cfg.Driver, cfg.Path, cfg.DSN, cfg.Schema = sqldb.Postgres, "", dsn, n.name
	}
	db, err := sqldb.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = db.Close() })
	st := &state{db: db, seal: s.Fingerprint(), fence: newLateFence()}
	st.engine = authz.New(authz.Config{Now: n.opts.Now, OwnAuthorization: n.name == "workspace", OwnSecurity: n.name == "identity", OnApplied: st.fence.applied})
	if st.own, err = envelope.New(envelope.Config{Source: envelope.SealSource(s, n.name), DB: db, Now: n.opts.Now}); err != nil {
		return nil, err
	}
	if cfg.Driver == sqldb.Postgres {
		st.proofs = proofs.New(db, n.opts.Now)
	}
	st.election = &election{ready: make(chan struct{})}
	if st.leader, err = leader.New(leader.Config{DB: db, Election: st.election, Holder: n.instance(), Now: n.opts.Now, Logger: n.log}); err != nil {
		return nil, err
	}
	if st.outbox, err = audit.New(audit.Config{Service: n.name, DB: db, Keys: st.own, Leader: st.leader, Now: n.opts.Now, Logger: n.log}); err != nil {
		return nil, err
	}
	return st, nil
}

// openSeal opens the service's seal, or makes it where there is no data that another one has sealed. Beside the data stands the
// seal's fingerprint, so that a wrong file is told from damage.
func (n *Node) openSeal() (*seal.Seal, error) {
	id := n.path("seal.id")
	stored, err := os.ReadFile(id)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return nil, fmt.Errorf("the seal's fingerprint cannot be read: %w", err)
	}
	key := n.cfg.sealFile()
	s, err := seal.OpenFile(key, fresh)
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = s.Close() })
	if fresh {
		return s, svid.WritePrivate(id, []byte(s.Fingerprint()+"\n"))
	}
	if err := s.Check(strings.TrimSpace(string(stored))); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return s, nil
}

// readSecret reads a file that no one else may read.
func readSecret(path string) (redact.Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return redact.Secret{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return redact.Secret{}, fmt.Errorf("%s can be read by others: chmod 600 it", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return redact.Secret{}, err
	}
	return redact.FromString(strings.TrimSpace(string(b))), nil
}
