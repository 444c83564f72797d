package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// counted counts what is prepared.
type counted struct {
	sqldb.DBTX
	n int
}

func (c *counted) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	c.n++
	return c.DBTX.PrepareContext(ctx, query)
}

func rowsOf(ctx context.Context, p *sqldb.Prepared, id string) (n int, err error) {
	rows, err := p.QueryContext(ctx, "SELECT id FROM note WHERE id <= $1 ORDER BY id", id)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		n++
	}
	return n, rows.Err()
}

// A query is prepared once, and answers each time for what it is asked, in the transaction that it is of.
func TestPrepared(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			p := sqldb.Prepare(tx)
			counts := &counted{DBTX: tx}
			p.DBTX = counts
			for i := range 5 {
				id := fmt.Sprint(i)
				if err := insert(ctx, p, id); err != nil {
					return err
				}
				var got string
				if err := p.QueryRowContext(ctx, "SELECT id FROM note WHERE id = $1", id).Scan(&got); err != nil || got != id {
					t.Errorf("%s: %s, %v", id, got, err)
				}
				if n, err := rowsOf(ctx, p, id); err != nil || n != i+1 {
					t.Errorf("%s: %d rows, %v", id, n, err)
				}
			}
			if counts.n != 3 {
				t.Errorf("%d statements were prepared, want 3", counts.n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			p := sqldb.Prepare(tx)
			if _, err := p.QueryContext(ctx, "SELECT nothing FROM nowhere"); err == nil { //nolint:rowserrcheck,sqlclosecheck // there are none
				t.Error("a query of nothing was prepared")
			}
			return nil
		})
		if err != nil && db.Dialect() == sqldb.SQLite {
			t.Fatal(err)
		}
		var s string
		err = db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			return sqldb.Prepare(tx).QueryRowContext(ctx, "SELECT nothing FROM nowhere").Scan(&s)
		})
		if err == nil {
			t.Error("a row of nothing was read")
		}
	})
}
