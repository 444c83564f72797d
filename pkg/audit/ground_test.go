package audit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// A record is stored only on the ground that it rests on, as that is in the record's own transaction: what is withdrawn takes nobody else's record
// with it, leaves no gap, and the state's number is read once for all that are recorded together.
func TestRecordsStandOnTheirGround(t *testing.T) {
	sqldbtest.Run(t, sets(), func(t *testing.T, db *sqldb.DB) {
		o := newOutbox(t, db, newSeal(t))
		var reads, asked atomic.Int64
		basis := audit.NewBasis(func(context.Context, *sqldb.Tx) (uint64, error) { reads.Add(1); return 7, nil })
		gone := errors.New("gone")
		const callers = 90 // more than one statement takes
		errs := make([]error, callers)
		var waiting, done sync.WaitGroup
		// While the writer is held all gather; they are then one transaction.
		err := db.Write(t.Context(), func(context.Context, *sqldb.Tx) error {
			for i := range callers {
				waiting.Add(1)
				done.Go(func() {
					g := audit.Ground{On: basis, Number: 7, Still: func(context.Context, *sqldb.Tx) error { t.Error("asked without need"); return nil }}
					switch i % 5 {
					case 1:
						g.Number, g.Still = 6, func(_ context.Context, tx *sqldb.Tx) error { asked.Add(1); return nil }
					case 2:
						g.Number, g.Still = 8, func(context.Context, *sqldb.Tx) error { return gone }
					case 3:
						g.Number, g.Still = 6, func(context.Context, *sqldb.Tx) error { panic("no") }
					case 4:
						g = audit.Ground{}
					}
					waiting.Done()
					errs[i] = o.RecordOn(t.Context(), event(fmt.Sprint("r", i)), g)
				})
			}
			waiting.Wait()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		done.Wait()
		for i, err := range errs {
			var w *audit.Withdrawn
			withdrawn := errors.As(err, &w)
			switch i % 5 {
			case 2:
				if !withdrawn || !errors.Is(err, gone) {
					t.Errorf("record %d: %v, want what its ground said", i, err)
				}
			case 3:
				if !withdrawn || fault.Code(w.Err) != codes.Internal {
					t.Errorf("record %d: %v, want an internal fault of its own", i, err)
				}
			default:
				if err != nil {
					t.Errorf("record %d: %v", i, err)
				}
			}
		}
		if asked.Load() != callers/5 {
			t.Errorf("%d were decided again, want %d", asked.Load(), callers/5)
		}
		if n := reads.Load(); n < 1 || n > 5 { // a caller that stood in the queue late makes a further transaction
			t.Errorf("the number was read %d times for %d records", n, callers)
		}
		r := newReceiver()
		relayUntil(t, o, r, callers*3/5)
		seen := make(map[string]bool)
		for i, ev := range r.events {
			if ev.GetSeq() != int64(i+1) || ev.GetService() != "workspace" || ev.GetUid() == "" || seen[ev.GetUid()] {
				t.Fatalf("event %d: %v", i+1, ev)
			}
			seen[ev.GetUid()] = true
		}
	})
}

// A basis whose number cannot be read, and a ground that nobody asks about, let nothing pass.
func TestNoGroundNoRecord(t *testing.T) {
	o := newOutbox(t, sqldbtest.Open(t, sets()...), newSeal(t))
	away := audit.NewBasis(func(context.Context, *sqldb.Tx) (uint64, error) { return 0, errors.New("away") })
	yes := func(context.Context, *sqldb.Tx) error { return nil }
	if err := o.RecordOn(t.Context(), event("r"), audit.Ground{On: away, Still: yes}); fault.Code(err) != codes.Unavailable {
		t.Errorf("a number that cannot be read: %v", err)
	}
	if err := o.RecordOn(t.Context(), event("r"), audit.Ground{On: away}); fault.Code(err) != codes.Internal {
		t.Errorf("a ground without a question: %v", err)
	}
	if n, err := o.Depth(t.Context()); n != 0 || err != nil {
		t.Errorf("%d records, %v", n, err)
	}
}
