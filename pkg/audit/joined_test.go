package audit_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func appended(who, where, digest string) *audit.Event {
	return &audit.Event{Method: "/log", Principal: who, Scope: where, ScopeUid: "uid of " + where, Code: "OK", Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Count: 1,
		Digest: []byte(digest), Time: timestamppb.Now(), RequestId: "of " + digest, Uid: "evt_" + digest}
}

// joinLab is an outbox with a clock of its own, whose database can fail.
func joinLab(t *testing.T) (o *audit.Outbox, clock *atomic.Int64, fail *atomic.Bool) {
	t.Helper()
	clock, fail = new(atomic.Int64), new(atomic.Bool)
	clock.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	config := sqldbtest.SQLite(t, sets()...)
	config.Finish = func(_ context.Context, commit func() error) error {
		if fail.Load() {
			return errors.New("no commit")
		}
		return commit()
	}
	o = newOutboxAt(t, sqldbtest.OpenConfig(t, config), newSeal(t), func() time.Time { return time.Unix(0, clock.Load()) })
	return o, clock, fail
}

func TestCallsAreJoined(t *testing.T) {
	o, clock, fail := joinLab(t)
	fail.Store(true)
	if err := o.Summarize(t.Context(), appended("ann", "r1", "0")); err == nil {
		t.Fatal("the first of its kind has an answer without a record")
	}
	fail.Store(false)
	for _, ev := range []*audit.Event{appended("ann", "r1", "a"), appended("ann", "r1", "b"), appended("ann", "r1", "c"), appended("ann", "r2", "d"), appended("bob", "r1", "e")} {
		if err := o.Summarize(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	if depth, err := o.Depth(t.Context()); err != nil || depth != 3 {
		t.Fatalf("%d events, %v: the first of each kind is durable before its answer", depth, err)
	}
	clock.Add(int64(time.Minute))
	if err := o.Summarize(t.Context(), appended("ann", "r1", "f")); err != nil { // a minute later it is a first one again
		t.Fatal(err)
	}
	fail.Store(true)
	if err := o.Flush(t.Context()); err == nil {
		t.Fatal("a flush that stored nothing succeeded")
	}
	fail.Store(false)
	if err := o.Summarize(t.Context(), appended("ann", "r1", "g")); err != nil {
		t.Fatal(err)
	}
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := newReceiver()
	relayUntil(t, o, r, 6)
	counts := map[string][]int64{}
	uids := map[string]bool{}
	for _, ev := range r.events {
		if uids[ev.GetUid()] {
			t.Errorf("the uid %s is there twice", ev.GetUid())
		}
		uids[ev.GetUid()] = true
		key := ev.GetPrincipal() + " " + ev.GetScope()
		counts[key] = append(counts[key], ev.GetCount())
		if joined := ev.GetDetails()["calls"] == "joined"; joined != (ev.GetCount() > 1) || joined && len(ev.GetDigest()) != 32 {
			t.Errorf("got %v", ev)
		}
	}
	sum := int64(0)
	for _, n := range counts["ann r1"] {
		sum += n
	}
	if sum != 5 || len(counts["ann r1"]) != 4 || len(counts["ann r2"]) != 1 || len(counts["bob r1"]) != 1 {
		t.Errorf("got %v", counts)
	}
}

func TestManyKindsAreNotLost(t *testing.T) {
	o, _, _ := joinLab(t)
	const callers, each = 8, 200
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				if err := o.Summarize(t.Context(), appended("ann", string(rune('a'+(c+i)%5)), "x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := o.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	depth, err := o.Depth(t.Context())
	if err != nil || depth > 5*(callers+1) {
		t.Fatalf("%d events, %v", depth, err)
	}
	r := newReceiver()
	relayUntil(t, o, r, int(depth))
	sum := int64(0)
	for _, ev := range r.events {
		sum += ev.GetCount()
	}
	if sum != callers*each {
		t.Errorf("%d calls are recorded, want %d", sum, callers*each)
	}
}
