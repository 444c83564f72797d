// Package proofs remembers, for all instances of a service, which proofs of possession were used: in the database that they share (A4).
//
// Trust boundary: it is told only of proofs that have passed every other check. It keeps digests of them.
//
// Invariants: of all instances, one is told that a proof is new, once.
//
// Failure: closed. Where the database does not answer within Deadline, no proof is new.
package proofs

import (
	"context"
	"embed"
	"sync/atomic"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

//go:embed migrations/*.sql
var files embed.FS

// Deadline is how long First waits for the database.
const Deadline = 2 * time.Second

// sweepEvery is the time between two removals of what is over.
const sweepEvery = time.Minute

// Migrations brings the table into a service's database.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "proofs", FS: files, Dir: "migrations"}
}

// Store is safe for concurrent use.
type Store struct {
	db    *sqldb.DB
	now   func() time.Time
	swept atomic.Int64 // ns
}

// New makes a Store on a database that has the table of Migrations. now is the clock; nil means time.Now.
func New(db *sqldb.DB, now func() time.Time) *Store {
	if now == nil {
		now = time.Now
	}
	return &Store{db: db, now: now}
}

// First reports whether nobody has asked for this proof before. It may be forgotten after until.
func (s *Store) First(digest []byte, until time.Time) (bool, error) {
	// Not in the caller's context: nothing that he may or may not do decides whether a proof is used.
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	s.sweep(ctx)
	var n int64
	err := s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		res, err := tx.ExecContext(ctx, "INSERT INTO used_proofs (digest, expire_time) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING", digest, until.UnixMicro())
		if err != nil {
			return sqldb.Fault(err)
		}
		n, err = res.RowsAffected()
		return err
	})
	return err == nil && n == 1, err
}

// sweep removes what is over, now and then. What it cannot do now it does the next time.
func (s *Store) sweep(ctx context.Context) {
	now, last := s.now(), s.swept.Load()
	if now.UnixNano()-last < int64(sweepEvery) && now.UnixNano() >= last || !s.swept.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	_ = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM used_proofs WHERE expire_time < $1", now.UnixMicro())
		return sqldb.Fault(err)
	})
}
