package audit_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func sets() []sqldb.MigrationSet {
	return []sqldb.MigrationSet{envelope.Migrations(), audit.Migrations(), leader.Migrations()}
}

func newSeal(t testing.TB) *seal.Seal {
	t.Helper()
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newOutbox makes an outbox on db as a process that has just started would.
func newOutbox(t testing.TB, db *sqldb.DB, s *seal.Seal) *audit.Outbox {
	t.Helper()
	return newOutboxAt(t, db, s, nil)
}

func newOutboxAt(t testing.TB, db *sqldb.DB, s *seal.Seal, now func() time.Time) *audit.Outbox {
	t.Helper()
	keys, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "workspace"), DB: db})
	if err != nil {
		t.Fatal(err)
	}
	return newOutboxOf(t, db, keys, elected{}, now)
}

func newOutboxOf(t testing.TB, db *sqldb.DB, keys *envelope.Keyring, e leader.Election, now func() time.Time) *audit.Outbox {
	t.Helper()
	l, err := leader.New(leader.Config{DB: db, Election: e, Holder: "test"})
	if err != nil {
		t.Fatal(err)
	}
	o, err := audit.New(audit.Config{Service: "workspace", DB: db, Keys: keys, Leader: l, Now: now, FlushEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// elected is an election that everybody wins, as those do who were paused and do not know that they lost.
type elected struct{}

func (elected) Campaign(ctx context.Context, _ string) (leader.Seat, error) {
	return elected{}, ctx.Err()
}
func (elected) Origin() (uint64, int64)        { return 1, 1 }
func (elected) Held(ctx context.Context) error { return ctx.Err() }
func (elected) Lost() <-chan struct{}          { return nil }
func (elected) Resign()                        {}

// elections is elected once.
type elections struct {
	elected
	n     int
	again chan struct{} // closed when it campaigns for the second time
}

func (e *elections) Campaign(ctx context.Context, _ string) (leader.Seat, error) {
	if e.n++; e.n == 1 {
		return elected{}, nil
	}
	close(e.again)
	<-ctx.Done()
	return nil, ctx.Err()
}

func event(request string) *audit.Event {
	return &audit.Event{
		Method: "/redoubt.workspace.v1.WorkspaceService/CreateWorkspace", Action: "workspace/workspaces/write", Scope: "subscriptions/s",
		Principal: "usr_1", Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: "OK", RequestId: request,
		Details: map[string]string{"name": "canary-of-a-tenant"},
	}
}

// receiver stores what is delivered as telemetry does: without doubles, and without gaps.
type receiver struct {
	mu     sync.Mutex
	events []*audit.Event
	before func(n int) error // called with the number of the delivery, before it is stored
	after  func(n int) error // the same, when it is stored and the answer is on its way
	calls  int
	wake   chan struct{}
}

func newReceiver() *receiver { return &receiver{wake: make(chan struct{}, 1)} }

func (r *receiver) deliver(_ context.Context, events []*audit.Event) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.before != nil {
		if err := r.before(r.calls); err != nil {
			return 0, err
		}
	}
	if len(events) == 0 || len(events) > audit.MaxBatch {
		return 0, errors.New("a batch of no size that was promised")
	}
	for _, ev := range events {
		stored := int64(len(r.events))
		if ev.GetSeq() > stored+1 {
			return stored, errors.New("a gap")
		}
		if ev.GetSeq() <= stored {
			if !proto.Equal(r.events[ev.GetSeq()-1], ev) {
				return stored, errors.New("a double that is another event")
			}
			continue
		}
		r.events = append(r.events, ev)
	}
	if r.after != nil {
		if err := r.after(r.calls); err != nil {
			return 0, err
		}
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return int64(len(r.events)), nil
}

func (r *receiver) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// relayUntil relays until the receiver has n events and the outbox none.
func relayUntil(t *testing.T, o *audit.Outbox, r *receiver, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- o.Relay(ctx, r.deliver) }()
	for {
		depth, err := o.Depth(ctx)
		if err != nil {
			t.Fatalf("depth: %v; the receiver has %d of %d events", err, r.len(), n)
		}
		if r.len() >= n && depth == 0 {
			break
		}
		select {
		case <-r.wake:
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the receiver has %d of %d events", r.len(), n)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("relay ended with %v", err)
	}
	if r.len() != n {
		t.Fatalf("the receiver has %d events, want %d", r.len(), n)
	}
}

func TestEventsOfChangesArriveOnceInOrder(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		o := newOutbox(t, db, newSeal(t))
		for _, id := range []string{"one", "two", "three"} {
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return o.Append(ctx, tx, event(id)) })
			if err != nil {
				t.Fatal(err)
			}
		}
		undone := errors.New("the change was refused")
		err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			if err := o.Append(ctx, tx, event("undone")); err != nil {
				return err
			}
			return undone
		})
		if !errors.Is(err, undone) {
			t.Fatalf("got %v", err)
		}
		own := event("four")
		if err := o.Record(t.Context(), own); err != nil {
			t.Fatal(err)
		}
		if own.GetSeq() != 0 || own.GetUid() != "" {
			t.Errorf("the caller's event was changed: %v", own)
		}
		r := newReceiver()
		relayUntil(t, o, r, 4)
		for i, want := range []string{"one", "two", "three", "four"} {
			ev := r.events[i]
			if ev.GetRequestId() != want || ev.GetSeq() != int64(i+1) || ev.GetService() != "workspace" || !resource.IsUID(ev.GetUid()) ||
				ev.GetTime() == nil || ev.GetCount() != 1 || ev.GetDetails()["name"] != "canary-of-a-tenant" {
				t.Errorf("event %d: %v", i+1, ev)
			}
		}
	})
}

func TestWhatIsSetStays(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	o := newOutbox(t, db, newSeal(t))
	ev := event("r")
	ev.Uid, ev.Count, ev.Time = "evt_mine", 7, timestamppb.New(time.Unix(1, 2000))
	ev.Service, ev.Seq = "keyvault", 99 // a service cannot write another's events, nor choose its numbers
	if err := o.Record(t.Context(), ev); err != nil {
		t.Fatal(err)
	}
	r := newReceiver()
	relayUntil(t, o, r, 1)
	got := r.events[0]
	if got.GetUid() != "evt_mine" || got.GetCount() != 7 || !got.GetTime().AsTime().Equal(time.Unix(1, 2000)) || got.GetService() != "workspace" || got.GetSeq() != 1 {
		t.Errorf("got %v", got)
	}
}

// TestDeliveryIsAtLeastOnce cuts deliveries short at each place and starts anew with a new process's outbox.
func TestDeliveryIsAtLeastOnce(t *testing.T) {
	const n = 1203
	cut := errors.New("cut")
	cases := []struct {
		name          string
		before, after func(call int) error
	}{
		{"refused before it was stored", func(call int) error {
			if call%3 != 0 {
				return cut
			}
			return nil
		}, nil},
		{"stored, and the answer was lost", nil, func(call int) error {
			if call%2 == 1 {
				return cut
			}
			return nil
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSeal(t)
			config := sqldbtest.SQLite(t, sets()...)
			db := sqldbtest.OpenConfig(t, config)
			o := newOutbox(t, db, s)
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				for range n {
					if err := o.Append(ctx, tx, event("r")); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			r := newReceiver()
			r.before, r.after = c.before, c.after
			for i := 0; r.len() < n; i++ { // each process dies with its first failed delivery
				if i == 50 {
					t.Fatalf("no progress: %d events", r.len())
				}
				ctx, kill := context.WithCancel(t.Context())
				_ = newOutbox(t, db, s).Relay(ctx, func(ctx context.Context, events []*audit.Event) (int64, error) {
					stored, err := r.deliver(ctx, events)
					if err != nil || r.len() == n {
						kill()
					}
					return stored, err
				})
				kill()
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = sqldbtest.OpenConfig(t, config)
			}
			r.before, r.after = nil, nil
			relayUntil(t, newOutbox(t, db, s), r, n)
		})
	}
}

// TestNothingIsRemovedThatWasNotSent: whatever a receiver says, the next delivery begins where the last one was stored.
func TestNothingIsRemovedThatWasNotSent(t *testing.T) {
	for _, c := range []struct {
		name   string
		stored int64
		next   []int64
	}{
		{"a receiver that has stored nothing", 0, []int64{1, 2, 3, 4}},
		{"one that goes back", -5, []int64{1, 2, 3, 4}},
		{"one that has stored a part", 2, []int64{3, 4}},
		{"one that has stored all", 3, []int64{4}},
		{"one that claims more than it was sent", 1 << 40, []int64{4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := sqldbtest.Open(t, sets()...)
			o := newOutbox(t, db, newSeal(t))
			for range 3 {
				if err := o.Record(t.Context(), event("r")); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			calls := 0
			var next []int64
			_ = o.Relay(ctx, func(_ context.Context, events []*audit.Event) (int64, error) {
				if calls++; calls == 1 {
					return c.stored, o.Record(ctx, event("while the others were on their way"))
				}
				for _, ev := range events {
					next = append(next, ev.GetSeq())
				}
				cancel()
				return 0, nil
			})
			if !slices.Equal(next, c.next) {
				t.Errorf("then came %v, want %v", next, c.next)
			}
		})
	}
}

// TestNoGapsUnderWriters has many writers of which some undo their change, while the relay runs.
func TestNoGapsUnderWriters(t *testing.T) {
	const writers, each = 50, 12
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		o := newOutbox(t, db, newSeal(t))
		r := newReceiver()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = o.Relay(ctx, r.deliver)
		}()
		var kept atomic.Int64
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					undo := (w*31+i*17)%5 == 0
					err := db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
						if err := o.Append(ctx, tx, event("r")); err != nil {
							return err
						}
						if undo {
							return context.Canceled
						}
						return nil
					})
					if (err != nil) != undo {
						t.Errorf("got %v", err)
					}
					if !undo {
						kept.Add(1)
					}
				}
			})
		}
		wg.Wait()
		stop()
		<-ended
		relayUntil(t, o, r, int(kept.Load())) // the receiver refuses gaps
		for i, ev := range r.events {
			if ev.GetSeq() != int64(i+1) {
				t.Fatalf("event %d has number %d", i+1, ev.GetSeq())
			}
		}
	})
}

// TestSealedAndBound: the row says nothing of the event, and opens nowhere else (D2, goal 22).
func TestSealedAndBound(t *testing.T) {
	for _, c := range []struct {
		name, change string
		arrive       int
	}{
		{"moved to another number", "UPDATE outbox SET seq = seq + 10", 0},
		{"under another uid", "UPDATE outbox SET event_uid = 'evt_other' WHERE seq = 1", 0},
		{"a bit flipped", "UPDATE outbox SET sealed = substr(sealed, 1, 40) || CASE substr(sealed, 41, 1) WHEN x'00' THEN x'01' ELSE x'00' END || substr(sealed, 42) WHERE seq = 1", 0},
		{"swapped", "UPDATE outbox SET sealed = (SELECT o.sealed FROM outbox o WHERE o.seq = 3 - outbox.seq) WHERE seq < 3", 0},
		{"one removed", "DELETE FROM outbox WHERE seq = 2", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := sqldbtest.Open(t, sets()...)
			o := newOutbox(t, db, newSeal(t))
			for range 3 {
				if err := o.Record(t.Context(), event("r")); err != nil {
					t.Fatal(err)
				}
			}
			var sealed string
			if err := db.Reader().QueryRowContext(t.Context(), "SELECT sealed FROM outbox WHERE seq = 1").Scan(&sealed); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(sealed, "canary") || strings.Contains(sealed, "usr_1") {
				t.Fatal("the row holds the event in clear")
			}
			err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				_, err := tx.ExecContext(ctx, c.change)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			r := newReceiver()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			_ = o.Relay(ctx, r.deliver)
			if r.len() > c.arrive {
				t.Errorf("%d events were delivered, want %d at most", r.len(), c.arrive)
			}
			if depth, _ := o.Depth(t.Context()); depth == 0 {
				t.Error("everything left the outbox")
			}
		})
	}
}

func TestARelayOfYesterdayRemovesNothing(t *testing.T) {
	c := sqldbtest.Postgres(t, sets()...)
	s := newSeal(t)
	da, db := sqldbtest.OpenConfig(t, c), sqldbtest.OpenConfig(t, c)
	keys, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "workspace"), DB: da})
	if err != nil {
		t.Fatal(err)
	}
	over := &elections{again: make(chan struct{})}
	a, b := newOutboxOf(t, da, keys, over, nil), newOutbox(t, db, s)
	for range 3 {
		if err := a.Record(t.Context(), event("r")); err != nil {
			t.Fatal(err)
		}
	}
	old, stopOld := context.WithCancel(t.Context())
	defer stopOld()
	paused, on := make(chan struct{}), make(chan struct{})
	go func() {
		_ = a.Relay(old, func(_ context.Context, events []*audit.Event) (int64, error) {
			close(paused) // it has read the events, and is stopped while telemetry takes them
			<-on
			return events[len(events)-1].GetSeq(), nil
		})
	}()
	<-paused
	held, stop := context.WithCancel(t.Context())
	var once sync.Once
	leads := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = b.Relay(held, func(context.Context, []*audit.Event) (int64, error) {
			once.Do(func() { close(leads) })
			return 0, errors.New("the receiver is away")
		})
	}()
	<-leads
	close(on)
	<-over.again // its leadership has ended
	if depth, err := b.Depth(t.Context()); err != nil || depth != 3 {
		t.Errorf("%d events wait, %v: the relay of yesterday has removed some", depth, err)
	}
	stop()
	<-ended
	relayUntil(t, b, newReceiver(), 3)
}
