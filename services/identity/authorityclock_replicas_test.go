package identity

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

const roleOfRoots = "authorities"

// ballot is an election in which the test says who leads in the clock of the roots; in other roles nobody does.
type ballot chan *ballotSeat

func (b ballot) Campaign(ctx context.Context, role string) (leader.Seat, error) {
	if role != roleOfRoots {
		b = nil
	}
	select {
	case s := <-b:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ballotSeat is held until the test takes it; whoever has it learns of that by lost alone.
type ballotSeat struct {
	revision int64
	lost     chan struct{}
}

func (s *ballotSeat) Origin() (uint64, int64)      { return 7, s.revision }
func (*ballotSeat) Held(ctx context.Context) error { return ctx.Err() }
func (s *ballotSeat) Lost() <-chan struct{}        { return s.lost }
func (*ballotSeat) Resign()                        {}

// steps notes which instance has taken which step, in order, as their logs say.
type steps struct {
	mu    sync.Mutex
	taken []string
}

func (s *steps) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.taken, ", ")
}

// stepLog is the log of one instance.
type stepLog struct {
	slog.Handler
	name string
	to   *steps
}

func (l stepLog) Enabled(context.Context, slog.Level) bool { return true }

func (l stepLog) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "step" {
			l.to.mu.Lock()
			defer l.to.mu.Unlock()
			l.to.taken = append(l.to.taken, l.name+" "+a.Value.String())
		}
		return true
	})
	return nil
}

// Of two instances of identity one takes the steps of the clock: whom the election names, and none that was overtaken without having heard of it.
func TestOneInstanceRotatesTheRoots(t *testing.T) { // D10
	c := sqldbtest.Postgres(t, Migrations(), audit.Migrations(), envelope.Migrations(), leader.Migrations())
	key, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	var at atomic.Int64
	at.Store(time.Now().Add(-90 * 24 * time.Hour).UnixNano())
	now := func() time.Time { return time.Unix(0, at.Load()) }
	var taken steps
	names := []string{"a", "b"}
	ballots := []ballot{make(ballot), make(ballot)}
	services := make([]*Service, 2)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for i, name := range names {
		services[i], _, err = replicaOf(t, c, key, "identity-"+name, ballots[i], func(c *Config) {
			c.Heartbeat, c.Now, c.Instance, c.Logger = 20*time.Millisecond, now, name, slog.New(stepLog{Handler: slog.DiscardHandler, name: name, to: &taken})
			c.SVIDLife, c.OperatorLife, c.ConnectionLife, c.RootPeriod = 2*time.Hour, time.Hour, 30*time.Minute, 24*time.Hour
		})
		must(t, err)
		defer services[i].Close()
		running.Go(func() { _ = services[i].Run(ctx) })
	}
	phases := func(s *Service) string {
		var out []string
		for _, r := range s.authority.Load().roots {
			out = append(out, strings.ToUpper(string(r.Phase)))
		}
		return strings.Join(out, " ")
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 30 s: %s; the roots are %s and %s, the steps %s", what, phases(services[0]), phases(services[1]), taken.all())
			}
		}
	}
	come := func(want string) {
		t.Helper()
		until("both see "+want, func() bool { return phases(services[0]) == want && phases(services[1]) == want })
	}
	revision := int64(0)
	elect := func(i int) *ballotSeat {
		revision++
		s := &ballotSeat{revision: revision, lost: make(chan struct{})}
		ballots[i] <- s
		until(names[i]+" leads", func() bool { return slices.Contains(services[i].cfg.Leader.Leading(), roleOfRoots) })
		return s
	}
	advance := func(d time.Duration) { at.Add(int64(d + time.Second)) }
	clock := services[0].clock()

	advance(clock.Period - clock.Ahead())
	time.Sleep(200 * time.Millisecond)
	if got := phases(services[0]); got != "ACTIVE" {
		t.Fatalf("nobody leads, and the roots are %s", got)
	}
	first := elect(0)
	come("ACTIVE PREPARED")

	// The lead goes to the other.
	close(first.lost)
	until("a leads no more", func() bool { return len(services[0].cfg.Leader.Leading()) == 0 })
	elect(1)
	advance(clock.Ahead())
	come("OLD ACTIVE")
	if services[0].Pin() != services[1].Pin() {
		t.Error("two roots sign")
	}

	// A third is elected, which does nothing, and the one before hears nothing of it: it finds out by the step that is due, and takes none.
	third := make(ballot)
	l, err := leader.New(leader.Config{DB: services[0].cfg.DB, Election: third, Holder: "identity-c"})
	must(t, err)
	rest, leave := context.WithCancel(ctx)
	defer leave()
	running.Go(func() {
		_ = l.Lead(rest, roleOfRoots, func(ctx context.Context, _ *leader.Term) error { <-ctx.Done(); return nil })
	})
	revision++
	third <- &ballotSeat{revision: revision, lost: make(chan struct{})}
	until("c leads", func() bool { return slices.Contains(l.Leading(), roleOfRoots) })
	advance((clock.Period - clock.Ahead()) / 2)
	until("b has found out, or has taken a step", func() bool {
		return len(services[1].cfg.Leader.Leading()) == 0 || phases(services[1]) != "OLD ACTIVE"
	})
	if got := phases(services[1]); got != "OLD ACTIVE" {
		t.Errorf("an instance that was overtaken has made the roots %s", got)
	}
	leave()
	elect(0)
	come("TAINTED ACTIVE")
	advance(clock.Period / 2)
	come("ACTIVE")
	if got := taken.all(); got != "a prepare, b activate, a taint, a revoke" {
		t.Errorf("the steps were taken by: %s", got)
	}
}
