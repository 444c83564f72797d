package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func rowsUpTo(ctx context.Context, q sqldb.DBTX, id string) (n int, err error) {
	rows, err := q.QueryContext(ctx, "SELECT id FROM note WHERE id <= $1 ORDER BY id", id)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		n++
	}
	return n, rows.Err()
}

// asked looks for the note and counts up to it, by one statement each.
func asked(ctx context.Context, t *testing.T, q sqldb.DBTX, id string, want int) {
	t.Helper()
	var got string
	if err := q.QueryRowContext(ctx, "SELECT id FROM note WHERE id = $1", id).Scan(&got); err != nil || got != id {
		t.Errorf("%s: %s, %v", id, got, err)
	}
	if n, err := rowsUpTo(ctx, q, id); err != nil || n != want {
		t.Errorf("%s: %d rows of %d, %v", id, n, want, err)
	}
}

// However often a query is asked, as a text, by a statement of the transaction or by one that is kept, it answers for what it is asked.
func TestAskedOften(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		for i := range 40 {
			id := fmt.Sprintf("%02d", i)
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				if err := insert(ctx, tx, id); err != nil {
					return err
				}
				for range 3 {
					asked(ctx, t, tx, id, i+1)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			err = db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				asked(ctx, t, tx, id, i+1)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			asked(t.Context(), t, db.Reader(), id, i+1)
		}
		if kept := sqldb.Kept(db); db.Dialect() == sqldb.SQLite && kept < 5 { // the insert, and two in each pool
			t.Errorf("%d statements are kept", kept)
		}
		// What fails does so each time, and takes nothing else with it.
		for range 20 {
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				if err := insert(ctx, tx, "00"); err == nil {
					t.Error("a key was stored twice")
				}
				return errors.New("given up")
			})
			if err == nil {
				t.Fatal("it was committed")
			}
			if _, err := db.Reader().QueryContext(t.Context(), "SELECT nothing FROM nowhere"); err == nil { //nolint:rowserrcheck,sqlclosecheck // there are none
				t.Fatal("a query of nothing was answered")
			}
			asked(t.Context(), t, db.Reader(), "07", 8)
		}
	})
}

// A transaction whose context ends in the middle leaves the connection, and what is kept prepared on it, as good as before.
func TestKeptAfterCancelled(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		for i := range 30 {
			ctx, cancel := context.WithCancel(t.Context())
			err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
				if err := insert(ctx, tx, "gone"); err != nil {
					return err
				}
				cancel()
				_, err := rowsUpTo(ctx, tx, "zz")
				return err
			})
			if err == nil {
				t.Fatalf("round %d: it was committed", i)
			}
		}
		if err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, "here") }); err != nil {
			t.Fatal(err)
		}
		asked(t.Context(), t, db.Reader(), "here", 1)
	})
}

// Queries that differ each time do not fill the memory.
func TestKeptAreBounded(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		for i := range 3000 {
			var n int
			_ = db.Reader().QueryRowContext(t.Context(), fmt.Sprintf("SELECT %d FROM note LIMIT 2", i)).Scan(&n)
		}
		if counted := sqldb.Counted(db); counted > 1024 {
			t.Errorf("%d are counted", counted)
		}
		for i := range 400 {
			for range 9 {
				var n int
				if err := db.Reader().QueryRowContext(t.Context(), fmt.Sprintf("SELECT %d FROM note LIMIT 1", i)).Scan(&n); err == nil {
					t.Fatal("there is no note")
				}
			}
		}
		if kept := sqldb.Kept(db); kept > 256 {
			t.Errorf("%d are kept", kept)
		}
	})
}

// Many readers share what is kept.
func TestKeptAtOnce(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		if err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			for i := range 20 {
				if err := insert(ctx, tx, fmt.Sprintf("%02d", i)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 50 {
					at := (w + i) % 20
					asked(t.Context(), t, db.Reader(), fmt.Sprintf("%02d", at), at+1)
					if err := db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
						asked(ctx, t, tx, fmt.Sprintf("%02d", at), at+1)
						return nil
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})
}

// A caller whose context has ended takes a query from nobody else in the transaction: many share one (WriteGrouped).
func TestKeptForOthers(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		ended, end := context.WithCancel(t.Context())
		end()
		for i := range 20 { // from a text to what is kept
			id := fmt.Sprintf("%02d", i)
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				if _, err := rowsUpTo(ended, tx, id); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: asked with a context that has ended: %v", id, err)
				}
				if err := insert(ctx, tx, id); err != nil {
					return err
				}
				asked(ctx, t, tx, id, i+1)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}
