package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// notes is a schema with what the errors need: a unique text, a reference, a counter.
func notes(extra ...string) sqldb.MigrationSet {
	files := fstest.MapFS{"m/00001_notes.sql": {Data: []byte(`-- +goose Up
CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body BYTEA, created BIGINT NOT NULL DEFAULT 0);
CREATE TABLE tag (note TEXT NOT NULL REFERENCES note (id), name TEXT NOT NULL, UNIQUE (note, name));
CREATE TABLE counter (id TEXT NOT NULL PRIMARY KEY, n BIGINT NOT NULL);
INSERT INTO counter (id, n) VALUES ('c', 0);
`)}}
	for i, text := range extra {
		files["m/0000"+string(rune('2'+i))+"_more.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + text)}
	}
	return sqldb.MigrationSet{Name: "notes", FS: files, Dir: "m"}
}

func sets() []sqldb.MigrationSet { return []sqldb.MigrationSet{notes()} }

func insert(ctx context.Context, tx sqldb.DBTX, id string) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO note (id) VALUES ($1)", id)
	return err
}

// has asks in a snapshot of its own.
func has(t *testing.T, db *sqldb.DB, id string) bool {
	t.Helper()
	var n int64
	if err := db.Reader().QueryRowContext(context.Background(), "SELECT COUNT(*) FROM note WHERE id = $1", id).Scan(&n); err != nil {
		t.Fatalf("count: %v", err)
	}
	return n == 1
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := fault.Code(err); got != want {
		t.Fatalf("got %v (%v), want %v", got, err, want)
	}
	var f *fault.Error
	if errors.As(err, &f) {
		for _, leak := range []string{"note", "tag", "INSERT", "SELECT", "constraint", "SQLSTATE", "sqlite"} {
			if strings.Contains(f.Message(), leak) {
				t.Errorf("the message %q tells of the inside: %q", f.Message(), leak)
			}
		}
	}
}

func TestWriteCommitsOrChangesNothing(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		if err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, "kept") }); err != nil {
			t.Fatal(err)
		}
		mine := errors.New("mine")
		err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			if err := insert(ctx, tx, "undone"); err != nil {
				t.Fatal(err)
			}
			return mine
		})
		if err != mine { //nolint:errorlint // the very value comes back
			t.Errorf("got %v, want the function's own error as it is", err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic did not come through")
				}
			}()
			_ = db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
				_ = insert(ctx, tx, "panicked")
				panic("x")
			})
		}()
		if !has(t, db, "kept") || has(t, db, "undone") || has(t, db, "panicked") {
			t.Error("what is stored is not what was committed")
		}
	})
}

func TestTransactionIsDeadAfterItsFunction(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		var kept *sqldb.Tx
		if err := db.Write(t.Context(), func(_ context.Context, tx *sqldb.Tx) error { kept = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := insert(t.Context(), kept, "late"); err == nil {
			t.Fatal("a kept transaction still writes")
		}
		wantCode(t, sqldb.Fault(sql.ErrTxDone), codes.Unavailable)
	})
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, tx *sqldb.Tx) error
		want codes.Code
	}{
		{"a primary key again", func(ctx context.Context, tx *sqldb.Tx) error {
			return errors.Join(insert(ctx, tx, "a"), insert(ctx, tx, "a"))
		}, codes.AlreadyExists},
		{"a unique text again", func(ctx context.Context, tx *sqldb.Tx) error {
			if err := insert(ctx, tx, "a"); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "INSERT INTO tag (note, name) VALUES ('a', 'x'), ('a', 'x')")
			return err
		}, codes.AlreadyExists},
		{"a reference to nothing", func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO tag (note, name) VALUES ('nobody', 'x')")
			return err
		}, codes.FailedPrecondition},
		{"no row", func(ctx context.Context, tx *sqldb.Tx) error {
			var id string
			return tx.QueryRowContext(ctx, "SELECT id FROM note WHERE id = 'nobody'").Scan(&id)
		}, codes.NotFound},
		{"a null where none may be", func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO counter (id, n) VALUES ('d', NULL)")
			return err
		}, codes.Internal},
		{"no such table", func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "DELETE FROM nowhere")
			return err
		}, codes.Internal},
		{"a fault of the function", func(context.Context, *sqldb.Tx) error { return fault.PermissionDenied("no") }, codes.PermissionDenied},
		{"a context that ended elsewhere", func(context.Context, *sqldb.Tx) error { return context.DeadlineExceeded }, codes.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
				wantCode(t, db.Write(t.Context(), c.run), c.want)
				wantCode(t, db.WriteGrouped(t.Context(), c.run), c.want)
				if err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, "after") }); err != nil {
					t.Errorf("the next write fails: %v", err)
				}
			})
		})
	}
}

func TestReadersCannotWrite(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		wantCode(t, db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, "a") }), codes.Unavailable)
		if err := insert(t.Context(), db.Reader(), "b"); err == nil {
			t.Error("Reader writes")
		}
		if has(t, db, "a") || has(t, db, "b") {
			t.Error("something was written")
		}
	})
}

func TestReadSeesOneSnapshotAndDoesNotWait(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		err := db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			count := func() (n int64) {
				if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM note").Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := count()
			if err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, "a") }); err != nil {
				return err
			}
			if after := count(); after != before {
				t.Errorf("the snapshot moved from %d to %d", before, after)
			}
			if tx.ForUpdate() != "" {
				t.Error("a read-only transaction asks for row locks")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if !has(t, db, "a") {
			t.Error("the write beside the read was lost")
		}
	})
}

// Read, change and write back without any lock in the SQL: only a single writer gets the sum right. A second DB on the same schema
// stands for a second replica, where the engine allows one.
func TestOneWriterAtATime(t *testing.T) {
	sqldbtest.RunConfig(t, sets(), func(t *testing.T, c sqldb.Config) {
		dbs := []*sqldb.DB{sqldbtest.OpenConfig(t, c)}
		if c.Driver == sqldb.Postgres {
			dbs = append(dbs, sqldbtest.OpenConfig(t, c))
		}
		const each = 20
		var wg sync.WaitGroup
		for _, db := range dbs {
			for range 4 {
				wg.Go(func() {
					for range each {
						err := db.Write(context.Background(), func(ctx context.Context, tx *sqldb.Tx) error {
							var n int64
							if err := tx.QueryRowContext(ctx, "SELECT n FROM counter WHERE id = 'c'").Scan(&n); err != nil {
								return err
							}
							_, err := tx.ExecContext(ctx, "UPDATE counter SET n = $1 WHERE id = 'c'", n+1)
							return err
						})
						if err != nil {
							t.Errorf("write: %v", err)
						}
					}
				})
			}
		}
		wg.Wait()
		var n int64
		if err := dbs[0].Reader().QueryRowContext(t.Context(), "SELECT n FROM counter WHERE id = 'c'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if want := int64(len(dbs) * 4 * each); n != want {
			t.Errorf("counted %d, want %d", n, want)
		}
	})
}

func TestForUpdateIsTheEnginesOwn(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if (tx.ForUpdate() != "") != (db.Dialect() == sqldb.Postgres) {
				t.Errorf("%v: %q", db.Dialect(), tx.ForUpdate())
			}
			var n int64
			return tx.QueryRowContext(ctx, "SELECT n FROM counter WHERE id = 'c'"+tx.ForUpdate()).Scan(&n)
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestWriteInsideWriteIsRefused(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		err := db.Write(t.Context(), func(ctx context.Context, _ *sqldb.Tx) error {
			wantCode(t, db.WriteGrouped(ctx, func(context.Context, *sqldb.Tx) error { return nil }), codes.Internal)
			return db.Write(ctx, func(context.Context, *sqldb.Tx) error { return nil })
		})
		wantCode(t, err, codes.Internal)
	})
}

func TestContextEnds(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		t.Run("before", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			for name, write := range map[string]func(context.Context, func(context.Context, *sqldb.Tx) error) error{"Write": db.Write, "WriteGrouped": db.WriteGrouped, "Read": db.Read} {
				err := write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, "before") })
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s: got %v", name, err)
				}
			}
		})
		t.Run("while waiting for the writer", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			err := db.Write(t.Context(), func(context.Context, *sqldb.Tx) error {
				results := make(chan error, 2)
				go func() { results <- db.Write(ctx, func(context.Context, *sqldb.Tx) error { return nil }) }()
				go func() { results <- db.WriteGrouped(ctx, func(context.Context, *sqldb.Tx) error { return nil }) }()
				cancel()
				for range 2 {
					if err := <-results; !errors.Is(err, context.Canceled) {
						t.Errorf("got %v", err)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
		t.Run("inside", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
				if err := insert(ctx, tx, "inside"); err != nil {
					return err
				}
				cancel()
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			// What the driver says of a statement that was interrupted must not hide why.
			ctx, cancel = context.WithCancel(t.Context())
			err = db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
				cancel()
				return insert(ctx, tx, "inside")
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		if err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, "after") }); err != nil {
			t.Fatal(err)
		}
		if has(t, db, "before") || has(t, db, "inside") || !has(t, db, "after") {
			t.Error("a write whose context had ended was stored")
		}
	})
}

func TestFinishDecides(t *testing.T) {
	sqldbtest.RunConfig(t, sets(), func(t *testing.T, c sqldb.Config) {
		var finish func(ctx context.Context, commit func() error) error
		c.Finish = func(ctx context.Context, commit func() error) error { return finish(ctx, commit) }
		db := sqldbtest.OpenConfig(t, c)
		fenced := fault.Unavailable("fenced")
		for _, tc := range []struct {
			name   string
			finish func(ctx context.Context, commit func() error) error
			code   codes.Code
			stored bool
		}{
			{"passes", sqldbtest.PassThrough, codes.OK, true},
			{"refuses", func(context.Context, func() error) error { return fenced }, codes.Unavailable, false},
			{"forgets to commit", func(context.Context, func() error) error { return nil }, codes.Internal, false},
			{"refuses afterwards", func(_ context.Context, commit func() error) error { _ = commit(); return fenced }, codes.Unavailable, true},
			{"commits twice", func(_ context.Context, commit func() error) error { return errors.Join(commit(), commit()) }, codes.Internal, true},
		} {
			t.Run(tc.name, func(t *testing.T) {
				finish = tc.finish
				for i, write := range []func(context.Context, func(context.Context, *sqldb.Tx) error) error{db.Write, db.WriteGrouped} {
					id := tc.name + string(rune('0'+i))
					err := write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, id) })
					if fault.Code(err) != tc.code || has(t, db, id) != tc.stored {
						t.Errorf("%s: got %v, stored %v", id, err, has(t, db, id))
					}
				}
			})
		}
	})
}

// A Finish that swallows the commit's error must not turn it into a success.
func TestFailedCommitIsNeverAcknowledged(t *testing.T) {
	deferred := sqldb.MigrationSet{Name: "deferred", FS: fstest.MapFS{"00001_deferred.sql": {Data: []byte(`-- +goose Up
CREATE TABLE parent (id TEXT NOT NULL PRIMARY KEY);
CREATE TABLE child (parent TEXT NOT NULL REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
`)}}}
	sqldbtest.RunConfig(t, []sqldb.MigrationSet{deferred}, func(t *testing.T, c sqldb.Config) {
		c.Finish = func(_ context.Context, commit func() error) error { _ = commit(); return nil }
		db := sqldbtest.OpenConfig(t, c)
		wantCode(t, db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT INTO child (parent) VALUES ('nobody')")
			return err
		}), codes.FailedPrecondition)
	})
}

func TestClosed(t *testing.T) {
	sqldbtest.RunConfig(t, sets(), func(t *testing.T, c sqldb.Config) {
		db, err := sqldb.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
		nothing := func(context.Context, *sqldb.Tx) error { return nil }
		wantCode(t, db.Write(t.Context(), nothing), codes.Unavailable)
		wantCode(t, db.WriteGrouped(t.Context(), nothing), codes.Unavailable)
		wantCode(t, db.Read(t.Context(), nothing), codes.Unavailable)
		_, err = db.Reader().ExecContext(t.Context(), "SELECT 1")
		wantCode(t, sqldb.Fault(err), codes.Unavailable)
	})
}

func TestMigrations(t *testing.T) {
	other := sqldb.MigrationSet{Name: "other", FS: fstest.MapFS{"00001_other.sql": {Data: []byte("-- +goose Up\nCREATE TABLE other (id TEXT);\n")}}}
	sqldbtest.RunConfig(t, []sqldb.MigrationSet{notes(), other}, func(t *testing.T, c sqldb.Config) {
		open := func(c sqldb.Config, fn func(db *sqldb.DB)) error {
			db, err := sqldb.Open(t.Context(), c)
			if err != nil {
				return err
			}
			defer func() { _ = db.Close() }()
			fn(db)
			return nil
		}
		put := func(id string) func(db *sqldb.DB) {
			return func(db *sqldb.DB) {
				if err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, id) }); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := open(c, put("old")); err != nil {
			t.Fatal(err)
		}
		forward := c
		forward.Migrations = []sqldb.MigrationSet{notes("ALTER TABLE note ADD COLUMN more TEXT NOT NULL DEFAULT '';"), other}
		if err := open(forward, func(db *sqldb.DB) {
			if _, err := db.Reader().ExecContext(t.Context(), "SELECT more FROM note"); err != nil || !has(t, db, "old") {
				t.Errorf("the migrated table: %v", err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		err := open(c, func(*sqldb.DB) { t.Error("a newer schema was opened") })
		if !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), "newer version") {
			t.Errorf("the error does not say what to do: %v", err)
		}
		broken := c
		broken.Migrations = []sqldb.MigrationSet{notes("ALTER TABLE note ADD COLUMN more TEXT NOT NULL DEFAULT '';", "CREATE TABLE half (id TEXT); CREATE NONSENSE;"), other}
		if err := open(broken, func(*sqldb.DB) {}); err == nil || !strings.Contains(err.Error(), "00003_more.sql") {
			t.Errorf("a broken migration is not named: %v", err)
		}
		if err := open(forward, func(db *sqldb.DB) {
			if _, err := db.Reader().ExecContext(t.Context(), "SELECT id FROM half"); err == nil {
				t.Error("half of a migration stayed")
			}
		}); err != nil {
			t.Errorf("after a broken migration the old binary does not start: %v", err)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	good := sqldbtest.SQLite(t, sets()...)
	for name, change := range map[string]func(c *sqldb.Config){
		"zero":                 func(c *sqldb.Config) { *c = sqldb.Config{} },
		"no finish":            func(c *sqldb.Config) { c.Finish = nil },
		"no driver":            func(c *sqldb.Config) { c.Driver = 0 },
		"unknown driver":       func(c *sqldb.Config) { c.Driver = 3 },
		"no path":              func(c *sqldb.Config) { c.Path = "" },
		"no dsn":               func(c *sqldb.Config) { c.Driver = sqldb.Postgres },
		"schema with a quote":  func(c *sqldb.Config) { c.Schema = `a"b` },
		"set without a name":   func(c *sqldb.Config) { c.Migrations[0].Name = "" },
		"set with SQL in name": func(c *sqldb.Config) { c.Migrations[0].Name = "a;drop" },
		"set without files":    func(c *sqldb.Config) { c.Migrations[0].FS = nil },
		"the same set twice":   func(c *sqldb.Config) { c.Migrations = append(c.Migrations, c.Migrations[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			c.Migrations = sets()
			change(&c)
			if db, err := sqldb.Open(t.Context(), c); err == nil {
				_ = db.Close()
				t.Error("it was opened")
			}
		})
	}
}
