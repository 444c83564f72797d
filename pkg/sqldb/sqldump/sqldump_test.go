package sqldump_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldump"
)

const first = `-- +goose Up
CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body BYTEA, created BIGINT NOT NULL DEFAULT 0, "order" TEXT);
CREATE TABLE a_tag (note TEXT NOT NULL REFERENCES note (id), mac BYTEA NOT NULL, n BIGINT NOT NULL, PRIMARY KEY (mac, n));
CREATE TABLE head (id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1), seq BIGINT NOT NULL);
INSERT INTO head (id, seq) VALUES (1, 0);
`

const second = `-- +goose Up
ALTER TABLE note ADD COLUMN colour TEXT NOT NULL DEFAULT 'grey';
UPDATE note SET colour = 'green' WHERE id = 'b';
CREATE TABLE later (id TEXT NOT NULL PRIMARY KEY);
`

func set(files ...string) sqldb.MigrationSet {
	fs := fstest.MapFS{}
	for i, f := range files {
		fs[fmt.Sprintf("0000%d_m.sql", i+1)] = &fstest.MapFile{Data: []byte(f)}
	}
	return sqldb.MigrationSet{Name: "notes", FS: fs}
}

// fill stores what engines could disagree about.
func fill(t testing.TB, db *sqldb.DB) {
	t.Helper()
	must(t, db.Write(context.Background(), func(ctx context.Context, tx *sqldb.Tx) error {
		for _, row := range []struct {
			id    string
			body  []byte
			n     int64
			order any
		}{
			{"b", []byte{}, math.MaxInt64, nil}, {"B", nil, math.MinInt64, ""}, {"a", []byte{0, 255, 7}, -1, "it's"}, {"é", bytes.Repeat([]byte{9}, 70_000), 0, "x"},
			{"", []byte("text"), 1, "Ω\n\t"}, {"a-b", nil, 0, nil}, {"a_b", nil, 0, nil}, {"Z", nil, 5, nil},
		} {
			if _, err := tx.ExecContext(ctx, `INSERT INTO note (id, body, created, "order") VALUES ($1, $2, $3, $4)`, row.id, row.body, row.n, row.order); err != nil {
				return err
			}
		}
		for i := range 3000 {
			if _, err := tx.ExecContext(ctx, "INSERT INTO a_tag (note, mac, n) VALUES ($1, $2, $3)", "a", []byte{byte(i * 7), byte(i)}, int64(i-1500)); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, "UPDATE head SET seq = 42")
		return err
	}))
}

type batch struct {
	rows   int
	packed []byte
}

type dump struct {
	versions map[string]int64
	tables   []sqldump.Table
	rows     map[string][]batch
}

func (d dump) bytes(table string) []byte {
	var out []byte
	for _, b := range d.rows[table] {
		out = append(out, b.packed...)
	}
	return out
}

func take(t testing.TB, db *sqldb.DB) dump {
	t.Helper()
	s, err := db.Freeze(context.Background(), time.Minute)
	must(t, err)
	defer s.Close()
	s.Release()
	d := dump{rows: map[string][]batch{}}
	d.versions, err = s.Versions(context.Background())
	must(t, err)
	d.tables, err = sqldump.Tables(context.Background(), s.Tx())
	must(t, err)
	for _, table := range d.tables {
		must(t, sqldump.Read(context.Background(), s.Tx(), table, func(rows int, packed []byte) error {
			d.rows[table.Name] = append(d.rows[table.Name], batch{rows, bytes.Clone(packed)})
			return sqldump.Count(table, rows, packed)
		}))
	}
	return d
}

func restore(ctx context.Context, c sqldb.Config, d dump) (*sqldb.DB, error) {
	return sqldb.Restore(ctx, c, d.versions, func(ctx context.Context, tx *sqldb.Tx) error {
		have, err := sqldump.Tables(ctx, tx)
		if err != nil {
			return err
		}
		if len(have) != len(d.tables) {
			return errors.New("other tables")
		}
		if err := sqldump.Clear(ctx, tx, have); err != nil {
			return err
		}
		for i, table := range have {
			if !table.Equal(d.tables[i]) {
				return fmt.Errorf("other table %v", table)
			}
			in := sqldump.NewInserter(tx, table)
			for _, b := range d.rows[table.Name] {
				if err := in.Insert(ctx, b.rows, b.packed); err != nil {
					return err
				}
			}
			if err := in.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// engines are those that are here, as fresh configurations.
func engines(t *testing.T) map[string]func(t testing.TB, sets ...sqldb.MigrationSet) sqldb.Config {
	out := map[string]func(t testing.TB, sets ...sqldb.MigrationSet) sqldb.Config{"sqlite": sqldbtest.SQLite}
	if os.Getenv(sqldbtest.Env) != "" {
		out["postgres"] = sqldbtest.Postgres
	} else {
		t.Log("PostgreSQL is not here: only SQLite is tried")
	}
	return out
}

// D5: what one engine has written, the other gives back byte by byte, and back again.
func TestEveryValueGoesFromEngineToEngineAndBack(t *testing.T) {
	all := engines(t)
	for from, source := range all {
		for to, target := range all {
			t.Run(from+" to "+to, func(t *testing.T) {
				db := sqldbtest.OpenConfig(t, source(t, set(first)))
				fill(t, db)
				want := take(t, db)
				if len(want.rows["note"]) == 0 || len(want.rows["a_tag"]) == 0 || want.tables[len(want.tables)-1].Name != "a_tag" {
					t.Fatalf("the dump has %v", want.tables)
				}
				c := target(t, set(first))
				restored, err := restore(t.Context(), c, want)
				must(t, err)
				got := take(t, restored)
				for _, table := range want.tables {
					if !bytes.Equal(want.bytes(table.Name), got.bytes(table.Name)) {
						t.Errorf("%s: %d bytes became %d others", table.Name, len(want.bytes(table.Name)), len(got.bytes(table.Name)))
					}
				}
				must(t, restored.Unmark(t.Context()))
				must(t, restored.Close())
				again := sqldbtest.OpenConfig(t, c)
				var empty, null int
				must(t, again.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM note WHERE body IS NOT NULL AND LENGTH(body) = 0").Scan(&empty))
				must(t, again.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM note WHERE body IS NULL").Scan(&null))
				if empty != 1 || null != 4 {
					t.Errorf("%d empty bodies and %d that are NULL, not 1 and 4", empty, null)
				}
			})
		}
	}
}

// A backup of an older schema comes back at its own version, and then moves forward as at an upgrade.
func TestOlderSchemaMovesForward(t *testing.T) {
	for name, engine := range engines(t) {
		t.Run(name, func(t *testing.T) {
			old := sqldbtest.OpenConfig(t, sqldbtest.SQLite(t, set(first)))
			fill(t, old)
			d := take(t, old)
			db, err := restore(t.Context(), engine(t, set(first, second)), d)
			must(t, err)
			defer func() { _ = db.Close() }()
			var colour string
			must(t, db.Reader().QueryRowContext(t.Context(), "SELECT colour FROM note WHERE id = 'b'").Scan(&colour))
			if colour != "green" {
				t.Errorf("the migration did not see the restored row: it is %s", colour)
			}
			if v := take(t, db).versions["notes"]; v != 2 {
				t.Errorf("the schema is at %d", v)
			}
		})
	}
}

func TestNewerBackupIsRefused(t *testing.T) {
	newer := sqldbtest.OpenConfig(t, sqldbtest.SQLite(t, set(first, second)))
	d := take(t, newer)
	for name, engine := range engines(t) {
		t.Run(name, func(t *testing.T) {
			c := engine(t, set(first))
			_, err := restore(t.Context(), c, d)
			if !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), "newer version of redoubt") {
				t.Fatalf("got %v", err)
			}
			fill(t, sqldbtest.OpenConfig(t, c)) // as new: nothing was left
		})
	}
	unknown := dump{versions: map[string]int64{"notes": 1, "ghosts": 1}}
	if _, err := restore(t.Context(), sqldbtest.SQLite(t, set(first)), unknown); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("a set that nobody knows: %v", err)
	}
}

// What a restore leaves that did not come to its end, no service opens, and the next restore clears away.
func TestHalfRestoredStoreIsRefused(t *testing.T) {
	source := sqldbtest.OpenConfig(t, sqldbtest.SQLite(t, set(first)))
	fill(t, source)
	whole := take(t, source)
	cut := whole
	cut.rows = map[string][]batch{"note": whole.rows["note"], "a_tag": {{2, []byte{isInt}}}}
	for name, engine := range engines(t) {
		t.Run(name, func(t *testing.T) {
			for _, d := range []dump{cut, whole} { // one that fails, one that is not unmarked
				c := engine(t, set(first))
				db, err := restore(t.Context(), c, d)
				if err == nil {
					must(t, db.Close())
				}
				if _, err := sqldb.Open(t.Context(), c); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), "half restored") {
					t.Fatalf("a service opens it: %v", err)
				}
				if name == "sqlite" {
					if _, err := restore(t.Context(), c, whole); !fault.Is(err, codes.FailedPrecondition) {
						t.Errorf("over a file: %v", err)
					}
					continue
				}
				db, err = restore(t.Context(), c, whole)
				must(t, err)
				must(t, db.Unmark(t.Context()))
				must(t, db.Close())
				if got := take(t, sqldbtest.OpenConfig(t, c)); !bytes.Equal(got.bytes("note"), whole.bytes("note")) {
					t.Error("the second restore has other rows")
				}
			}
			c := engine(t, set(first))
			fill(t, sqldbtest.OpenConfig(t, c))
			if _, err := restore(t.Context(), c, whole); !fault.Is(err, codes.FailedPrecondition) {
				t.Errorf("over a store in use: %v", err)
			}
		})
	}
}

const isInt = 1

// Whatever packed rows say, they are refused or stored, and nothing else happens.
func TestDamagedRowsAreRefused(t *testing.T) {
	table := sqldump.Table{Name: "note", Columns: []sqldump.Column{{Name: "id", Type: sqldump.Text}, {Name: "n", Type: sqldump.BigInt}, {Name: "b", Type: sqldump.Bytea}}, Key: []string{"id"}}
	good := []byte{2, 1, 'a', 1, 4, 3, 2, 7, 7}
	must(t, sqldump.Count(table, 1, good))
	refused := 0
	check := func(rows int, packed []byte) {
		if err := sqldump.Count(table, rows, packed); fault.Is(err, codes.DataLoss) {
			refused++
		} else if err != nil {
			t.Errorf("%v: %v", packed, err)
		}
	}
	for n := range good {
		check(1, good[:n])
	}
	check(2, good)
	check(0, good)
	check(1, append(bytes.Clone(good), 0))
	check(1, []byte{2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 'a', 1, 4, 3, 0})
	check(1, []byte{3, 1, 'a', 1, 4, 3, 0})
	if want := len(good) + 5; refused != want {
		t.Errorf("%d of %d refused", refused, want)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		b := make([]byte, random.IntN(40))
		for i := range b {
			b[i] = byte(random.UintN(6))
		}
		check(random.IntN(3), b)
	}
}

// While a snapshot is held, changes wait and then go on; the snapshot does not see them.
func TestFreezeIsOneMoment(t *testing.T) {
	for name, engine := range engines(t) {
		t.Run(name, func(t *testing.T) {
			c := engine(t, set(first))
			db := sqldbtest.OpenConfig(t, c)
			writer := db
			if name == "postgres" { // another replica
				writer = sqldbtest.OpenConfig(t, c)
			}
			insert := func(id string) error {
				return writer.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
					_, err := tx.ExecContext(ctx, "INSERT INTO note (id) VALUES ($1)", id)
					return err
				})
			}
			must(t, insert("before"))
			s, err := db.Freeze(t.Context(), time.Minute)
			must(t, err)
			defer s.Close()
			done := make(chan error, 1)
			go func() { done <- insert("after") }()
			select {
			case err := <-done:
				t.Fatalf("a change went on while the writer was held: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			if _, err := writer.Freeze(t.Context(), 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a second one: %v", err)
			}
			s.Release()
			must(t, <-done)
			must(t, db.Scrub(t.Context())) // does not wait for the snapshot
			var n int
			must(t, s.Tx().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM note").Scan(&n))
			if n != 1 {
				t.Errorf("the snapshot has %d rows", n)
			}
			if _, err := s.Tx().ExecContext(t.Context(), "DELETE FROM note"); err == nil {
				t.Error("the snapshot takes changes")
			}
			s.Close()
			if err := db.Read(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				return tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM note").Scan(&n)
			}); err != nil || n != 2 {
				t.Errorf("afterwards there are %d rows, %v", n, err)
			}
			ended, cancel := context.WithCancel(t.Context())
			s, err = db.Freeze(ended, time.Minute)
			must(t, err)
			cancel()
			s.Close()
			must(t, insert("in the end"))
		})
	}
}
