package store

import (
	"context"
	"embed"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations of the tables that the store owns.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "inference", FS: migrations, Dir: "migrations"}
}

// Record writes the audit record of a change into its transaction.
type Record func(ctx context.Context, tx *sqldb.Tx) error

// Cursor is the place in a list after which the next page starts.
type Cursor = envelope.Cursor

// ParseCursor reads what Cursor.Bytes wrote.
func ParseCursor(b []byte) (Cursor, error) { return envelope.ParseCursor(b) }

// Store is the database of inference. It is safe for concurrent use.
type Store struct {
	db   *sqldb.DB
	keys *envelope.Keyring
}

// New makes a store. keys are the data keys of workspaces.
func New(d *sqldb.DB, keys *envelope.Keyring) *Store { return &Store{db: d, keys: keys} }

// Key is the workspace's data key.
func (s *Store) Key(ctx context.Context, workspace string) (*envelope.Key, error) {
	return s.keys.Key(ctx, workspace)
}

// micros and instant turn times into columns and back; 0 is the zero time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func instant(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us)
}
