package telemetry

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store"
)

// TestAWatchBeginsWhereItWasOpened: events that another watch still waits for are not a later one's.
func TestAWatchBeginsWhereItWasOpened(t *testing.T) {
	db := sqldbtest.Open(t, envelope.Migrations(), leader.Migrations(), Migrations())
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, "telemetry"), DB: db})
	if err != nil {
		t.Fatal(err)
	}
	log := store.New(db, keys)
	f := newFeed(log, slog.New(slog.DiscardHandler))
	take := func(seq int64) {
		t.Helper()
		ev := &store.Event{Uid: fmt.Sprint("evt_", seq), Service: "compute", Seq: seq, Time: timestamppb.New(time.Unix(seq, 0)), Scope: "/"}
		if _, err := log.Ingest(t.Context(), "compute", []*store.Event{ev}); err != nil {
			t.Fatal(err)
		}
	}
	open := func(scope store.Scope) *subscriber {
		t.Helper()
		sub, err := f.subscribe(t.Context(), scope)
		if err != nil {
			t.Fatal(err)
		}
		return sub
	}
	check := func(name string, sub *subscriber, want ...int64) {
		t.Helper()
		for _, seq := range want {
			select {
			case ev := <-sub.events:
				if ev.GetSeq() != seq {
					t.Errorf("%s: got %d, want %d", name, ev.GetSeq(), seq)
				}
			default:
				t.Errorf("%s: %d is missing", name, seq)
			}
		}
		select {
		case ev := <-sub.events:
			t.Errorf("%s: got %d too", name, ev.GetSeq())
		default:
		}
	}
	take(1)
	first := open(store.Scope{All: true})
	take(2)
	second, nowhere := open(store.Scope{All: true}), open(store.Scope{})
	take(3)
	for f.step(t.Context()) {
	}
	check("first", first, 2, 3)
	check("second", second, 3)
	check("a watch of nowhere", nowhere)
	for _, sub := range []*subscriber{first, second, nowhere} {
		f.unsubscribe(sub)
	}
	take(4)
	if f.step(t.Context()) {
		t.Error("the log is read though nobody watches")
	}
	third := open(store.Scope{All: true})
	take(5)
	for f.step(t.Context()) {
	}
	check("third", third, 5)
}
