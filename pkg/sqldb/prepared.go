package sqldb

import (
	"context"
	"database/sql"
)

// Prepared is a DBTX that prepares each query once: for a transaction that asks the same for many rows. It is for one goroutine, and its
// statements end with its transaction.
type Prepared struct {
	DBTX
	statements map[string]*sql.Stmt
}

// Prepare makes one for a transaction.
func Prepare(tx *Tx) *Prepared { return &Prepared{tx, make(map[string]*sql.Stmt)} }

func (p *Prepared) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	if s, ok := p.statements[query]; ok {
		return s, nil
	}
	s, err := p.DBTX.PrepareContext(ctx, query)
	if err == nil {
		p.statements[query] = s
	}
	return s, err
}

// ExecContext implements DBTX.
func (p *Prepared) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s, err := p.statement(ctx, query) //nolint:sqlclosecheck // closed by the end of the transaction
	if err != nil {
		return nil, err
	}
	return s.ExecContext(ctx, args...)
}

// QueryContext implements DBTX.
func (p *Prepared) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s, err := p.statement(ctx, query) //nolint:sqlclosecheck // closed by the end of the transaction
	if err != nil {
		return nil, err
	}
	return s.QueryContext(ctx, args...)
}

// QueryRowContext implements DBTX.
func (p *Prepared) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	s, err := p.statement(ctx, query) //nolint:sqlclosecheck // closed by the end of the transaction
	if err != nil {
		return p.DBTX.QueryRowContext(ctx, query, args...) // which says what is wrong
	}
	return s.QueryRowContext(ctx, args...)
}
