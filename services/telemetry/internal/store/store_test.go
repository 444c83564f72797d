package store_test

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store"
)

func newStore(t *testing.T, db *sqldb.DB) *store.Store {
	t.Helper()
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "telemetry"), DB: db})
	if err != nil {
		t.Fatal(err)
	}
	return store.New(db, keys)
}

func sets() []sqldb.MigrationSet {
	return []sqldb.MigrationSet{envelope.Migrations(), {Name: "telemetry", FS: store.Files, Dir: "migrations"}}
}

func event(service string, seq int64) *store.Event {
	return &store.Event{
		Uid: fmt.Sprintf("evt_%s_%d", service, seq), Service: service, Seq: seq, Time: timestamppb.New(time.Unix(seq, 0)),
		Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, RequestId: fmt.Sprintf("r%d", seq%3), Scope: "/",
	}
}

// TestEverySelection runs each query of the log on both engines, against a filter in Go.
func TestEverySelection(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		s := newStore(t, db)
		var all []*store.Event
		for seq := int64(1); seq <= 48; seq++ {
			ev := event("compute", seq)
			if seq%2 == 0 {
				ev.SubscriptionUid, ev.Scope = "sub_1", "subscriptions/s"
			}
			if seq%4 == 0 {
				ev.ResourceGroupUid, ev.Scope = "rgp_1", "subscriptions/s/resourceGroups/g"
			}
			if seq%8 == 0 {
				ev.WorkspaceUid, ev.Scope = "ws_1", "subscriptions/s/resourceGroups/g/workspaces/w"
			}
			if seq%16 == 0 {
				ev.Scope += "/runs/r"
			}
			if seq%6 == 0 {
				ev.Result = telemetryv1.ActivityEvent_RESULT_DENIED
			}
			all = append(all, ev)
		}
		if stored, err := s.Ingest(t.Context(), "compute", all); err != nil || stored != 48 {
			t.Fatalf("stored up to %d: %v", stored, err)
		}
		if stored, err := s.Ingest(t.Context(), "identity", []*store.Event{event("identity", 1)}); err != nil || stored != 1 {
			t.Fatalf("another service's numbers are its own: %d, %v", stored, err)
		}
		scopes := []store.Scope{
			{}, {All: true}, {SubscriptionUID: "sub_1"}, {ResourceGroupUID: "rgp_1"}, {WorkspaceUID: "ws_1"}, {WorkspaceUID: "ws_1", Resource: "runs/r"},
			{SubscriptionUID: "sub_2"}, {Resource: "users/u"},
		}
		for _, sc := range scopes {
			for _, request := range []string{"", "r1"} {
				for _, result := range []telemetryv1.ActivityEvent_Result{0, telemetryv1.ActivityEvent_RESULT_DENIED} {
					f := store.Filter{Scope: sc, Start: time.Unix(5, 0).UnixMicro(), End: time.Unix(41, 0).UnixMicro(), RequestID: request, Result: result}
					var want, got []int64
					for _, ev := range slices.Backward(all) {
						if sc.Holds(ev) && ev.GetSeq() >= 5 && ev.GetSeq() < 41 && (request == "" || ev.GetRequestId() == request) && (result == 0 || ev.GetResult() == result) {
							want = append(want, ev.GetSeq())
						}
					}
					for {
						events, next, err := s.List(t.Context(), f, 3)
						if err != nil {
							t.Fatal(err)
						}
						for _, ev := range events {
							got = append(got, ev.GetSeq())
						}
						if f.Before = next; next == 0 {
							break
						}
					}
					if !slices.Equal(got, want) {
						t.Errorf("%+v: got %v, want %v", f, got, want)
					}
				}
			}
		}
		arrived, err := s.After(t.Context(), 40, 100)
		if err != nil || len(arrived) != 9 || arrived[0].Position != 41 || arrived[0].Event.GetSeq() != 41 || arrived[8].Event.GetService() != "identity" {
			t.Errorf("got %v, %v", arrived, err)
		}
		if newest, err := s.Newest(t.Context()); err != nil || newest != 49 {
			t.Errorf("newest %d, %v", newest, err)
		}
	})
}

// TestDeliveriesAtTheSameTime: two relays of one service deliver the same events at once, besides other services.
func TestDeliveriesAtTheSameTime(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		s := newStore(t, db)
		var wg sync.WaitGroup
		for relay := range 6 {
			service := fmt.Sprintf("svc%d", relay%2)
			wg.Go(func() {
				for next := int64(1); next <= 60; {
					var events []*store.Event
					for seq := next; seq < next+int64(3+relay) && seq <= 60; seq++ {
						events = append(events, event(service, seq))
					}
					stored, err := s.Ingest(t.Context(), service, events)
					if err != nil {
						t.Error(err)
						return
					}
					next = stored + 1
				}
			})
		}
		wg.Wait()
		arrived, err := s.After(t.Context(), 0, 1000)
		if err != nil || len(arrived) != 120 {
			t.Fatalf("%d events, want 120 (%v)", len(arrived), err)
		}
		last := map[string]int64{}
		for i, a := range arrived {
			if a.Err != nil || a.Position != int64(i+1) || a.Event.GetSeq() != last[a.Event.GetService()]+1 {
				t.Fatalf("at %d: %+v after %v", i, a, last)
			}
			last[a.Event.GetService()]++
		}
	})
}

// TestTimesThatNoClockHas: such a time neither fails an event nor wraps around into the range of others.
func TestTimesThatNoClockHas(t *testing.T) {
	s := newStore(t, sqldbtest.Open(t, sets()...))
	early, late := event("compute", 1), event("compute", 2)
	early.Time, late.Time = &timestamppb.Timestamp{Seconds: -62135596800}, &timestamppb.Timestamp{Seconds: 253402300799, Nanos: 999999999}
	if _, err := s.Ingest(t.Context(), "compute", []*store.Event{early, late}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		start, end int64
		want       int
	}{{math.MinInt64, math.MaxInt64, 2}, {0, math.MaxInt64, 1}, {math.MinInt64, 0, 1}, {0, 1 << 50, 0}} {
		events, _, err := s.List(t.Context(), store.Filter{Scope: store.Scope{All: true}, Start: c.start, End: c.end}, 10)
		if err != nil || len(events) != c.want {
			t.Errorf("from %d to %d: %d events, want %d (%v)", c.start, c.end, len(events), c.want, err)
		}
	}
}

func TestResourceOf(t *testing.T) {
	const ws = "subscriptions/s/resourceGroups/g/workspaces/w"
	for name, want := range map[string]string{
		"/": "", "subscriptions/s": "", "subscriptions/s/resourceGroups/g": "", ws: "", ws + "/runs/R1": "runs/R1", ws + "/secrets/x": "secrets/x",
		"users/u": "users/u", "roleDefinitions/owner": "roleDefinitions/owner",
	} {
		n, err := resource.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := store.ResourceOf(n); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if got := store.ResourceOf(resource.Name{}); got != "" {
		t.Errorf("no name: %q", got)
	}
}

func TestForeignKeysDoNotOpen(t *testing.T) {
	db := sqldbtest.Open(t, sets()...)
	s := newStore(t, db)
	if _, err := s.Ingest(t.Context(), "compute", []*store.Event{event("compute", 1)}); err != nil {
		t.Fatal(err)
	}
	_, _, err := newStore(t, db).List(t.Context(), store.Filter{Scope: store.Scope{All: true}, Start: math.MinInt64, End: math.MaxInt64}, 10) // another seal
	if fault.Code(err) != codes.DataLoss {
		t.Errorf("got %v", err)
	}
}
