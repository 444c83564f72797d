// Package store keeps compute targets, runs, their logs and the list of their outputs.
//
// Trust boundary: rows come from a database that others may have changed. What a tenant wrote is ciphertext under the workspace's
// data key, bound to the row that it stands in.
//
// Invariants: a run changes by compare and swap on its version, so two schedulers never both move it; a log has no gap and no
// overlap; all of a workspace is asked for by its uid, so that it can have a database of its own later.
//
// Failure: driver errors become kinds of pkg/fault here; CONFLICT says that a run was changed in between.
package store

import (
	"context"
	"embed"
	"log/slog"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store/db"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations of the tables that the store owns.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "compute", FS: migrations, Dir: "migrations"}
}

// Record writes the audit record of a change into its transaction.
type Record func(ctx context.Context, tx *sqldb.Tx) error

// Writer runs write transactions: a database, or what checks in each of them that its holder may still write.
type Writer interface {
	Write(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error
	WriteGrouped(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error
}

// Store is the database of compute. It is safe for concurrent use.
type Store struct {
	db   *sqldb.DB
	w    Writer
	keys *envelope.Keyring
	log  *slog.Logger
}

// New makes a store. keys are the data keys of workspaces.
func New(d *sqldb.DB, keys *envelope.Keyring, log *slog.Logger) *Store {
	return &Store{db: d, w: d, keys: keys, log: log}
}

// By is the same store, in which all is written by w.
func (s *Store) By(w Writer) *Store { return &Store{db: s.db, w: w, keys: s.keys, log: s.log} }

// Signals is as sqldb's: it tells of changes that any instance has committed.
func (s *Store) Signals(topic string) (wake <-chan struct{}, stop func()) { return s.db.Signals(topic) }

// What is signalled: RunTopic and ComputeTopic of each run or target, by its uid.
const (
	// QueueTopic says that something may be startable.
	QueueTopic = "queue"
	// EndedTopic says that a run has ended, or is gone.
	EndedTopic = "ended"
)

// RunTopic says that something about a run has changed, its log included.
func RunTopic(uid string) string { return "runs/" + uid }

// ComputeTopic says that a target may have a run, or room, for somebody.
func ComputeTopic(uid string) string { return "computes/" + uid }

// signal tells of topics when tx is committed.
func signal(ctx context.Context, tx *sqldb.Tx, topics ...string) error {
	for _, t := range topics {
		if err := tx.Signal(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// Cursor is the place in a list after which the next page starts.
type Cursor = envelope.Cursor

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

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Purge removes every row of a workspace, and its data key, for good. It can be repeated, and must be until it succeeds.
func (s *Store) Purge(ctx context.Context, workspace string, record Record) error {
	err := s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		for _, f := range []func(context.Context, string) error{q.DeleteLogsOfWorkspace, q.DeleteOutputsOfWorkspace, q.DeleteRunsOfWorkspace, q.DeleteComputesOfWorkspace, q.DeleteExperimentsOfWorkspace} {
			if err := f(ctx, workspace); err != nil {
				return sqldb.Fault(err)
			}
		}
		if err := s.keys.DestroyIn(ctx, tx, workspace); err != nil {
			return err
		}
		if err := signal(ctx, tx, EndedTopic); err != nil {
			return err
		}
		return record(ctx, tx)
	})
	if err != nil {
		return err
	}
	s.keys.Forget(workspace)
	return s.db.Scrub(ctx)
}
