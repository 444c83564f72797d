package compute

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// twins runs fn with two instances of the service on one database: on SQLite with one connection to it, on PostgreSQL with one each.
func twins(t *testing.T, fn func(t *testing.T, a, b *lab)) {
	t.Helper()
	sets := []sqldb.MigrationSet{envelope.Migrations(), audit.Migrations(), leader.Migrations(), Migrations()}
	sqldbtest.RunConfig(t, sets, func(t *testing.T, c sqldb.Config) {
		db := sqldbtest.OpenConfig(t, c)
		a := newStill(t, db)
		if c.Driver == sqldb.Postgres {
			db = sqldbtest.OpenConfig(t, c)
		}
		fn(t, a, a.twin(db, "b"))
	})
}

// ballot elects whoever asks: the test says who that is, and who still believes it.
type ballot struct{}

func (ballot) Campaign(ctx context.Context, _ string) (leader.Seat, error) {
	return ballot{}, ctx.Err()
}
func (ballot) Origin() (cluster uint64, revision int64) { return 1, 1 }
func (ballot) Held(ctx context.Context) error           { return ctx.Err() }
func (ballot) Lost() <-chan struct{}                    { return nil }
func (ballot) Resign()                                  {}

// elect makes an instance the leader, and gives the queue as it moves it from then on. Nobody tells the leader before, who finds out when
// he writes.
func (l *lab) elect() (led *queue.Queue, dies func()) {
	l.t.Helper()
	e, err := leader.New(leader.Config{DB: l.db, Election: ballot{}, Holder: "compute-" + l.cfg.Instance})
	must(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	terms, ended := make(chan *leader.Term), make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Lead(ctx, "queue", func(_ context.Context, term *leader.Term) error {
			terms <- term
			<-ctx.Done() // also when the term is over: a paused process knows nothing of that
			return nil
		})
	}()
	return l.s.queue.By(<-terms), sync.OnceFunc(func() { cancel(); <-ended })
}

// once makes a function of a peer stop the first caller until the test says go, and lets all others through.
func once() (hook func(), reached <-chan struct{}, resume func()) {
	at, on := make(chan struct{}), make(chan struct{})
	var taken atomic.Bool
	return func() {
		if !taken.Swap(true) {
			close(at)
			<-on
		}
	}, at, func() { close(on) }
}

// H3: a leader that was paused (SIGSTOP) while it started a run, and wakes when another one leads, has started nothing twice.
func TestPausedLeader(t *testing.T) {
	twins(t, func(t *testing.T, a, b *lab) {
		a.serve()
		c := a.target(computev1.Compute_KIND_LOCAL, 2)
		for _, tc := range []struct {
			name   string
			where  func(p *peers) *func()
			refuse bool // what the woken one writes
			a, b   int  // starts on each machine
			state  computev1.Run_State
			reason faultv1.Reason
		}{
			{"before it took the run", func(p *peers) *func() { return &p.acting }, true, 0, 1, computev1.Run_STATE_STARTING, 0},
			{"after it took the run", func(p *peers) *func() { return &p.joining }, false, 1, 0, computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE},
		} {
			r := a.submit(c, resource.NewUID("r")[2:])
			old, dies := a.elect()
			hook, reached, resume := once()
			a.peers.set(func(p *peers) { *tc.where(p) = hook })
			woken := make(chan error, 1)
			go func() { woken <- old.StartQueued(context.Background()) }()
			<-reached

			led, ends := b.elect()
			must(t, led.Adopt(t.Context()))
			must(t, led.StartQueued(t.Context()))
			if tc.state == computev1.Run_STATE_LOST {
				b.advance(b.cfg.StartGrace + time.Second)
				must(t, led.WatchActive(t.Context()))
			}
			resume()
			if err := <-woken; fault.Is(err, codes.Unavailable) != tc.refuse {
				t.Errorf("%s: it was told %v", tc.name, err)
			}
			if x, y := a.driver.starts(r.GetUid()), b.driver.starts(r.GetUid()); x != tc.a || y != tc.b {
				t.Errorf("%s: started %d and %d times, want %d and %d", tc.name, x, y, tc.a, tc.b)
			}
			a.is(tc.name, r.GetUid(), tc.state, tc.reason)
			if run := a.stored(r.GetUid()); run.Generation != 1 {
				t.Errorf("%s: generation %d", tc.name, run.Generation)
			}
			if tc.a == 1 { // what it started late is not left
				must(t, a.s.queue.Tend(t.Context()))
				if !slices.Contains(a.driver.killed, r.GetUid()) || !slices.Contains(a.driver.cleaned, r.GetUid()) {
					t.Errorf("%s: killed %v, cleaned %v", tc.name, a.driver.killed, a.driver.cleaned)
				}
				_, err := a.agent(r.GetUid()).assignment()
				want(t, tc.name+": its agent", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
			}
			dies()
			ends()
		}
	})
}

// A leader of yesterday ends nothing, kills nothing, and has nothing revoked, whatever he believes to see.
func TestStaleLeader(t *testing.T) {
	twins(t, func(t *testing.T, a, b *lab) {
		a.serve()
		c := a.target(computev1.Compute_KIND_LOCAL, 8)
		old, dies := a.elect()
		defer dies()
		silent, timed, over := a.submit(c, "silent"), a.submit(c, "timed"), a.submit(c, "over")
		must(t, old.StartQueued(t.Context()))
		for _, r := range []*computev1.Run{silent, timed, over} {
			_, err := a.agent(r.GetUid()).assignment()
			must(t, err)
		}
		led, ends := b.elect()
		defer ends()
		a.advance(a.cfg.Silence + time.Second)
		must(t, old.WatchActive(t.Context())) // what it cannot end is in its log
		old.TimeOut(t.Context(), timed.GetUid(), time.Second)
		if err := old.Adopt(t.Context()); !fault.Is(err, codes.Unavailable) {
			t.Errorf("it adopts: %v", err)
		}
		for _, r := range []*computev1.Run{silent, timed, over} {
			if run := a.stored(r.GetUid()); run.State != computev1.Run_STATE_RUNNING || run.Cancel {
				t.Errorf("%s: %v, cancelled %v", run.Spec.GetRunId(), run.State, run.Cancel)
			}
		}
		if len(a.driver.killed) != 0 {
			t.Errorf("killed %v", a.driver.killed)
		}
		must(t, led.WatchActive(t.Context()))
		a.is("by the leader", silent.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
		if err := old.RevokeEnded(t.Context()); !fault.Is(err, codes.Unavailable) {
			t.Errorf("it notes what was revoked: %v", err)
		}
		// The agents are on the machine of the old one, and it does what is to be done there.
		if len(b.driver.Left()) != 0 {
			t.Errorf("left on the other machine: %v", b.driver.Left())
		}
		must(t, a.s.queue.Tend(t.Context()))
		if len(a.driver.killed) != 0 || len(a.driver.Left()) != 3 {
			t.Errorf("killed %v before they could deliver, left %v", a.driver.killed, a.driver.Left())
		}
		a.advance(a.cfg.LostGrace)
		must(t, a.s.queue.Tend(t.Context()))
		if len(a.driver.killed) != 3 || len(a.driver.Left()) != 0 {
			t.Errorf("killed %v, left %v", a.driver.killed, a.driver.Left())
		}
	})
}

// What one instance commits wakes who waits at another one: a watch, a log, a host that asks for work, an agent that is to stop.
func TestNewsOfTheOther(t *testing.T) {
	twins(t, func(t *testing.T, a, b *lab) {
		a.serve()
		b.serve()
		c := a.target(computev1.Compute_KIND_SELF_HOSTED, 1)
		claimed := make(chan *computev1.AgentBootstrap, 1)
		go func() {
			res, err := a.computes().ClaimRun(a.as("owner"), &computev1.ClaimRunRequest{Name: c, Wait: durationpb.New(25 * time.Second)})
			if err != nil {
				t.Error(err)
			}
			claimed <- res.GetBootstrap()
		}()
		r := b.submit(c, "r")
		if got := <-claimed; got.GetRunUid() != r.GetUid() {
			t.Fatalf("claimed %v", got)
		}
		watch, err := a.runs().WatchRun(a.as("owner"), &computev1.WatchRunRequest{Name: r.GetName()})
		must(t, err)
		log, err := a.runs().StreamLogs(a.as("owner"), &computev1.StreamLogsRequest{Name: r.GetName(), Follow: true})
		must(t, err)
		seen := func(state computev1.Run_State) {
			t.Helper()
			for {
				m, err := watch.Recv()
				must(t, err)
				if m.GetState() == state {
					return
				}
			}
		}
		seen(computev1.Run_STATE_STARTING)
		agent := b.agent(r.GetUid())
		_, err = agent.assignment()
		must(t, err)
		seen(computev1.Run_STATE_RUNNING)
		_, err = agent.log(0, "one ")
		must(t, err)
		piece, err := log.Recv()
		must(t, err)
		// The next call of the agent reaches the other instance.
		agent.l = a
		if res, err := agent.log(4, "two"); err != nil || res.GetStored() != 7 {
			t.Errorf("%v, %v", res, err)
		}
		more, err := log.Recv()
		must(t, err)
		if got := string(piece.GetData()) + string(more.GetData()); got != "one two" {
			t.Errorf("log %q", got)
		}
		_, err = b.runs().CancelRun(b.as("owner"), &computev1.CancelRunRequest{Name: r.GetName()})
		must(t, err)
		if stop, err := agent.heartbeat(); err != nil || !stop {
			t.Errorf("asked to stop: %v, %v", stop, err)
		}
		_, err = agent.upload("f", "content", nil)
		must(t, err)
		agent.l = b
		must(t, agent.report(computev1.Run_STATE_CANCELED, 7, 1))
		seen(computev1.Run_STATE_CANCELED)
	})
}

// H3: two instances that crash, pause, and lead when they should not: no run is started twice, none is lost whose agent lives, no target
// has more than it takes, each ends, and once ended it stays as it is.
func TestStartedOnce(t *testing.T) {
	twins(t, func(t *testing.T, a, b *lab) {
		cmp := store.Compute{UID: resource.NewUID("cmp"), Workspace: a.uids[ws1], ID: "c", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 2}
		host := store.Compute{UID: resource.NewUID("cmp"), Workspace: a.uids[ws1], ID: "h", Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 1}
		must(t, a.s.store.InsertCompute(t.Context(), cmp, nothing))
		must(t, a.s.store.InsertCompute(t.Context(), host, nothing))
		number := 0
		rapid.Check(t, func(r *rapid.T) {
			m := &model{t: r, l: []*lab{a, b}, led: make([]*queue.Queue, 2), dies: []func(){func() {}, func() {}}, agents: make(map[string]bool), met: make(map[string]bool), ended: make(map[string]computev1.Run_State), claims: make(map[string]int), name: resource.NewUID("mdl"), given: make(map[string]string)}
			defer func() { m.dies[0](); m.dies[1]() }()
			for _, l := range m.l {
				l.driver.fail, l.driver.before = nil, nil
			}
			a.peers.set(func(p *peers) { p.away, p.join, p.actAs = nil, nil, nil })
			one := func(r *rapid.T) int { return rapid.IntRange(0, 1).Draw(r, "instance") }
			actions := map[string]func(*rapid.T){
				"submit": func(r *rapid.T) {
					number++
					to := rapid.SampledFrom([]store.Compute{cmp, host}).Draw(r, "target")
					run := &store.Run{
						UID: resource.NewUID("run"), Workspace: a.uids[ws1], Kind: computev1.Run_KIND_JOB, Compute: to.UID, Submitter: "usr_owner", State: computev1.Run_STATE_QUEUED, Created: a.now(),
						Spec: a.request(ws1+"/computes/"+to.ID, fmt.Sprintf("r%d", number)),
					}
					_, err := a.s.store.InsertRun(t.Context(), run, "", nothing)
					must(t, err)
					m.uids = append(m.uids, run.UID)
				},
				"turn": func(r *rapid.T) { m.turn(one(r)) },
				"both": func(*rapid.T) {
					var all sync.WaitGroup
					for i := range m.l {
						all.Go(func() { m.turn(i) })
					}
					all.Wait()
				},
				"elected": func(r *rapid.T) { m.elect(one(r)) },
				"claim": func(r *rapid.T) {
					if got := m.claim(one(r), host); got != nil && !rapid.Bool().Draw(r, "the answer is lost") { // else it stays, or ended with its reason
						m.agents[got.GetRunUid()] = true
						m.claimed++
					}
				},
				"killed while it starts": func(r *rapid.T) {
					i := one(r)
					m.l[i].driver.before = func() { panic(crash{}) }
					m.dying(i, func() { m.turn(i) })
					m.l[i].driver.before = nil
				},
				"killed": func(r *rapid.T) { m.crash(one(r)) },
				"identity comes and goes": func(*rapid.T) {
					a.peers.set(func(p *peers) {
						if p.away == nil {
							p.away = fault.Unavailable("away")
						} else {
							p.away = nil
						}
					})
				},
				"an agent dies": func(r *rapid.T) {
					if alive := slices.Sorted(maps.Keys(m.agents)); len(alive) > 0 {
						m.gone(rapid.SampledFrom(alive).Draw(r, "uid"))
					}
				},
				"an agent reports": func(r *rapid.T) {
					if alive := slices.Sorted(maps.Keys(m.agents)); len(alive) > 0 {
						m.report(one(r), rapid.SampledFrom(alive).Draw(r, "uid"))
					}
				},
				"time": func(r *rapid.T) { m.pass(rapid.IntRange(1, 15).Draw(r, "seconds")) },
				"": func(*rapid.T) {
					m.check()
					for _, c := range []store.Compute{cmp, host} {
						if n, err := a.s.store.ActiveOn(t.Context(), c.UID); err != nil || n > int64(c.MaxRuns) {
							r.Fatalf("%d runs on a target that takes %d, %v", n, c.MaxRuns, err)
						}
					}
				},
			}
			r.Repeat(actions)
			// In the end both are there, one leads, and agents come no more.
			a.peers.set(func(p *peers) { p.away = nil })
			clear(m.agents)
			m.late = true
			m.elect(1)
			for range 2 * (len(m.uids) + 1) {
				m.pass(11)
				_, _ = b.s.queue.Claim(t.Context(), host, nil)
				m.turn(0)
				m.turn(1)
			}
			for _, uid := range m.uids {
				if run := a.stored(uid); !run.HasEnded() || run.Generation > 0 && !run.Revoked {
					r.Fatalf("%s never ends: %v, revoked %v", uid, run.State, run.Revoked)
				}
			}
			for i, l := range m.l {
				if left := l.driver.Left(); len(left) != 0 {
					r.Fatalf("left on machine %d: %v", i, left)
				}
			}
		})
	})
}

func nothing(context.Context, *sqldb.Tx) error { return nil }
