package sqldb

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// DBTX is what generated queries run on: a *Tx, or what Reader gives.
type DBTX interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// WriteFunc is DB.Write, or what does more before it lets a function write, such as a leader's.
type WriteFunc func(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error

// Tx is a transaction in progress. It cannot be committed by its user, and is dead once the function that got it has returned.
// Its methods return the driver's errors; Fault maps them, and Write and Read map what the function returns.
type Tx struct {
	tx        *sql.Tx
	dialect   Dialect
	forUpdate string
	db        *DB             // nil in a transaction that only reads
	topics    map[string]bool // what is signalled after the commit
	signalled int             // how many of them this transaction, or this member of a group, has added

	kept *statements // nil on PostgreSQL
	mu   sync.Mutex
	own  map[string]*sql.Stmt // of this transaction; nil for a query that was asked once, as a text
}

var _ DBTX = (*Tx)(nil)

// ExecContext runs a statement that returns no rows.
func (t *Tx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if s := t.statement(ctx, query); s != nil { //nolint:sqlclosecheck // closed by the end of the transaction
		return s.ExecContext(ctx, args...)
	}
	return t.tx.ExecContext(ctx, query, args...)
}

// PrepareContext prepares a statement for the life of the transaction.
func (t *Tx) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	return t.tx.PrepareContext(ctx, query)
}

// QueryContext runs a query; the rows must be closed before the next statement.
func (t *Tx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if s := t.statement(ctx, query); s != nil { //nolint:sqlclosecheck // closed by the end of the transaction
		return s.QueryContext(ctx, args...)
	}
	return t.tx.QueryContext(ctx, query, args...)
}

// QueryRowContext runs a query of at most one row; none is sql.ErrNoRows from Scan.
func (t *Tx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if s := t.statement(ctx, query); s != nil { //nolint:sqlclosecheck // closed by the end of the transaction
		return s.QueryRowContext(ctx, args...)
	}
	return t.tx.QueryRowContext(ctx, query, args...)
}

// Dialect says which engine it runs on.
func (t *Tx) Dialect() Dialect { return t.dialect }

// ForUpdate is the suffix that locks the rows of a SELECT on an engine that has one: " FOR UPDATE" in a write transaction on
// PostgreSQL, else "".
func (t *Tx) ForUpdate() string { return t.forUpdate }

// inWrite marks the context that a function of Write gets, so that a Write inside a Write is an error and no deadlock.
type inWrite struct{ db *DB }

// enter takes the writer, or says why not.
func (db *DB) enter(ctx context.Context) error {
	if ctx.Value(inWrite{db}) != nil {
		return fault.Internal(nil, "a write transaction was opened inside another one")
	}
	select {
	case <-db.closed:
		return errClosed()
	default:
	}
	select {
	case <-db.closed:
		return errClosed()
	case <-ctx.Done():
		return ctx.Err()
	case db.gate <- struct{}{}:
	}
	if db.broken.Load() {
		db.leave()
		return errBroken()
	}
	return nil
}

func (db *DB) leave() { <-db.gate }

func errClosed() error { return fault.Unavailable("the database is being closed; repeat the call") }

func errBroken() error {
	return fault.Unavailable("an earlier change could not be brought safely to disk, so nothing more is written; the service must be restarted by its operator")
}

// Write runs fn in one write transaction and commits it through Config.Finish. If fn returns an error or panics, nothing is
// changed. fn runs once: no other write runs beside it, so nothing can conflict (see the package comment).
//
// Once the commit was sent, the end of ctx does not interrupt it. fn must use the context that it is given, must not call Write,
// and should not call other services. What fn returns comes back as it is, except that a driver's error becomes a fault.
func (db *DB) Write(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	if err := db.enter(ctx); err != nil {
		return err
	}
	return db.answered(ctx, fn)
}

// transact runs one write transaction. The caller holds the gate.
func (db *DB) transact(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	start := db.now()
	defer func() {
		if held := db.now().Sub(start); held >= slowWrite {
			db.log.WarnContext(ctx, "a write transaction held the writer for long", "held", held)
		}
	}()
	// The transaction ends with ctx until the commit is sent, and no longer after that.
	whole, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	keep := context.AfterFunc(ctx, end)

	if db.written != nil {
		db.written.prepare() // the gate is ours, so the connection is free
	}
	sqlTx, err := db.writer.BeginTx(whole, nil)
	if err != nil {
		return db.early(ctx, err)
	}
	defer func() { _ = sqlTx.Rollback() }() // does nothing after a commit
	tx := &Tx{tx: sqlTx, dialect: db.dialect, db: db, kept: db.written}
	var row *life
	if db.dialect == Postgres {
		tx.forUpdate = " FOR UPDATE"
		if row, err = db.lockWriter(whole, sqlTx); err != nil {
			return db.early(ctx, err)
		}
	}
	if err := fn(context.WithValue(ctx, inWrite{db}, true), tx); err != nil {
		return db.early(ctx, err)
	}
	if !keep() { // ctx ended, and with it the transaction
		return ctx.Err()
	}
	if row, err = db.holdPresent(whole, sqlTx, row); err != nil {
		return db.observe(err, false)
	}
	return db.commit(ctx, sqlTx, tx.topics, row, end)
}

// commit passes Finish. What Finish says is not trusted where it contradicts what happened.
func (db *DB) commit(ctx context.Context, sqlTx *sql.Tx, topics map[string]bool, row *life, end func()) error {
	var called atomic.Bool
	var result error
	err := db.finish(ctx, func() error {
		if called.Swap(true) {
			return fault.Internal(nil, "a transaction was committed twice")
		}
		if result = db.unchanged(row); result != nil {
			return result
		}
		last()
		timer := time.AfterFunc(commitTimeout, end)
		defer timer.Stop()
		result = db.observe(sqlTx.Commit(), true)
		db.signalled(topics) // also after an error: of a commit whose result was lost, the database knows better
		return result
	})
	switch {
	case err != nil:
		return err
	case !called.Load():
		return fault.Internal(nil, "the transaction was not committed")
	default:
		return result
	}
}

// early maps an error from before the commit. If ctx has ended, that is why, whatever the driver calls it.
func (db *DB) early(ctx context.Context, err error) error {
	if mapped := db.observe(err, false); ctx.Err() == nil || !fromDriver(err) {
		return mapped
	}
	return ctx.Err()
}

// observe maps a driver's error, logs what an operator must know, and notes a failed fsync.
func (db *DB) observe(err error, commit bool) error {
	if err == nil {
		return nil
	}
	if unsafeDisk(err, commit) {
		db.broken.Store(true)
		db.log.Error("the disk failed to store a change; nothing more is written until the database is opened anew", "error", err)
		return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
			"the change could not be brought safely to disk, and whether it will last is not known; the service must be restarted by its operator")
	}
	if commit && lostConnection(err) {
		return fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
			"the connection was lost while the change was committed; read before you repeat it")
	}
	return Fault(err)
}

// Read runs fn in a read-only transaction that sees one snapshot of the database from its first statement on. Changes are refused by
// the engine. What fn returns comes back as from Write.
func (db *DB) Read(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	select {
	case <-db.closed:
		return errClosed()
	default:
	}
	options := &sql.TxOptions{ReadOnly: true}
	if db.dialect == Postgres {
		options.Isolation = sql.LevelRepeatableRead
	}
	if db.read != nil {
		db.read.prepare()
	}
	sqlTx, err := db.reader.BeginTx(ctx, options)
	if err != nil {
		return db.early(ctx, err)
	}
	defer func() { _ = sqlTx.Rollback() }() // nothing to commit
	if err := fn(ctx, &Tx{tx: sqlTx, dialect: db.dialect, kept: db.read}); err != nil {
		return db.early(ctx, err)
	}
	return nil
}

// Reader runs single statements, each on a snapshot of its own. Changes are refused by the engine. Its errors are the driver's: pass
// them through Fault.
func (db *DB) Reader() DBTX {
	if db.read != nil {
		return reading{db.read}
	}
	return db.reader
}
