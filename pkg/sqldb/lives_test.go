package sqldb_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// deletes reports whether a row can be deleted within a short while.
func deletes(t *testing.T, l *sqldb.Lives, id string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	err := l.Delete(ctx, id)
	if err != nil && ctx.Err() == nil {
		t.Errorf("deleting a row: %v", err)
	}
	if err != nil {
		abandoned(t)
	}
	return err == nil
}

// abandoned waits until the server has heard that nobody waits for a deletion any more: until then it would still be done.
func abandoned(t *testing.T) {
	t.Helper()
	admin, err := sql.Open("pgx", os.Getenv(sqldbtest.Env))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var n int
		const waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Lock' AND query LIKE '%redoubt_fence.bury%' AND pid <> pg_backend_pid()"
		if err := admin.QueryRowContext(t.Context(), waiting).Scan(&n); err != nil || time.Now().After(end) {
			t.Fatalf("%d deletions wait still: %v", n, err)
		}
		if n == 0 {
			return
		}
	}
}

func nothing(context.Context, *sqldb.Tx) error { return nil }

// A transaction holds the row of its life from its begin to its end, and without the row nothing is committed.
func TestLives(t *testing.T) {
	c := sqldbtest.Postgres(t)
	sqldbtest.Lives(t)
	finish := func(commit func() error) error { return commit() }
	c.Finish = func(_ context.Context, commit func() error) error { return finish(commit) }
	db, other := sqldbtest.OpenConfig(t, c), sqldbtest.OpenConfig(t, c).Lives()
	l := db.Lives()
	first, second, third := rand.Text(), rand.Text(), rand.Text()
	if l == nil || other == nil || l.Place() != other.Place() || l.Place() == "" {
		t.Fatal("there are none, or two places of one database")
	}
	if err := db.Write(t.Context(), nothing); err != nil {
		t.Fatalf("before the first life: %v", err)
	}
	insert := func(id string) <-chan struct{} {
		t.Helper()
		gone, err := l.Insert(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return gone
	}
	gone := insert(first)
	if err := db.Write(t.Context(), func(context.Context, *sqldb.Tx) error {
		if deletes(t, other, first) {
			t.Error("the row was deleted under an open transaction")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.WriteGrouped(t.Context(), func(context.Context, *sqldb.Tx) error {
		if deletes(t, other, first) {
			t.Error("the row was deleted under an open group")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !deletes(t, other, first) {
		t.Fatal("nothing is open")
	}
	select {
	case <-gone:
		t.Error("told before a transaction has looked")
	default:
	}
	if err := db.Write(t.Context(), nothing); fault.Code(err) != codes.Unavailable {
		t.Errorf("without its row: %v", err)
	}
	select {
	case <-gone:
	case <-time.After(time.Second):
		t.Error("nobody was told that the row is gone")
	}

	// The life begins after the transaction: it holds its row when it is let pass.
	finish = func(commit func() error) error {
		if deletes(t, other, second) {
			t.Error("the row of the later life was deleted between the check and the commit")
		}
		return commit()
	}
	l.Leave()
	if err := db.Write(t.Context(), func(context.Context, *sqldb.Tx) error { insert(second); return nil }); err != nil {
		t.Error(err)
	}
	// It ends between the check and the commit, or another one begins there: the row that is held says nothing then.
	for name, change := range map[string]func(){"another life": func() { insert(third) }, "none": l.Leave} {
		finish = func(commit func() error) error { change(); return commit() }
		if err := db.Write(t.Context(), nothing); fault.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What stands there longer than any life needs to register, and has no name, is swept.
func TestLivesAreSwept(t *testing.T) {
	c := sqldbtest.Postgres(t)
	sqldbtest.Lives(t)
	l := sqldbtest.OpenConfig(t, c).Lives()
	admin, err := sql.Open("pgx", os.Getenv(sqldbtest.Env))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	young, old, named := rand.Text(), rand.Text(), rand.Text()
	for _, id := range []string{young, old, named} {
		if _, err := l.Insert(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.ExecContext(t.Context(), "UPDATE redoubt_fence.lives SET born = born - INTERVAL '61 minutes' WHERE life IN ($1, $2)", old, named); err != nil {
		t.Fatal(err)
	}
	if err := l.Sweep(t.Context(), []string{named}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{young: true, old: false, named: true} {
		var there bool
		if err := admin.QueryRowContext(t.Context(), "SELECT EXISTS (SELECT FROM redoubt_fence.lives WHERE life = $1)", id).Scan(&there); err != nil || there != want {
			t.Errorf("there: %v, %v", there, err)
		}
	}
}

// A service's role may do four things with rows, and no more: it can hold none but its own, and read and change nothing.
func TestRightsOnLives(t *testing.T) {
	c := sqldbtest.Postgres(t)
	admin, err := sql.Open("pgx", os.Getenv(sqldbtest.Env))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	must := func(query string) {
		t.Helper()
		if _, err := admin.ExecContext(context.WithoutCancel(t.Context()), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	suffix := strings.ToLower(rand.Text())
	one, two, none := "lives_one_"+suffix, "lives_two_"+suffix, "lives_none_"+suffix
	open := make(map[string]*sql.DB)
	configs := make(map[string]sqldb.Config)
	for _, role := range []string{one, two, none} {
		must("CREATE ROLE " + role + " LOGIN PASSWORD 'lives'")
		must("CREATE SCHEMA " + role + " AUTHORIZATION " + role)
		defer must("DROP ROLE " + role)
		defer must("DROP OWNED BY " + role + " CASCADE")
		u, err := url.Parse(os.Getenv(sqldbtest.Env))
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(role, "lives")
		if open[role], err = sql.Open("pgx", u.String()); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = open[role].Close() }()
		mine := c
		mine.DSN, mine.Schema = redact.FromString(u.String()), role
		configs[role] = mine
	}
	sqldbtest.Lives(t, one, two)
	db, err := sqldb.Open(t.Context(), configs[none])
	if err != nil {
		t.Fatal(err)
	}
	if db.Lives() != nil {
		t.Error("a role that was granted nothing has lives")
	}
	_ = db.Close()
	for role, id := range map[string]string{one: "one" + suffix, two: "two" + suffix} {
		db, err := sqldb.Open(t.Context(), configs[role])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if db.Lives() == nil {
			t.Fatal("a role that was granted them has no lives")
		}
		if _, err := db.Lives().Insert(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := db.Write(t.Context(), nothing); err != nil {
			t.Errorf("with its row: %v", err)
		}
	}
	held := func(role, id string) (yes bool) {
		t.Helper()
		if err := open[role].QueryRowContext(t.Context(), "SELECT redoubt_fence.hold($1)", id).Scan(&yes); err != nil {
			t.Error(err)
		}
		return yes
	}
	if !held(one, "one"+suffix) || held(one, "two"+suffix) {
		t.Error("a role holds its own row and nobody else's")
	}
	for _, query := range []string{
		"SELECT * FROM redoubt_fence.lives", "SELECT FROM redoubt_fence.lives FOR KEY SHARE", "INSERT INTO redoubt_fence.lives (life, owner) VALUES ('x', '" + two + "')",
		"UPDATE redoubt_fence.lives SET owner = '" + one + "'", "DELETE FROM redoubt_fence.lives", "TRUNCATE redoubt_fence.lives",
		"CREATE TABLE redoubt_fence.more (id BIGINT)", "DROP FUNCTION redoubt_fence.hold(TEXT)", "SET ROLE redoubt_fence",
		"CREATE OR REPLACE FUNCTION redoubt_fence.hold(TEXT) RETURNS BOOLEAN LANGUAGE sql AS 'SELECT true'",
	} {
		if _, err := open[one].ExecContext(t.Context(), query); err == nil || !strings.Contains(err.Error(), "42501") && !strings.Contains(err.Error(), "must be owner") {
			t.Errorf("%s: %v", query, err)
		}
	}
	for _, query := range []string{"SELECT redoubt_fence.hold('x')", "SELECT redoubt_fence.bury('x')", "SELECT redoubt_fence.enter('x')"} {
		if _, err := open[none].ExecContext(t.Context(), query); err == nil || !strings.Contains(err.Error(), "42501") {
			t.Errorf("a stranger: %s: %v", query, err)
		}
	}
	// Names that a caller puts in the way are not those that the functions call.
	if _, err := open[one].ExecContext(t.Context(), `GRANT USAGE ON SCHEMA `+one+` TO PUBLIC`); err != nil {
		t.Fatal(err)
	}
	if _, err := open[one].ExecContext(t.Context(), `CREATE FUNCTION `+one+`.always(TEXT, TEXT) RETURNS BOOLEAN LANGUAGE sql AS 'SELECT true'`); err != nil {
		t.Fatal(err)
	}
	if _, err := open[one].ExecContext(t.Context(), `CREATE OPERATOR `+one+`.= (LEFTARG = TEXT, RIGHTARG = TEXT, FUNCTION = `+one+`.always)`); err != nil {
		t.Fatal(err)
	}
	conn, err := open[one].Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.ExecContext(t.Context(), "SET search_path = "+one+", pg_catalog"); err != nil {
		t.Fatal(err)
	}
	var yes bool
	if err := conn.QueryRowContext(t.Context(), "SELECT redoubt_fence.hold('nobody')").Scan(&yes); err != nil || yes {
		t.Errorf("an operator of the caller's decided: %v, %v", yes, err)
	}
	// Anybody of the mesh takes away what is gone.
	if _, err := open[one].ExecContext(t.Context(), "SELECT redoubt_fence.bury($1)", "two"+suffix); err != nil || held(two, "two"+suffix) {
		t.Errorf("bury: %v", err)
	}
}

// What the row costs a write transaction that changes one row of another table: medians, each beside the other, and bytes of write-ahead log.
func BenchmarkWriteWithItsRow(b *testing.B) {
	counts := sqldb.MigrationSet{Name: "counts", FS: fstest.MapFS{"00001_counts.sql": {Data: []byte("-- +goose Up\nCREATE TABLE counts (id BIGINT NOT NULL PRIMARY KEY, n BIGINT NOT NULL);\nINSERT INTO counts (id, n) VALUES (1, 0);\n")}}}
	sqldbtest.Lives(b)
	withRow := sqldbtest.OpenConfig(b, sqldbtest.Postgres(b, counts))
	if _, err := withRow.Lives().Insert(b.Context(), rand.Text()); err != nil {
		b.Fatal(err)
	}
	dbs := []*sqldb.DB{sqldbtest.OpenConfig(b, sqldbtest.Postgres(b, counts)), withRow}
	written := func() (at int64) {
		if err := withRow.Reader().QueryRowContext(b.Context(), "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").Scan(&at); err != nil {
			b.Fatal(err)
		}
		return at
	}
	took, wal := make([][]time.Duration, 2), make([]int64, 2)
	for b.Loop() {
		for i, db := range dbs {
			before, begin := written(), time.Now()
			if err := db.Write(b.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				_, err := tx.ExecContext(ctx, "UPDATE counts SET n = n + 1 WHERE id = $1", 1)
				return err
			}); err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], time.Since(begin))
			wal[i] += written() - before
		}
	}
	for i, name := range []string{"without", "with"} {
		slices.Sort(took[i])
		b.ReportMetric(float64(took[i][len(took[i])/2].Microseconds()), "µs-"+name)
		b.ReportMetric(float64(wal[i])/float64(len(took[i])), "wal-B-"+name)
	}
}
