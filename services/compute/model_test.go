package compute

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// model is two instances, the agents that live, and what may not change any more.
type model struct {
	t      *rapid.T
	l      []*lab
	led    []*queue.Queue // as what each believes to be; nil where it does not lead
	dies   []func()
	uids   []string
	agents map[string]bool // that live
	met    map[string]bool // the agents that drivers have started
	late   bool            // no other agent comes
	ended  map[string]computev1.Run_State
	claims map[string]int
	// A host's claims: how many had their answer, and which run was given for each.
	name    string
	claimed int
	given   map[string]string
}

func (m *model) elect(i int) {
	m.dies[i]()
	m.led[i], m.dies[i] = m.l[i].elect()
	_ = m.led[i].Adopt(context.Background())
}

// turn is what an instance does beside calls. Errors are logged there, and it is called again.
func (m *model) turn(i int) {
	ctx := context.Background()
	if q := m.led[i]; q != nil {
		_ = q.StartQueued(ctx)
		_ = q.WatchActive(ctx)
		_ = q.RevokeEnded(ctx)
	}
	_ = m.l[i].s.queue.Tend(ctx)
}

// crash is a process that dies and is there again. Its agents go on.
func (m *model) crash(i int) {
	m.dies[i]()
	m.led[i] = nil
	m.l[i].restart()
	_ = m.l[i].s.queue.Recover(context.Background())
}

// claim asks for a run as a host does that repeats its claim until it has an answer.
func (m *model) claim(i int, host store.Compute) *computev1.AgentBootstrap {
	l, ctx, id := m.l[i], context.Background(), fmt.Sprintf("claim %d of %s", m.claimed, m.name)
	mac, err := l.s.store.ClaimMAC(ctx, host, "usr_host", id)
	if err != nil {
		m.t.Fatalf("%v", err)
	}
	got, err := l.s.queue.Reclaim(ctx, host, mac)
	first := fault.Is(err, codes.NotFound)
	if first {
		got, err = l.s.queue.Claim(ctx, host, mac)
	}
	if fault.Is(err, codes.AlreadyExists) { // its run has ended meanwhile
		m.claimed++
		return nil
	}
	if got == nil {
		return nil
	}
	uid := got.GetRunUid()
	if was, ok := m.given[id]; ok && was != uid || m.agents[uid] {
		m.t.Fatalf("%s gives %s, and gave %s", id, uid, was)
	}
	m.given[id] = uid
	if first || m.claims[uid] == 0 { // the call that took it may have had no answer
		m.claims[uid]++
	}
	return got
}

func (m *model) dying(i int, fn func()) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crash); !ok {
				panic(p)
			}
			m.crash(i)
		}
	}()
	fn()
}

// meet notes the agents that drivers have started, and those that they have killed.
func (m *model) meet() {
	for _, l := range m.l {
		l.driver.mu.Lock()
		for _, uid := range m.uids {
			if l.driver.started[uid] > 0 && !m.met[uid] {
				m.met[uid], m.agents[uid] = true, !m.late
			}
			if slices.Contains(l.driver.killed, uid) {
				delete(m.agents, uid)
			}
		}
		l.driver.mu.Unlock()
	}
}

// gone is the end of an agent.
func (m *model) gone(uid string) {
	delete(m.agents, uid)
	for _, l := range m.l {
		l.driver.mu.Lock()
		if l.driver.started[uid] > 0 {
			l.driver.gone[uid] = true
		}
		l.driver.mu.Unlock()
	}
}

// pass is some seconds, in each of which every agent that lives asks for its assignment or is heard of, at one instance or the other.
func (m *model) pass(seconds int) {
	for n := range seconds {
		m.l[0].advance(time.Second)
		m.meet()
		for uid, alive := range m.agents {
			l := m.l[n%2]
			if !alive {
				continue
			}
			_, _ = l.s.store.Update(context.Background(), uid, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
				if r.State != computev1.Run_STATE_STARTING {
					return errRefused
				}
				r.State, r.Started, r.Heartbeat, r.AgentKey = computev1.Run_STATE_RUNNING, l.now(), l.now(), "key"
				return nil
			}, nil)
			_ = l.s.store.Touch(context.Background(), uid, l.now())
		}
	}
}

var errRefused = errors.New("refused")

// report ends a run as its agent does.
func (m *model) report(i int, uid string) {
	l := m.l[i]
	_, _ = l.s.store.Update(context.Background(), uid, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		if r.State != computev1.Run_STATE_RUNNING {
			return errRefused
		}
		queue.Finish(r, computev1.Run_STATE_COMPLETED, "", 0, l.now())
		return nil
	}, nil)
	m.gone(uid)
}

func (m *model) check() {
	m.meet()
	for _, uid := range m.uids {
		run := m.l[0].stored(uid)
		n := m.claims[uid] + m.l[0].driver.starts(uid) + m.l[1].driver.starts(uid)
		if n > 1 || n > 0 && run.State == computev1.Run_STATE_QUEUED || run.Generation > 1 {
			m.t.Fatalf("%s: started %d times, generation %d, %v", uid, n, run.Generation, run.State)
		}
		if was, ok := m.ended[uid]; ok && was != run.State {
			m.t.Fatalf("%s: ended as %v, is %v", uid, was, run.State)
		}
		if run.HasEnded() {
			m.ended[uid] = run.State
		}
		if m.agents[uid] && run.State == computev1.Run_STATE_LOST {
			m.t.Fatalf("%s: lost, and its agent lives: %s", uid, run.Outcome.GetMessage())
		}
		for _, l := range m.l {
			if slices.Contains(l.driver.killed, uid) && !run.HasEnded() {
				m.t.Fatalf("%s: its agent was killed, and it is %v", uid, run.State)
			}
		}
	}
}
