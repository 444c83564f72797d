package audit_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// TestMain makes the property's usual number of cases small enough for every change; -rapid.checks takes more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "30"); err != nil {
		panic(err)
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

func refusal(method, reason string) *audit.Event {
	return &audit.Event{
		Method: method, Code: "UNAUTHENTICATED", Reason: reason, Result: telemetryv1.ActivityEvent_RESULT_DENIED,
		Address: "192.0.2.1", RequestId: "a stranger's", Details: map[string]string{"x": "y"},
	}
}

func TestAggregateCounts(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	o := newOutbox(t, db, newSeal(t))
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			o.Aggregate(refusal("/a", "TOKEN_MISSING"))
			o.Aggregate(refusal("/a", "TOKEN_EXPIRED"))
			o.Aggregate(refusal("/b", "TOKEN_MISSING"))
		})
	}
	wg.Wait()
	if depth, _ := o.Depth(t.Context()); depth != 0 {
		t.Fatalf("%d events before the flush", depth)
	}
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.Flush(t.Context()); err != nil { // nothing new
		t.Fatal(err)
	}
	r := newReceiver()
	relayUntil(t, o, r, 3)
	counts := map[string]int64{}
	for _, ev := range r.events {
		counts[ev.GetMethod()+" "+ev.GetReason()] = ev.GetCount()
		if ev.GetAddress() != "" || ev.GetRequestId() != "" || ev.GetDetails()["x"] != "" || ev.GetCode() != "UNAUTHENTICATED" || ev.GetResult() != telemetryv1.ActivityEvent_RESULT_DENIED {
			t.Errorf("got %v", ev)
		}
	}
	if counts["/a TOKEN_MISSING"] != 100 || counts["/a TOKEN_EXPIRED"] != 100 || counts["/b TOKEN_MISSING"] != 100 {
		t.Errorf("got %v", counts)
	}
}

// TestStrangersCannotFillTheLog: what tells refusals apart may be a stranger's own words.
func TestStrangersCannotFillTheLog(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	o := newOutbox(t, db, newSeal(t))
	const n = 20_000
	for i := range n {
		ev := refusal(fmt.Sprintf("/no.such.Service/M%d", i), "METHOD_UNKNOWN")
		ev.Code = fmt.Sprintf("CODE_%d", i)
		o.Aggregate(ev)
	}
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	depth, err := o.Depth(t.Context())
	if err != nil || depth > 1000 {
		t.Fatalf("%d events (%v)", depth, err)
	}
	r := newReceiver()
	relayUntil(t, o, r, int(depth))
	sum := int64(0)
	for _, ev := range r.events {
		sum += ev.GetCount()
	}
	if sum != n {
		t.Errorf("%d refusals were counted, want %d", sum, n)
	}
}

func TestCountsSurviveAFailedFlush(t *testing.T) {
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
	o.Aggregate(refusal("/a", "TOKEN_MISSING"))
	fail.Store(true)
	if err := o.Flush(t.Context()); err == nil {
		t.Fatal("a flush that stored nothing succeeded")
	}
	o.Aggregate(refusal("/a", "TOKEN_MISSING"))
	fail.Store(false)
	r := newReceiver()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = o.Relay(ctx, r.deliver) // flushes at its end
	relayUntil(t, o, r, 1)
	if r.events[0].GetCount() != 2 {
		t.Errorf("got %v", r.events[0])
	}
}

// TestExactlyOnceAfterDedup mixes changes, changes undone, records, deliveries that fail at either side of their storing, and
// new processes: what arrives is what was committed, numbered 1 to n, once.
func TestExactlyOnceAfterDedup(t *testing.T) {
	t.Parallel()
	s := newSeal(t)
	rapid.Check(t, func(rt *rapid.T) {
		config := sqldbtest.SQLite(t, sets()...)
		db := sqldbtest.OpenConfig(t, config)
		o := newOutbox(t, db, s)
		r := newReceiver()
		committed := 0
		steps := rapid.SliceOfN(rapid.IntRange(0, 6), 1, 25).Draw(rt, "steps")
		for i, step := range steps {
			request := fmt.Sprint(i)
			switch step {
			case 0, 1:
				undo := step == 1
				err := db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
					for range 1 + i%3 {
						if err := o.Append(ctx, tx, event(request)); err != nil {
							return err
						}
					}
					if undo {
						return errors.New("undone")
					}
					return nil
				})
				if undo == (err == nil) {
					rt.Fatalf("got %v", err)
				}
				if !undo {
					committed += 1 + i%3
				}
			case 2:
				if err := o.Record(t.Context(), event(request)); err != nil {
					rt.Fatal(err)
				}
				committed++
			case 3, 4, 5: // one delivery, which is cut before it is stored, after it, or not at all
				if r.len() == committed {
					continue
				}
				r.before, r.after = nil, nil
				cut := func(int) error { return errors.New("cut") }
				if step == 3 {
					r.before = cut
				}
				if step == 4 {
					r.after = cut
				}
				ctx, stop := context.WithCancel(t.Context())
				_ = o.Relay(ctx, func(ctx context.Context, events []*audit.Event) (int64, error) {
					stop()
					return r.deliver(ctx, events)
				})
				stop()
				r.before, r.after = nil, nil
			case 6:
				if err := db.Close(); err != nil {
					rt.Fatal(err)
				}
				db = sqldbtest.OpenConfig(t, config)
				o = newOutbox(t, db, s)
			}
		}
		relayUntil(t, o, r, committed)
		for i, ev := range r.events {
			if ev.GetSeq() != int64(i+1) {
				rt.Fatalf("event %d has number %d", i+1, ev.GetSeq())
			}
		}
		if err := db.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}

// BenchmarkRecord shows how callers share transactions: time per durable record.
func BenchmarkRecord(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			config := sqldbtest.SQLite(b, sets()...)
			var commits atomic.Int64
			config.Finish = func(_ context.Context, commit func() error) error {
				commits.Add(1)
				return commit()
			}
			db := sqldbtest.OpenConfig(b, config)
			o := newOutbox(b, db, newSeal(b))
			ev := event("r")
			var next atomic.Int64
			before := commits.Load()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if err := o.Record(b.Context(), ev); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/float64(commits.Load()-before), "records/commit")
		})
	}
}

// BenchmarkRelay is the time per event from the outbox to a receiver that costs nothing.
func BenchmarkRelay(b *testing.B) {
	db := sqldbtest.Open(b, sets()...)
	o := newOutbox(b, db, newSeal(b))
	err := db.Write(b.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		for range b.N {
			if err := o.Append(ctx, tx, event("r")); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.ResetTimer()
	_ = o.Relay(ctx, func(_ context.Context, events []*audit.Event) (int64, error) {
		last := events[len(events)-1].GetSeq()
		if last == int64(b.N) {
			cancel()
		}
		return last, nil
	})
}

// TestTriesAtAnAccount holds that refusals at accounts are told apart by account, with the addresses that they came from, and that whoever tries every
// account neither fills the log nor hides the others (G2).
func TestTriesAtAnAccount(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	o := newOutbox(t, db, newSeal(t))
	at := func(account, address string) {
		ev := refusal("/sign-in", "SIGN_IN_FAILED")
		ev.Principal, ev.PrincipalType, ev.Address = account, "user", address
		o.Aggregate(ev)
	}
	for i := range 7 {
		at("usr_erin", fmt.Sprintf("192.0.2.%d:%d", 1+i, 4000+i))
		at("usr_erin", "192.0.2.1:9")
	}
	at("usr_alice", "[2001:db8::1]:7")
	o.Aggregate(refusal("/sign-in", "SIGN_IN_FAILED"))
	const sprayed = 5000
	for i := range sprayed {
		at(fmt.Sprintf("usr_%d", i), "192.0.2.9:1")
	}
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	depth, err := o.Depth(t.Context())
	if err != nil || depth > 300 {
		t.Fatalf("%d events (%v)", depth, err)
	}
	r := newReceiver()
	relayUntil(t, o, r, int(depth))
	sum := int64(0)
	by := make(map[string]*audit.Event)
	for _, ev := range r.events {
		sum += ev.GetCount()
		by[ev.GetPrincipal()] = ev
	}
	if sum != 14+1+1+sprayed {
		t.Errorf("%d refusals were counted", sum)
	}
	erin, alice, nobody := by["usr_erin"], by["usr_alice"], by[""]
	if erin.GetCount() != 14 || erin.GetDetails()["addresses"] != "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4" || erin.GetDetails()["from_elsewhere"] != "3" || erin.GetPrincipalType() != "user" {
		t.Errorf("at erin: %v", erin)
	}
	if alice.GetCount() != 1 || alice.GetDetails()["addresses"] != "2001:db8::1" {
		t.Errorf("at alice: %v", alice)
	}
	if nobody.GetCount() < sprayed-300 || nobody.GetDetails()["addresses"] != "" {
		t.Errorf("at nobody, and at more accounts than are told apart: %v", nobody)
	}
}
