package fence

import (
	"context"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

var effects = sqldb.MigrationSet{Name: "effects", FS: fstest.MapFS{"00001_effects.sql": {Data: []byte("-- +goose Up\nCREATE TABLE effects (id BIGINT NOT NULL PRIMARY KEY);\n")}}}

// onView is a context whose commits were decided on a view.
type onView struct{}

// strongly is a member whose effects are commits of a PostgreSQL database, with another connection to it, of who revokes.
func strongly(t *testing.T, o off) (m *person, p *proxy, db, other *sqldb.DB) {
	t.Helper()
	c := sqldbtest.Postgres(t, effects)
	sqldbtest.Lives(t)
	other = sqldbtest.OpenConfig(t, c)
	c.Finish = func(ctx context.Context, commit func() error) error {
		if v, ok := ctx.Value(onView{}).(*View); ok {
			return m.Finish(v, commit)
		}
		return commit()
	}
	db = sqldbtest.OpenConfig(t, c)
	p = newProxy(t)
	m = join(t, "m", client(t, p), with(o), rowsOf(db))
	return m, p, db, other
}

func rowsOf(db *sqldb.DB) func(*Fence) {
	return func(f *Fence) { f.cfg.Class, f.cfg.Rows, f.cfg.Place = SQLFence, db.Lives(), db.Lives().Place() }
}

// write is an effect; it may stand still for ever, as far as the server knows.
func write(ctx context.Context, db *sqldb.DB, id int) error {
	return db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if _, err := tx.ExecContext(ctx, "SET LOCAL idle_in_transaction_session_timeout = 0"); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO effects (id) VALUES ($1)", id)
		return err
	})
}

func landed(t *testing.T, db *sqldb.DB, id int) (yes bool) {
	t.Helper()
	if err := db.Reader().QueryRowContext(t.Context(), "SELECT EXISTS (SELECT FROM effects WHERE id = $1)", id).Scan(&yes); err != nil {
		t.Fatal(err)
	}
	return yes
}

// late has a member stand still between the check and the COMMIT, with no idle timeout, until its lease is over and a change was waited for. It
// reports whether the COMMIT landed after the return. vanished is whether the key was gone before the change.
func late(t *testing.T, o off, vanished bool) (broken bool) {
	m, p, db, other := strongly(t, o)
	checked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.hook = func(point string) {
		if point == "finishing" {
			once.Do(func() { close(checked); <-goOn })
		}
	}
	v := m.serves()
	done := make(chan error, 1)
	go func() { done <- write(context.WithValue(t.Context(), onView{}, v), db, 1) }()
	<-checked
	p.cut()
	r := revoker(t, rowsOf(other), with(o))
	for vanished {
		resp, err := r.cfg.Client.Get(t.Context(), v.life.key)
		if err != nil {
			t.Fatal(err)
		}
		if vanished = len(resp.Kvs) > 0; vanished {
			time.Sleep(50 * time.Millisecond)
		}
	}
	w := revoke(r, 1)
	returned := w.returned(7 * time.Second)
	close(goOn)
	if err := <-done; err != nil {
		t.Logf("the COMMIT: %v", err)
	}
	broken = returned && landed(t, other, 1)
	if o == (off{}) {
		if !w.returned(20 * time.Second) {
			t.Errorf("the transaction is over: %+v, %v", w.r, w.err)
		}
		// Nothing is committed in that life any more, whatever it is decided on.
		if err := write(t.Context(), db, 2); fault.Code(err) != codes.Unavailable || fault.ReasonOf(fault.Describe(err)) != faultv1.Reason_FENCE_LOST || landed(t, other, 2) {
			t.Errorf("a transaction without its row: %v", err)
		}
		p.release()
		m.Delivered("a", 1)
		for m.serves().life == v.life {
			time.Sleep(10 * time.Millisecond)
		}
		if err := write(context.WithValue(t.Context(), onView{}, m.serves()), db, 3); err != nil || !landed(t, other, 3) {
			t.Errorf("in its new life: %v", err)
		}
	}
	return broken
}

// r4 in the strong form: a process that stands still between its check and its COMMIT, and no clock that ends its transaction.
func TestSQLFenceLateCommit(t *testing.T) {
	t.Parallel()
	both(t, off{row: true}, func(t *testing.T, o off) bool { return late(t, o, false) })
}

// r13: the same where the key was gone before the change, so that only the mark tells of it.
func TestSQLFenceLateCommitOfTheVanished(t *testing.T) {
	t.Parallel()
	both(t, off{mark: true}, func(t *testing.T, o off) bool { return late(t, o, true) })
}
