package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// state is what a service keeps: its seal, its database, its own keys, its outbox; and the engine that decides for it.
type state struct {
	db     *sqldb.DB
	own    *envelope.Keyring
	outbox *audit.Outbox
	engine *authz.Engine
}

// finish is the one function that every commit passes. The fence's check joins here.
func finish(_ context.Context, commit func() error) error { return commit() }

func (n *Node) openState(ctx context.Context, own ...sqldb.MigrationSet) (*state, error) {
	s, err := n.openSeal()
	if err != nil {
		return nil, err
	}
	cfg := sqldb.Config{Driver: sqldb.SQLite, Path: n.path("db.sqlite"), Migrations: append([]sqldb.MigrationSet{envelope.Migrations(), audit.Migrations()}, own...), Finish: finish, Logger: n.log, Now: n.opts.Now}
	if f := n.cfg.Service.PostgresFile; f != "" {
		dsn, err := readSecret(f)
		if err != nil {
			return nil, err
		}
		cfg.Driver, cfg.Path, cfg.DSN, cfg.Schema = sqldb.Postgres, "", dsn, n.name
	}
	db, err := sqldb.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = db.Close() })
	st := &state{db: db, engine: authz.New(authz.Config{Now: n.opts.Now, OwnAuthorization: n.name == "workspace", OwnSecurity: n.name == "identity"})}
	if st.own, err = envelope.New(envelope.Config{Source: envelope.SealSource(s, n.name), DB: db, Now: n.opts.Now}); err != nil {
		return nil, err
	}
	if st.outbox, err = audit.New(audit.Config{Service: n.name, DB: db, Keys: st.own, Now: n.opts.Now, Logger: n.log}); err != nil {
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
	s, err := seal.OpenFile(n.path("seal.key"), fresh)
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = s.Close() })
	if fresh {
		return s, svid.WritePrivate(id, []byte(s.Fingerprint()+"\n"))
	}
	if err := s.Check(strings.TrimSpace(string(stored))); err != nil {
		return nil, fmt.Errorf("%s: %w", n.path("seal.key"), err)
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
