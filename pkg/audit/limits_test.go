package audit_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func TestRecordFailsClosed(t *testing.T) {
	unavailable := func(t *testing.T, err error, within time.Duration, start time.Time) {
		t.Helper()
		if fault.Code(err) != codes.Unavailable || fault.ReasonOf(err) != faultv1.Reason_AUDIT_UNAVAILABLE {
			t.Errorf("got %v, want AUDIT_UNAVAILABLE", err)
		}
		if took := time.Since(start); took > within {
			t.Errorf("it took %v, goal %v", took, within)
		}
	}
	t.Run("error", func(t *testing.T) { // goal 20: at most 50 ms
		t.Parallel()
		config := sqldbtest.SQLite(t, sets()...)
		var fail atomic.Bool
		config.Finish = func(_ context.Context, commit func() error) error {
			if fail.Load() {
				return errors.New("no commit")
			}
			return commit()
		}
		db := sqldbtest.OpenConfig(t, config)
		o := newOutbox(t, db, newSeal(t))
		fail.Store(true)
		start := time.Now()
		unavailable(t, o.Record(t.Context(), event("r")), 50*time.Millisecond, start)
		fail.Store(false)
		if err := o.Record(t.Context(), event("r")); err != nil {
			t.Errorf("after the storage is well again: %v", err)
		}
		r := newReceiver()
		relayUntil(t, o, r, 1)
	})
	t.Run("hang", func(t *testing.T) { // goal 20: 2 s, and not for ever
		t.Parallel()
		config := sqldbtest.SQLite(t, sets()...)
		var hang atomic.Bool
		release := make(chan struct{})
		config.Finish = func(_ context.Context, commit func() error) error {
			if hang.Load() {
				<-release
			}
			return commit()
		}
		db := sqldbtest.OpenConfig(t, config)
		o := newOutbox(t, db, newSeal(t))
		hang.Store(true)
		start := time.Now()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { unavailable(t, o.Record(t.Context(), event("r")), audit.Deadline+500*time.Millisecond, start) })
		}
		wg.Wait()
		hang.Store(false)
		close(release)
		if err := o.Record(t.Context(), event("r")); err != nil {
			t.Errorf("after the storage is well again: %v", err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		t.Parallel()
		db := sqldbtest.Open(t, sets()...)
		o := newOutbox(t, db, newSeal(t))
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		unavailable(t, o.Record(t.Context(), event("r")), 50*time.Millisecond, time.Now())
	})
	t.Run("in the transaction of a change", func(t *testing.T) {
		t.Parallel()
		db := sqldbtest.Open(t, sets()...)
		o := newOutbox(t, db, newSeal(t))
		exec := func(text string) error {
			return db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				_, err := tx.ExecContext(ctx, text)
				return err
			})
		}
		if err := exec("CREATE TABLE thing (id TEXT)"); err != nil {
			t.Fatal(err)
		}
		if err := exec("ALTER TABLE outbox RENAME TO gone"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if _, err := tx.ExecContext(ctx, "INSERT INTO thing (id) VALUES ('x')"); err != nil {
				return err
			}
			return o.Append(ctx, tx, event("r"))
		})
		unavailable(t, err, 50*time.Millisecond, start)
		var n int
		if err := db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM thing").Scan(&n); err != nil || n != 0 {
			t.Errorf("the change was made without its record (%v)", err)
		}
	})
}

func TestRecordOutlivesItsCaller(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	o := newOutbox(t, db, newSeal(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.Record(ctx, event("r")); err != nil {
		t.Errorf("got %v", err)
	}
	if depth, _ := o.Depth(t.Context()); depth != 1 {
		t.Error("no record of a call whose caller has gone")
	}
}

func TestLargeEventsLoseTheirDetails(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	o := newOutbox(t, db, newSeal(t))
	ev := event("r")
	ev.Details = map[string]string{"much": strings.Repeat("x", audit.MaxEventBytes)}
	if err := o.Record(t.Context(), ev); err != nil {
		t.Fatal(err)
	}
	if len(ev.Details["much"]) != audit.MaxEventBytes {
		t.Error("the caller's event was changed")
	}
	ev = event(strings.Repeat("x", audit.MaxEventBytes))
	if err := o.Record(t.Context(), ev); fault.ReasonOf(err) != faultv1.Reason_AUDIT_UNAVAILABLE {
		t.Errorf("an event that cannot be kept: %v", err)
	}
	r := newReceiver()
	relayUntil(t, o, r, 1)
	if r.events[0].GetDetails()["much"] != "" || r.events[0].GetRequestId() != "r" {
		t.Errorf("got %v", r.events[0])
	}
}

func TestBatchesAreBounded(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	o := newOutbox(t, db, newSeal(t))
	const n = 150
	err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		for range n {
			ev := event("r")
			ev.Details = map[string]string{"much": strings.Repeat("x", audit.MaxEventBytes-1024)}
			if err := o.Append(ctx, tx, ev); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := newReceiver()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_ = o.Relay(ctx, func(ctx context.Context, events []*audit.Event) (int64, error) {
		size := 0
		for _, ev := range events {
			size += proto.Size(ev)
		}
		if size > audit.MaxBatchBytes {
			t.Errorf("a batch of %d bytes", size)
		}
		stored, err := r.deliver(ctx, events)
		if stored == n {
			cancel()
		}
		return stored, err
	})
	if r.len() != n {
		t.Errorf("%d events", r.len())
	}
}

// Of two instances the one that claimed last relays: the other one, which believes that it leads, delivers doubles and removes nothing.
