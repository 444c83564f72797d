package compute

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// A4: what the submitter may do counts when the run starts, not when it was submitted.
func TestRightsAtStart(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(l *lab)
		state  computev1.Run_State
		reason faultv1.Reason
	}{
		{"as before", func(*lab) {}, computev1.Run_STATE_STARTING, 0},
		{"lost the role", func(l *lab) { l.unassign("owner", sub1, authz.Owner) }, computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"only reads", func(l *lab) { l.unassign("owner", sub1, authz.Owner); l.assign("owner", sub1, authz.Reader) }, computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"disabled", func(l *lab) {
			l.peers.actAs = fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, "disabled")
		}, computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"signed out everywhere", func(l *lab) {
			l.peers.snapshot = fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED, "revoked")
		}, computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"the snapshot is gone", func(l *lab) { l.peers.snapshot = fault.NotFound("gone") }, computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"no join token", func(l *lab) { l.peers.join = fault.PermissionDenied("no") }, computev1.Run_STATE_FAILED, fault.ReasonOf(fault.PermissionDenied("no"))},
		{"the driver fails", func(l *lab) { l.driver.fail = fault.FailedPrecondition("no program") }, computev1.Run_STATE_FAILED, faultv1.Reason_PRECONDITION_FAILED},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			r := l.submit(l.target(computev1.Compute_KIND_LOCAL, 1), "r")
			tc.change(l)
			l.step()
			l.is(tc.name, r.GetUid(), tc.state, tc.reason)
			if n := l.driver.starts(r.GetUid()); tc.reason == faultv1.Reason_RUN_SUBMITTER_DENIED && n != 0 {
				t.Errorf("started %d times", n)
			}
		})
	}
}

// A4: work of an account that is disabled or deleted stops, whether it waits or goes on; that of others goes on, and what is submitted later.
func TestAccountOver(t *testing.T) {
	l := newLab(t)
	l.assign("other", sub1, authz.Owner)
	c, hosted := l.target(computev1.Compute_KIND_LOCAL, 2), l.target(computev1.Compute_KIND_SELF_HOSTED, 1)
	agent, running := l.running(c, "running")
	other, err := l.runs().SubmitRun(l.as("other"), l.request(c, "other"))
	must(t, err)
	l.step()
	waiting, unclaimed := l.submit(c, "waiting"), l.submit(hosted, "unclaimed")
	tracked, err := computev1.NewTrackingServiceClient(l.dial("gateway")).CreateTrackedRun(l.as("owner"), &computev1.CreateTrackedRunRequest{Parent: ws1})
	must(t, err)
	must(t, l.s.queue.EndOfAccounts(t.Context()))
	l.is("before", waiting.GetUid(), computev1.Run_STATE_QUEUED, 0)
	l.advance(time.Second)
	l.over("owner")
	must(t, l.s.queue.EndOfAccounts(t.Context()))
	for name, uid := range map[string]string{"running": running, "waiting": waiting.GetUid(), "unclaimed": unclaimed.GetUid()} {
		l.is(name, uid, computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED)
		if m := l.stored(uid).Outcome.GetMessage(); !strings.Contains(m, "disabled or deleted") {
			t.Errorf("%s: %q", name, m)
		}
	}
	l.is("another's", other.GetUid(), computev1.Run_STATE_STARTING, 0)
	l.is("a tracked one", tracked.GetUid(), computev1.Run_STATE_RUNNING, 0)
	if !slices.Contains(l.driver.killed, running) {
		t.Error("its agent lives")
	}
	_, err = agent.heartbeat()
	want(t, "its agent", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	ended := 0
	for _, ev := range l.events() {
		if ev.GetMethod() == "/compute/runs/end" && ev.GetPrincipal() == "usr_owner" && ev.GetDetails()["reason"] == "RUN_SUBMITTER_DENIED" {
			ended++
		}
	}
	if ended != 3 {
		t.Errorf("%d ends of three are in the log", ended)
	}
	// Enabled again: what is asked for from then on.
	l.advance(time.Second)
	later := l.submit(c, "later")
	l.step()
	must(t, l.s.queue.EndOfAccounts(t.Context()))
	l.is("enabled again", later.GetUid(), computev1.Run_STATE_STARTING, 0)
}

// An agent that has heard first that its account is over gives up; its run says why, and is not LOST (A4).
func TestAgentHearsFirst(t *testing.T) {
	l := newLab(t)
	_, uid := l.running(l.target(computev1.Compute_KIND_LOCAL, 1), "r")
	l.advance(time.Second)
	l.over("owner")
	l.driver.gone[uid] = true
	l.step()
	l.is("its agent is gone", uid, computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED)
}

// A4, item 8 of identity in depth: what was decided before a change starts nothing after it, by the queue and by a claim.
func TestStartIsFenced(t *testing.T) {
	member := etcd(t)
	for name, change := range map[string]func(l *lab){
		"the role is gone":    func(l *lab) { l.unassign("owner", sub1, authz.Owner) },
		"the account is over": func(l *lab) { l.over("owner") },
	} {
		for _, kind := range []computev1.Compute_Kind{computev1.Compute_KIND_LOCAL, computev1.Compute_KIND_SELF_HOSTED} {
			t.Run(name+"/"+kind.String(), func(t *testing.T) {
				l := newFenced(t, member, change)
				l.assign("host", sub1, authz.Owner)
				c := l.target(kind, 1)
				r := l.submit(c, "r")
				l.advance(time.Second)
				if kind == computev1.Compute_KIND_LOCAL {
					must(t, l.s.queue.StartQueued(t.Context()))
				} else if b, err := l.computes().ClaimRun(l.as("host"), &computev1.ClaimRunRequest{Name: c}); err != nil || b.GetBootstrap() != nil {
					t.Errorf("claimed: %v %v", b, err)
				}
				l.is(name, r.GetUid(), computev1.Run_STATE_FAILED, faultv1.Reason_RUN_SUBMITTER_DENIED)
				if n := l.driver.starts(r.GetUid()) + len(l.peers.joins); n != 0 {
					t.Error("it was started")
				}
			})
		}
	}
}

// D10: an installation that starts nothing on its own machine refuses local targets, and ends what waited for one from before.
func TestNoLocalTargets(t *testing.T) {
	before := newLab(t)
	r := before.submit(before.target(computev1.Compute_KIND_LOCAL, 1), "r")
	before.cfg.NoLocalTargets = true
	before.restart()
	before.step()
	before.is("from before", r.GetUid(), computev1.Run_STATE_FAILED, faultv1.Reason_TARGET_KIND_OFF)
	if n := before.driver.starts(r.GetUid()); n != 0 {
		t.Errorf("started %d times", n)
	}
	l := newStill(t, sqldbtest.Open(t, envelope.Migrations(), audit.Migrations(), Migrations()))
	l.cfg.NoLocalTargets = true
	l.restart()
	l.serve()
	_, err := l.computes().CreateCompute(l.as("owner"), &computev1.CreateComputeRequest{Parent: ws1, ComputeId: "c", Kind: computev1.Compute_KIND_LOCAL})
	if fault.ReasonOf(fault.FromStatus(err)) != faultv1.Reason_TARGET_KIND_OFF {
		t.Errorf("a local target: %v", err)
	}
	l.target(computev1.Compute_KIND_SELF_HOSTED, 1)
}

// Where a clock is wrong, our own token for the submitter is refused: that is no word about him. The run waits and says so, for a bounded time.
func TestClockIsNoDenial(t *testing.T) {
	l := newLab(t)
	r := l.submit(l.target(computev1.Compute_KIND_LOCAL, 2), "r")
	refuse := func(p *peers) {
		p.snapshot = fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "the token is over")
	}
	turn := func(name, uid, message string) {
		t.Helper()
		if err := l.s.queue.StartQueued(t.Context()); !fault.Is(err, codes.Unauthenticated) {
			t.Errorf("%s: got %v", name, err)
		}
		l.is(name, uid, computev1.Run_STATE_QUEUED, 0)
		if m := l.stored(uid).Outcome.GetMessage(); !strings.Contains(m, message) {
			t.Errorf("%s: %q", name, m)
		}
	}
	l.peers.set(refuse)
	turn("at once", r.GetUid(), "the token is over")
	version := l.stored(r.GetUid()).Version
	l.advance(30 * time.Minute)
	turn("meanwhile", r.GetUid(), "it waits")
	if got := l.stored(r.GetUid()).Version; got != version {
		t.Error("it is written each time")
	}
	l.peers.set(func(p *peers) { p.snapshot = nil })
	l.step()
	l.is("afterwards", r.GetUid(), computev1.Run_STATE_STARTING, 0)
	if m := l.stored(r.GetUid()).Outcome.GetMessage(); m != "" {
		t.Errorf("it says still: %q", m)
	}

	never := l.submit(ws1+"/computes/local", "never")
	l.peers.set(refuse)
	turn("the next", never.GetUid(), "it waits")
	l.advance(30*time.Minute + time.Second)
	must(t, l.s.queue.StartQueued(t.Context()))
	l.is("in the end", never.GetUid(), computev1.Run_STATE_FAILED, faultv1.Reason_SERVICE_UNAVAILABLE)
	if m := l.stored(never.GetUid()).Outcome.GetMessage(); !strings.Contains(m, "clocks") {
		t.Errorf("it says %q", m)
	}
}

// While a peer is away a run waits; afterwards it goes on.
func TestPeerAway(t *testing.T) {
	l := newLab(t)
	r := l.submit(l.target(computev1.Compute_KIND_LOCAL, 1), "r")
	l.peers.set(func(p *peers) { p.away = fault.Unavailable("away") })
	if err := l.s.queue.StartQueued(t.Context()); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
	l.is("waits", r.GetUid(), computev1.Run_STATE_QUEUED, 0)
	l.peers.set(func(p *peers) { p.away = nil })
	l.step()
	l.is("goes on", r.GetUid(), computev1.Run_STATE_STARTING, 0)
}

// What waits for one target holds up no other; a target takes no more than it has room for.
func TestRoom(t *testing.T) {
	l := newLab(t)
	hosted, local := l.target(computev1.Compute_KIND_SELF_HOSTED, 1), l.target(computev1.Compute_KIND_LOCAL, 2)
	c, err := l.computes().GetCompute(l.as("owner"), &computev1.GetComputeRequest{Name: hosted})
	must(t, err)
	for i := range 300 { // nobody claims these
		_, err := l.s.store.InsertRun(t.Context(), &store.Run{
			UID: resource.NewUID("run"), Workspace: l.uids[ws1], Kind: computev1.Run_KIND_JOB, Compute: c.GetUid(), Submitter: "usr_owner", State: computev1.Run_STATE_QUEUED, Created: l.now(),
			Spec: l.request(hosted, fmt.Sprintf("h%d", i)),
		}, "", func(context.Context, *sqldb.Tx) error { return nil })
		must(t, err)
	}
	l.advance(time.Second)
	a, b, last := l.submit(local, "a"), l.submit(local, "b"), l.submit(local, "last")
	for range 2 {
		l.step()
		l.is("first", a.GetUid(), computev1.Run_STATE_STARTING, 0)
		l.is("second", b.GetUid(), computev1.Run_STATE_STARTING, 0)
		l.is("third", last.GetUid(), computev1.Run_STATE_QUEUED, 0)
	}
	l.driver.gone[a.GetUid()] = true
	l.step()
	l.step()
	l.is("room again", last.GetUid(), computev1.Run_STATE_STARTING, 0)
}

// H3: a run of a self-hosted target goes to one of those who claim it.
func TestClaim(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_SELF_HOSTED, 1)
	r := l.submit(c, "r")
	l.submit(c, "waits")
	l.step()
	l.is("not started by the platform", r.GetUid(), computev1.Run_STATE_QUEUED, 0)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var got []*computev1.AgentBootstrap
	client := l.computes()
	for range 10 {
		wg.Go(func() {
			res, err := client.ClaimRun(l.as("owner"), &computev1.ClaimRunRequest{Name: c})
			if err != nil {
				t.Error(err)
			}
			if b := res.GetBootstrap(); b != nil {
				mu.Lock()
				got = append(got, b)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(got) != 1 || got[0].GetRunUid() != r.GetUid() || got[0].GetJoinToken() == "" {
		t.Errorf("claimed: %v", got)
	}
	if len(l.peers.joins) != 1 {
		t.Errorf("A4: %d join tokens", len(l.peers.joins))
	} else if j := l.peers.joins[0]; len(j.GetActions()) != 3 || j.GetActions()[0] != "compute/runs/execute runs/r" || j.GetSubmitter() != "usr_owner" {
		t.Errorf("A4: the token opens %v", j)
	}
	_, err := client.ClaimRun(l.as("reader"), &computev1.ClaimRunRequest{Name: c})
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	_, err = client.ClaimRun(l.as("owner"), &computev1.ClaimRunRequest{Name: l.target(computev1.Compute_KIND_LOCAL, 1)})
	want(t, "from a local one", err, codes.FailedPrecondition, 0)
	l.advance(l.cfg.StartGrace + time.Second)
	l.step()
	l.is("never enrolled", r.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
}

// A run that was claimed while the clock was ahead is waited for no longer than any other when the clock is right again (H3).
func TestClockAhead(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_SELF_HOSTED, 1)
	r := l.submit(c, "r")
	l.advance(10 * time.Minute)
	if _, err := l.computes().ClaimRun(l.as("owner"), &computev1.ClaimRunRequest{Name: c}); err != nil {
		t.Fatal(err)
	}
	l.advance(-10 * time.Minute)
	l.step()
	l.is("waited for", r.GetUid(), computev1.Run_STATE_STARTING, 0)
	l.advance(l.cfg.StartGrace + time.Second)
	l.step()
	l.is("given up", r.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
}

// What was silent while nobody looked gets its time anew, and nothing is done to its agent.
func TestAdopt(t *testing.T) {
	l := newLab(t)
	_, uid := l.running(l.target(computev1.Compute_KIND_LOCAL, 2), "r")
	l.advance(time.Hour)
	l.restart()
	must(t, l.s.queue.Recover(t.Context()))
	must(t, l.s.queue.Adopt(t.Context()))
	l.step()
	l.is("adopted", uid, computev1.Run_STATE_RUNNING, 0)
	l.advance(l.cfg.Silence)
	l.step()
	l.is("still", uid, computev1.Run_STATE_RUNNING, 0)
	if len(l.driver.killed)+len(l.driver.cleaned) != 0 {
		t.Errorf("killed %v, cleaned %v", l.driver.killed, l.driver.cleaned)
	}
	l.advance(time.Millisecond)
	l.step()
	l.is("silent", uid, computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	l.advance(l.cfg.LostGrace)
	l.step()
	if !slices.Contains(l.driver.killed, uid) || !slices.Contains(l.driver.cleaned, uid) {
		t.Errorf("killed %v, cleaned %v", l.driver.killed, l.driver.cleaned)
	}
}

// A run that was taken out of the queue by an instance that ended before it had started the agent is lost as soon as that is there
// again, and not before another one's are.
func TestRecover(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 2)
	started, never := l.submit(c, "started"), l.submit(c, "never")
	func() {
		defer func() { _ = recover() }()
		l.driver.before = func() {
			if len(l.driver.started) == 1 {
				panic(crash{})
			}
		}
		_ = l.s.queue.StartQueued(t.Context())
	}()
	l.driver.before = nil
	l.is("taken", never.GetUid(), computev1.Run_STATE_STARTING, 0)
	l.cfg.Instance = "b"
	l.restart()
	must(t, l.s.queue.Recover(t.Context()))
	l.is("another's", never.GetUid(), computev1.Run_STATE_STARTING, 0)
	l.cfg.Instance = "a"
	l.restart()
	must(t, l.s.queue.Recover(t.Context()))
	l.is("its own", never.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	l.is("one that has an agent", started.GetUid(), computev1.Run_STATE_STARTING, 0)
}

// crash is what a process that dies leaves of the call it was in.
type crash struct{}

// H3: a host that dies takes its runs with it, with the reason, and its room is free again; a claim whose answer was lost starts nothing
// twice.
func TestHostDies(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_SELF_HOSTED, 1)
	claim := func() string {
		t.Helper()
		res, err := l.computes().ClaimRun(l.as("owner"), &computev1.ClaimRunRequest{Name: c})
		must(t, err)
		return res.GetBootstrap().GetRunUid()
	}
	carried, unheard, last := l.submit(c, "carried"), l.submit(c, "unheard"), l.submit(c, "last")
	if got := claim(); got != carried.GetUid() {
		t.Fatalf("claimed %s", got)
	}
	a := l.agent(carried.GetUid())
	_, err := a.assignment()
	must(t, err)
	l.advance(l.cfg.Silence)
	l.step()
	if got := claim(); got != "" {
		t.Errorf("claimed %s beside one that goes", got)
	}
	l.advance(time.Millisecond) // no heartbeat since: kill -9
	l.step()
	l.is("its host died", carried.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	if m := l.stored(carried.GetUid()).Outcome.GetMessage(); m == "" {
		t.Error("LOST without a reason")
	}
	if _, ok := l.peers.narrowed[carried.GetUid()]; !ok {
		t.Error("its tokens open what they did")
	}
	if stop, err := a.heartbeat(); err != nil || !stop { // it was only cut off
		t.Errorf("the host is back: %v, %v", stop, err)
	}

	if got := claim(); got != unheard.GetUid() { // the answer does not arrive
		t.Fatalf("claimed %s", got)
	}
	for range 2 {
		if got := claim(); got != "" {
			t.Errorf("claimed %s instead", got)
		}
		l.advance(l.cfg.StartGrace / 2)
		l.step()
	}
	l.advance(time.Second)
	l.step()
	l.is("never heard of", unheard.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	if got := claim(); got != last.GetUid() {
		t.Errorf("claimed %s after that", got)
	}
	if n := l.stored(unheard.GetUid()).Generation; n != 1 {
		t.Errorf("generation %d", n)
	}
}
