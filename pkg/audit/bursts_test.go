package audit_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// burstLab is a database on which outboxes of several processes are, with one clock.
type burstLab struct {
	t     *testing.T
	db    *sqldb.DB
	seal  *seal.Seal
	clock atomic.Int64
	n     atomic.Int64
}

func newBurstLab(t *testing.T, db *sqldb.DB) *burstLab {
	l := &burstLab{t: t, db: db, seal: newSeal(t)}
	l.clock.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return l
}

func (l *burstLab) now() time.Time { return time.Unix(0, l.clock.Load()) }

func (l *burstLab) pass(d time.Duration) { l.clock.Add(int64(d)) }

// process is one that has just started.
func (l *burstLab) process() *audit.Outbox { return newOutboxAt(l.t, l.db, l.seal, l.now) }

// call is one of a principal's from an address, with what is its own.
func (l *burstLab) call(who, from string) *audit.Event {
	n := l.n.Add(1)
	digest := sha256.Sum256([]byte(fmt.Sprint("tok_", n)))
	return &audit.Event{
		Method: "/token", Principal: who, Scope: "/", Code: "OK", Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Count: 1, Digest: digest[:],
		Time: timestamppb.New(l.now()), RequestId: fmt.Sprint("request-", n), TraceId: fmt.Sprint("trace-", n), Uid: fmt.Sprint("evt_", n), Address: from,
		Details: map[string]string{"credential": "of " + who, "client_id": who},
	}
}

func (l *burstLab) record(o *audit.Outbox, ev *audit.Event) *audit.Event {
	l.t.Helper()
	if err := o.RecordBurst(l.t.Context(), ev, audit.Ground{}); err != nil {
		l.t.Fatal(err)
	}
	return ev
}

// ended ends what is under way and gives all events, each of which has a uid of its own.
func (l *burstLab) ended(o *audit.Outbox) []*audit.Event {
	l.t.Helper()
	if err := o.Flush(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	depth, err := o.Depth(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	r := newReceiver()
	relayUntil(l.t, o, r, int(depth))
	uids := make(map[string]bool)
	for _, ev := range r.events {
		if uids[ev.GetUid()] {
			l.t.Errorf("the uid %s is there twice", ev.GetUid())
		}
		uids[ev.GetUid()] = true
	}
	return r.events
}

func calls(events []*audit.Event) (sum int64) {
	for _, ev := range events {
		sum += ev.GetCount()
	}
	return sum
}

func (l *burstLab) depth(o *audit.Outbox, want int64) {
	l.t.Helper()
	if n, err := o.Depth(l.t.Context()); err != nil || n != want {
		l.t.Fatalf("%d events, %v, want %d", n, err, want)
	}
}

// The first call of a burst and the first from each address have an event of their own; what differs in anything else is another burst. The others
// share one, which says how many, when the last of them came, and has a digest over theirs.
func TestBurst(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newBurstLab(t, db)
		o := l.process()
		l.record(o, l.call("ann", "10.0.0.1:1"))
		var digest [sha256.Size]byte
		add := func(ev *audit.Event) *audit.Event {
			digest = sha256.Sum256(append(digest[:], ev.GetDigest()...))
			return ev
		}
		first := add(l.record(o, l.call("ann", "10.0.0.1:2")))
		l.record(o, l.call("ann", "10.0.0.2:1")) // from elsewhere
		l.pass(time.Second)
		add(l.record(o, l.call("ann", "10.0.0.2:2")))
		l.pass(time.Second)
		last := add(l.record(o, l.call("ann", "10.0.0.1:3")))
		l.record(o, l.call("bob", "10.0.0.1:4"))
		differs := l.call("ann", "10.0.0.1:5")
		differs.Details["credential"] = "another"
		l.record(o, differs)
		l.depth(o, 4)
		if err := o.EndBursts(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.depth(o, 4) // none is over

		l.pass(time.Minute - 2*time.Second)
		next := l.record(o, l.call("ann", "10.0.0.1:6")) // a minute later it is a first one again
		l.depth(o, 5)
		if err := o.EndBursts(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.depth(o, 6)
		events := l.ended(o)
		if len(events) != 6 || events[4].GetUid() != next.GetUid() {
			t.Fatalf("%d events, the fifth %v", len(events), events[4])
		}
		for _, ev := range events[:5] {
			if ev.GetCount() != 1 || ev.GetDetails()["calls"] != "" {
				t.Errorf("one with an event of its own: %v", ev)
			}
		}
		shared := events[5]
		if shared.GetCount() != 3 || shared.GetUid() != first.GetUid() || shared.GetRequestId() != first.GetRequestId() || string(shared.GetDigest()) != string(digest[:]) ||
			!shared.GetTime().AsTime().Equal(first.GetTime().AsTime()) || shared.GetPrincipal() != "ann" || shared.GetDetails()["calls"] != "joined" ||
			shared.GetDetails()["last_time"] != last.GetTime().AsTime().Format(time.RFC3339Nano) || shared.GetDetails()["credential"] != "of ann" {
			t.Errorf("shared: %v", shared)
		}
	})
}

// A process that is killed loses none: the next one finds the rows, and makes events of them when their minute is over, which say how many calls
// there were at least and at most.
func TestBurstOutlivesItsProcess(t *testing.T) {
	for _, many := range []int64{2, 5, 33, 34, 200} {
		sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
			l := newBurstLab(t, db)
			killed := l.process()
			for range many {
				l.record(killed, l.call("ann", "10.0.0.1:1"))
			}
			o := l.process()
			for range 3 {
				l.record(o, l.call("ann", "10.0.0.1:1"))
			}
			if err := o.EndBursts(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.depth(o, 2) // the other one may live
			l.pass(2 * time.Minute)
			if err := o.EndBursts(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.depth(o, 4)
			exact := 0
			for _, ev := range l.ended(o) {
				switch least := ev.GetDetails()["calls_at_least"]; {
				case ev.GetDetails()["calls"] == "":
				case least == "":
					exact++
					if ev.GetCount() != 2 {
						t.Errorf("of the living: %v", ev)
					}
				default:
					if n, err := strconv.ParseInt(least, 10, 64); err != nil || n < 1 || n > many-1 || ev.GetCount() < many-1 || ev.GetCount() > max(33, 2*many) {
						t.Errorf("of %d calls: %v", many, ev)
					}
				}
			}
			if exact != 1 {
				t.Errorf("%d exact ones, want 1", exact)
			}
		})
	}
}

// Whoever finds that another process has ended its burst begins anew. What that one counted is at least what was answered.
func TestBurstEndedByAnother(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newBurstLab(t, db)
		a, b, still := l.process(), l.process(), l.process()
		for range 3 {
			l.record(a, l.call("ann", "10.0.0.1:1"))
			l.record(b, l.call("ann", "10.0.0.1:1"))
		}
		l.record(still, l.call("bob", "10.0.0.1:1"))
		l.record(still, l.call("bob", "10.0.0.1:1"))
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.depth(a, 4) // its own alone
		l.pass(2 * time.Minute)
		if err := b.EndBursts(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.depth(a, 6)
		l.pass(-2 * time.Minute) // the others' clock is behind
		if err := still.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.depth(a, 6) // its event is there
		for range 40 {
			l.record(a, l.call("ann", "10.0.0.1:1"))
		}
		sums := make(map[string]int64)
		for _, ev := range l.ended(a) {
			sums[ev.GetPrincipal()] += ev.GetCount()
		}
		// What was counted ahead is used up before the row is missed; so the sum is right. Of bob it stays what it was ahead.
		if sums["ann"] != 46 || sums["bob"] != 1+33 {
			t.Errorf("recorded: %v", sums)
		}
	})
}

// A row that counts further than when it was read is not ended by what was read: calls that were answered meanwhile would be concealed.
func TestBurstGoesOnWhileItIsEnded(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newBurstLab(t, db)
		slow, o := l.process(), l.process()
		l.record(slow, l.call("ann", "10.0.0.1:1"))
		l.record(slow, l.call("ann", "10.0.0.1:1"))
		more := 0
		for range 2 {
			if err := o.EndLeft(t.Context(), l.now().Add(time.Hour), func() {
				for ; more < 50; more++ {
					l.record(slow, l.call("ann", "10.0.0.1:1"))
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		if n := calls(l.ended(o)); n < 52 {
			t.Errorf("%d calls are recorded, and 52 were answered", n)
		}
	})
}

// Whatever callers, ends of bursts and other processes do at the same time, the sum is right.
func TestBurstsAtTheSameTime(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		l := newBurstLab(t, db)
		processes := []*audit.Outbox{l.process(), l.process()}
		const callers, each = 16, 60
		stop := make(chan struct{})
		var ending, calling sync.WaitGroup
		ending.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(3 * time.Millisecond):
				}
				// Both end theirs before the other takes them for left.
				for _, o := range processes {
					if err := o.Flush(t.Context()); err != nil {
						t.Error(err)
					}
				}
				l.pass(10 * time.Second)
			}
		})
		for c := range callers {
			calling.Go(func() {
				for i := range each {
					if err := processes[c%2].RecordBurst(t.Context(), l.call(fmt.Sprint("p", (c+i)%3), fmt.Sprintf("10.0.0.%d:1", i%3)), audit.Ground{}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		calling.Wait()
		close(stop)
		ending.Wait()
		if err := processes[1].Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		events := l.ended(processes[0])
		shared := 0
		for _, ev := range events {
			if ev.GetDetails()["calls"] == "joined" {
				shared++
			}
			if ev.GetDetails()["calls_at_least"] != "" {
				t.Errorf("counted ahead: %v", ev)
			}
		}
		if n := calls(events); n != callers*each || shared == 0 {
			t.Errorf("%d calls, want %d; %d events, %d of them shared", n, callers*each, len(events), shared)
		}
	})
}

// A call whose transaction fails has no answer, and the burst begins anew: what is recorded is at least what was answered.
func TestBurstWhoseRecordFails(t *testing.T) {
	var fail atomic.Bool
	config := sqldbtest.SQLite(t, sets()...)
	config.Finish = func(_ context.Context, commit func() error) error {
		if fail.Load() {
			return errors.New("no commit")
		}
		return commit()
	}
	l := newBurstLab(t, sqldbtest.OpenConfig(t, config))
	o := l.process()
	for i := range 9 { // the first of all, one that begins a row, one that is added to it; each time the next succeeds
		fail.Store(i == 0 || i == 2 || i == 6)
		if err := o.RecordBurst(t.Context(), l.call("ann", "10.0.0.1:1"), audit.Ground{}); (err != nil) != fail.Load() || err != nil && fault.Code(err) != codes.Unavailable {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	fail.Store(false)
	if events := l.ended(o); calls(events) != 6 {
		t.Errorf("%d calls, want 6: %v", calls(events), events)
	}
}

// What is withdrawn is in no burst's count.
func TestWithdrawnFromABurst(t *testing.T) {
	l := newBurstLab(t, sqldbtest.Open(t, sets()...))
	o := l.process()
	basis := audit.NewBasis(func(context.Context, *sqldb.Tx) (uint64, error) { return 2, nil })
	gone := errors.New("gone")
	for i := range 6 {
		err := o.RecordBurst(t.Context(), l.call("ann", "10.0.0.1:1"), audit.Ground{On: basis, Number: uint64(1 + i%2), Still: func(context.Context, *sqldb.Tx) error { return gone }})
		var w *audit.Withdrawn
		if i%2 == 0 && !errors.As(err, &w) || i%2 == 1 && err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	if events := l.ended(o); calls(events) != 3 {
		t.Errorf("%d calls, want 3", calls(events))
	}
}

// A row that was changed does not become an event. It stays, is told of each time, and holds nothing else up.
func TestDamagedBurst(t *testing.T) {
	for name, change := range map[string]string{
		"counted": "UPDATE outbox_bursts SET calls = calls + 1 WHERE event_uid = $1",
		"altered": "UPDATE outbox_bursts SET sealed = (SELECT sealed FROM outbox_bursts WHERE event_uid <> $1) WHERE event_uid = $1",
	} {
		t.Run(name, func(t *testing.T) {
			l := newBurstLab(t, sqldbtest.Open(t, sets()...))
			killed := l.process()
			l.record(killed, l.call("ann", "10.0.0.1:1"))
			uid := l.record(killed, l.call("ann", "10.0.0.1:1")).GetUid()
			l.record(killed, l.call("bob", "10.0.0.1:1"))
			l.record(killed, l.call("bob", "10.0.0.1:1"))
			if err := l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
				_, err := tx.ExecContext(ctx, change, uid)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			o := l.process()
			l.pass(time.Minute)
			for range 2 {
				if err := o.EndBursts(t.Context()); err == nil {
					t.Error("it opens")
				}
				l.depth(o, 3)
			}
		})
	}
}

// The addresses that are known have a bound. Calls from further ones are recorded one by one.
func TestAddressesOfBurstsAreBounded(t *testing.T) {
	l := newBurstLab(t, sqldbtest.Open(t, sets()...))
	o := l.process()
	const more = 100
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 512 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < audit.MaxFrom+more; i = next.Add(1) - 1 {
				if err := o.RecordBurst(t.Context(), l.call("ann", fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)), audit.Ground{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	l.depth(o, audit.MaxFrom+more)
	for range 2 {
		l.record(o, l.call("ann", "10.255.0.1:1"))
	}
	l.depth(o, audit.MaxFrom+more+2)
	l.pass(time.Minute)
	l.record(o, l.call("ann", "10.255.0.1:1"))
	l.record(o, l.call("ann", "10.255.0.1:1"))
	l.depth(o, audit.MaxFrom+more+3) // those of the minute before are forgotten
}
