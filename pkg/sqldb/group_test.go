package sqldb_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func TestGroupSharesOneCommitAndKeepsErrorsApart(t *testing.T) {
	sqldbtest.RunConfig(t, sets(), func(t *testing.T, c sqldb.Config) {
		var commits atomic.Int64
		c.Finish = func(_ context.Context, commit func() error) error { commits.Add(1); return commit() }
		db := sqldbtest.OpenConfig(t, c)

		const callers = 60
		errs := make([]error, callers)
		panics := make([]any, callers)
		var queued, done sync.WaitGroup
		// While the writer is held all callers queue up; they are then one group.
		err := db.Write(t.Context(), func(context.Context, *sqldb.Tx) error {
			for i := range callers {
				queued.Add(1)
				done.Go(func() {
					defer func() { panics[i] = recover() }()
					signal := queuedContext{t.Context(), &queued, new(sync.Once)}
					errs[i] = db.WriteGrouped(signal, func(ctx context.Context, tx *sqldb.Tx) error {
						id := fmt.Sprint("n", i)
						if err := tx.Signal(ctx, id); err != nil { // more in all than one transaction may
							return err
						}
						switch i % 4 {
						case 1: // what it did before its error is undone
							_ = insert(ctx, tx, id)
							return fault.PermissionDenied("no")
						case 2: // the statement itself fails, which ends a transaction on PostgreSQL
							_ = insert(ctx, tx, id)
							return insert(ctx, tx, id)
						case 3:
							_ = insert(ctx, tx, id)
							panic(id)
						}
						return insert(ctx, tx, id)
					})
				})
			}
			queued.Wait()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		done.Wait()
		for i := range callers {
			want := [...]codes.Code{codes.OK, codes.PermissionDenied, codes.AlreadyExists, codes.OK}[i%4]
			if fault.Code(errs[i]) != want {
				t.Errorf("caller %d got %v, want %v", i, errs[i], want)
			}
			if (panics[i] != nil) != (i%4 == 3) {
				t.Errorf("caller %d: panic %v", i, panics[i])
			}
			if has(t, db, fmt.Sprint("n", i)) != (i%4 == 0) {
				t.Errorf("caller %d: stored is not what was answered", i)
			}
		}
		// The last caller may be seen before it stands in the queue, and then makes a second group.
		if n := commits.Load(); n < 2 || n > 4 {
			t.Errorf("%d commits for one write and %d grouped ones", n, callers)
		}
	})
}

// queuedContext tells when WriteGrouped waits: it asks for Done once it stands in the queue.
type queuedContext struct {
	context.Context
	queued *sync.WaitGroup
	once   *sync.Once
}

func (c queuedContext) Done() <-chan struct{} {
	c.once.Do(c.queued.Done)
	return c.Context.Done()
}

func TestGroupIsRefusedAsAWholeByFinish(t *testing.T) {
	c := sqldbtest.SQLite(t, sets()...)
	refuse := false
	c.Finish = func(ctx context.Context, commit func() error) error {
		if ctx.Value(callerKey{}) != nil {
			t.Error("Finish of a group saw the context of one caller")
		}
		if refuse {
			return fault.Unavailable("fenced")
		}
		return commit()
	}
	db := sqldbtest.OpenConfig(t, c)
	ctx := context.WithValue(t.Context(), callerKey{}, "alice")
	for _, refuse = range []bool{true, false} {
		err := db.WriteGrouped(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			if ctx.Value(callerKey{}) != "alice" {
				t.Error("the function lost the values of its caller's context")
			}
			return insert(ctx, tx, "a")
		})
		if (err != nil) != refuse || has(t, db, "a") == refuse {
			t.Errorf("refuse %v: got %v", refuse, err)
		}
	}
}

type callerKey struct{}

// The writer is asked for and handed over, and nobody is forgotten, however calls end.
func TestGroupUnderCancels(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	var stored, failed atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 25 {
				ctx, cancel := context.WithCancel(context.Background())
				if (i+j)%3 == 0 {
					go cancel()
				}
				err := db.WriteGrouped(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return insert(ctx, tx, fmt.Sprint(i, "-", j)) })
				cancel()
				if err == nil {
					stored.Add(1)
				} else {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	var n int64
	if err := db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM note").Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != stored.Load() {
		t.Errorf("%d rows, %d acknowledged, %d refused", n, stored.Load(), failed.Load())
	}
}
