package sqldb

import (
	"context"
	"database/sql"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Snapshot is a database at one moment, for a backup. Its methods are not for concurrent use.
type Snapshot struct {
	db      *DB
	read    *Tx
	end     context.CancelFunc
	release func()
	once    sync.Once
}

// Freeze takes the writer, so that no change is under way on any replica, and opens a snapshot of that moment. Changes wait until Release;
// the snapshot lasts until Close, or the end of ctx. The caller must let go of the writer soon: everything that writes waits for him. If
// there is no snapshot within that time, the error is context.DeadlineExceeded.
func (db *DB) Freeze(ctx context.Context, within time.Duration) (_ *Snapshot, err error) {
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := db.enter(bounded); err != nil {
		return nil, err
	}
	s := &Snapshot{db: db, release: db.leave}
	defer func() {
		if err != nil {
			s.Close()
			err = db.early(bounded, err)
		}
	}()
	life, end := context.WithCancel(ctx)
	s.end = end
	if db.dialect == Postgres {
		// Of the other replicas, too: the lock that every write transaction takes.
		w, err := db.writer.BeginTx(life, nil)
		if err != nil {
			return nil, err
		}
		s.release = func() { _ = w.Rollback(); db.leave() }
		if _, err := w.ExecContext(bounded, "SELECT pg_advisory_xact_lock($1)", db.advise); err != nil {
			return nil, err
		}
	}
	options, first := &sql.TxOptions{ReadOnly: true}, "SELECT COUNT(*) FROM sqlite_schema"
	if db.dialect == Postgres {
		options.Isolation, first = sql.LevelRepeatableRead, "SELECT COUNT(*) FROM pg_namespace"
	}
	tx, err := db.reader.BeginTx(life, options)
	if err != nil {
		return nil, err
	}
	db.snapshots.Add(1)
	s.read = &Tx{tx: tx, dialect: db.dialect}
	if db.dialect == Postgres {
		// Whoever takes the rows may be slow.
		if _, err := tx.ExecContext(bounded, "SET LOCAL idle_in_transaction_session_timeout = '10min'"); err != nil {
			return nil, err
		}
	}
	var n int64
	return s, tx.QueryRowContext(bounded, first).Scan(&n) // the engine takes the snapshot at the first read
}

// Release lets changes go on. It may be called more than once.
func (s *Snapshot) Release() { s.once.Do(s.release) }

// Tx reads the snapshot. Changes are refused by the engine.
func (s *Snapshot) Tx() *Tx { return s.read }

// Versions are the versions of the migration sets.
func (s *Snapshot) Versions(ctx context.Context) (map[string]int64, error) {
	return s.db.versions(ctx, s.read)
}

// Versions are the versions of the migration sets, as the database has them now. It reads the database, so it tells also whether that
// answers.
func (db *DB) Versions(ctx context.Context) (out map[string]int64, err error) {
	err = db.Read(ctx, func(ctx context.Context, tx *Tx) error {
		out, err = db.versions(ctx, tx)
		return err
	})
	return out, err
}

func (db *DB) versions(ctx context.Context, tx *Tx) (map[string]int64, error) {
	out := make(map[string]int64, len(db.sets))
	for _, set := range db.sets {
		var at sql.NullInt64
		if err := tx.QueryRowContext(ctx, "SELECT MAX(version_id) FROM "+versions(set)).Scan(&at); err != nil {
			return nil, db.early(ctx, err)
		}
		out[set.Name] = at.Int64
	}
	return out, nil
}

// Close lets go of the writer and ends the snapshot.
func (s *Snapshot) Close() {
	s.Release()
	if s.read != nil {
		_ = s.read.tx.Rollback() // nothing to commit
		if s.db.snapshots.Add(-1) == 0 && s.db.scrubLater.Swap(false) {
			// What was deleted meanwhile is still in the log.
			if err := s.db.Scrub(context.Background()); err != nil {
				s.db.log.Warn("the write-ahead log could not be emptied after a backup", "error", err)
			}
		}
		s.read = nil
	}
	if s.end != nil {
		s.end()
	}
}

// errRestoring is what a store says that an interrupted restore has left.
func errRestoring() error {
	return fault.FailedPrecondition("the database was left half restored. Restore the backup once more: it clears away what is there")
}
