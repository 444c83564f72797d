package sqldb

import (
	"context"
	"database/sql"
	"sync"
	"time"
)

const (
	// keptAfter is how often a query is asked before its statement is kept.
	keptAfter = 8
	// mostKept bounds the statements of one pool, and how many other queries are counted at a time.
	mostKept, mostCounted = 256, 1024
	// prepareTimeout bounds the wait for a connection to prepare on.
	prepareTimeout = time.Second
)

// statements are those of one pool of SQLite that are asked again and again: they are prepared once a connection, since to parse a query costs
// SQLite more than to run it. PostgreSQL's driver does the same by itself, and has none of these. It is safe for concurrent use.
type statements struct {
	pool *sql.DB

	mu    sync.RWMutex
	kept  map[string]*sql.Stmt
	asked map[string]int
	next  []string // to be prepared as soon as no transaction needs the connection
}

func newStatements(pool *sql.DB) *statements {
	return &statements{pool: pool, kept: make(map[string]*sql.Stmt), asked: make(map[string]int)}
}

// find gives the statement of a query, or nil where it is not kept, and counts how often it is asked.
func (s *statements) find(query string) *sql.Stmt {
	s.mu.RLock()
	kept := s.kept[query]
	s.mu.RUnlock()
	if kept != nil {
		return kept
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept)+len(s.next) >= mostKept {
		return s.kept[query]
	}
	if len(s.asked) >= mostCounted {
		clear(s.asked)
	}
	if s.asked[query]++; s.asked[query] == keptAfter {
		s.next = append(s.next, query)
	}
	return s.kept[query]
}

// prepare prepares what is asked often by now. The caller holds no connection of the pool: there may be but one. What cannot be prepared is
// asked as before, and counted anew.
func (s *statements) prepare() {
	s.mu.RLock()
	none := len(s.next) == 0
	s.mu.RUnlock()
	if none {
		return
	}
	s.mu.Lock()
	next := s.next
	s.next = nil
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), prepareTimeout)
	defer cancel()
	for _, query := range next {
		stmt, err := s.pool.PrepareContext(ctx, query) //nolint:sqlclosecheck // it ends with the pool
		s.mu.Lock()
		delete(s.asked, query)
		if err == nil {
			s.kept[query] = stmt
		}
		s.mu.Unlock()
	}
}

// statement gives the statement of a query in this transaction, or nil where it is to be asked as a text. A second time in one transaction is
// worth a statement of the transaction's own.
func (t *Tx) statement(ctx context.Context, query string) *sql.Stmt {
	if t.kept == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	own, again := t.own[query]
	if own != nil {
		return own
	}
	if t.own == nil {
		t.own = make(map[string]*sql.Stmt)
	}
	// A statement that could not be had since this caller's context has ended would be everybody's in the transaction.
	ctx = context.WithoutCancel(ctx)
	if kept := t.kept.find(query); kept != nil {
		own = t.tx.StmtContext(ctx, kept) //nolint:sqlclosecheck // closed by the end of the transaction
	} else if again {
		own, _ = t.tx.PrepareContext(ctx, query) // where it cannot be, the query itself says what is wrong
	}
	t.own[query] = own
	return own
}

// reading is a pool that is asked single queries.
type reading struct{ *statements }

var _ DBTX = reading{}

func (r reading) statement(query string) *sql.Stmt {
	r.prepare()
	return r.find(query)
}

// ExecContext implements DBTX.
func (r reading) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return r.pool.ExecContext(ctx, query, args...)
}

// PrepareContext implements DBTX.
func (r reading) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	return r.pool.PrepareContext(ctx, query)
}

// QueryContext implements DBTX.
func (r reading) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if s := r.statement(query); s != nil { //nolint:sqlclosecheck // it ends with the pool
		return s.QueryContext(ctx, args...)
	}
	return r.pool.QueryContext(ctx, query, args...)
}

// QueryRowContext implements DBTX.
func (r reading) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if s := r.statement(query); s != nil { //nolint:sqlclosecheck // it ends with the pool
		return s.QueryRowContext(ctx, args...)
	}
	return r.pool.QueryRowContext(ctx, query, args...)
}
