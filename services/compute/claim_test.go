package compute

import (
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// claim claims a run with an id, as a user.
func (l *lab) claim(user, target, id string) (*computev1.AgentBootstrap, error) {
	res, err := l.computes().ClaimRun(l.as(user), &computev1.ClaimRunRequest{Name: target, ClaimId: id})
	return res.GetBootstrap(), err
}

// H3, A4: a claim whose answer was lost is repeated, and gives the same run with a join token in place of the one before: while no agent has come
// with it, and never another run.
func TestClaimIsRepeated(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_SELF_HOSTED, 8)
	first, second, third := l.submit(c, "first"), l.submit(c, "second"), l.submit(c, "third")
	got, err := l.claim("owner", c, "one")
	must(t, err)
	if got.GetRunUid() != first.GetUid() {
		t.Fatalf("claimed %v", got)
	}
	seen := map[string]bool{got.GetJoinToken(): true}
	for range 3 { // the answers do not arrive
		l.advance(l.cfg.StartGrace - time.Second)
		again, err := l.claim("owner", c, "one")
		must(t, err)
		if again.GetRunUid() != first.GetUid() || seen[again.GetJoinToken()] {
			t.Fatalf("repeated: %v, after %v", again, got)
		}
		seen[again.GetJoinToken()] = true
		l.step()
		l.is("it has its time anew", first.GetUid(), computev1.Run_STATE_STARTING, 0)
	}
	if n := l.stored(first.GetUid()).Generation; n != 1 {
		t.Errorf("generation %d", n)
	}
	// The same id is another claim of somebody else, and at another target.
	l.assign("other", sub1, authz.Owner)
	other, err := l.claim("other", c, "one")
	if must(t, err); other.GetRunUid() != second.GetUid() {
		t.Errorf("somebody else's claim gives %v", other)
	}
	elsewhere, err := l.computes().CreateCompute(l.as("owner"), &computev1.CreateComputeRequest{Parent: ws1, ComputeId: "elsewhere", Kind: computev1.Compute_KIND_SELF_HOSTED})
	must(t, err)
	if got, err := l.claim("owner", elsewhere.GetName(), "one"); err != nil || got != nil {
		t.Errorf("at another target: %v, %v", got, err)
	}

	used := func(name, id string) {
		t.Helper()
		_, err := l.claim("owner", c, id)
		want(t, name, err, codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED)
	}
	l.peers.set(func(p *peers) { p.enrolled = map[string]bool{first.GetUid(): true} })
	used("its agent has enrolled", "one")
	l.is("enrolled", first.GetUid(), computev1.Run_STATE_STARTING, 0)
	a := l.agent(first.GetUid())
	_, err = a.assignment()
	must(t, err)
	used("its agent carries it", "one")
	must(t, a.report(computev1.Run_STATE_COMPLETED, 0, 0))
	used("it has ended", "one")
	l.is("waits for another claim", third.GetUid(), computev1.Run_STATE_QUEUED, 0)
	got, err = l.claim("owner", c, "two")
	if must(t, err); got.GetRunUid() != third.GetUid() {
		t.Errorf("the next claim gives %v", got)
	}
	_, err = l.runs().CancelRun(l.as("owner"), &computev1.CancelRunRequest{Name: third.GetName()})
	must(t, err)
	used("it was cancelled", "two")
	l.advance(l.cfg.StartGrace + time.Second)
	l.step()
	l.is("never repeated", second.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	_, err = l.claim("other", c, "one")
	want(t, "too late", err, codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED)
	_, err = l.claim("owner", c, strings.Repeat("x", 65))
	want(t, "an id without bound", err, codes.InvalidArgument, 0)
}

// H3: compute dies between the commit by which a run leaves the queue and the answer, or identity is away then: the repeated claim gives the run.
func TestClaimOutlivesCompute(t *testing.T) {
	for name, fail := range map[string]func(l *lab, target string){
		"killed before the join token": func(l *lab, target string) {
			l.peers.set(func(p *peers) { p.joining = func() { panic(crash{}) } })
			defer l.peers.set(func(p *peers) { p.joining = nil })
			_, _ = l.claim("owner", target, "one")
		},
		"identity is away": func(l *lab, target string) {
			l.peers.set(func(p *peers) { p.join = fault.Unavailable("identity is away") })
			defer l.peers.set(func(p *peers) { p.join = nil })
			_, err := l.claim("owner", target, "one")
			want(l.t, "identity is away", err, codes.Unavailable, 0)
		},
		"killed before the answer": func(l *lab, target string) {
			_, err := l.claim("owner", target, "one")
			must(l.t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			c := l.target(computev1.Compute_KIND_SELF_HOSTED, 8)
			r, waits := l.submit(c, "r"), l.submit(c, "waits")
			fail(l, c)
			l.is("taken", r.GetUid(), computev1.Run_STATE_STARTING, 0)
			l.restart()
			must(t, l.s.queue.Recover(t.Context()))
			l.serve()
			for _, c := range l.conns { // to where it was
				_ = c.Close()
			}
			clear(l.conns)
			got, err := l.claim("owner", c, "one")
			must(t, err)
			if got.GetRunUid() != r.GetUid() || got.GetJoinToken() == "" {
				t.Errorf("repeated: %v", got)
			}
			l.is("another", waits.GetUid(), computev1.Run_STATE_QUEUED, 0)
			_, err = l.agent(r.GetUid()).assignment()
			must(t, err)
			l.is("carried", r.GetUid(), computev1.Run_STATE_RUNNING, 0)
		})
	}
}

// H3: calls with one claim that come at once get one run between them, also those that wait when a run comes; and none takes the join token
// from under another that was answered.
func TestClaimsAtOnce(t *testing.T) {
	for _, waiting := range []bool{false, true} {
		l := newLab(t)
		c := l.target(computev1.Compute_KIND_SELF_HOSTED, 64)
		if !waiting {
			for range 8 {
				l.submit(c, "")
			}
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		given := make(map[string]int)
		for range 8 {
			wg.Go(func() {
				res, err := l.computes().ClaimRun(l.as("owner"), &computev1.ClaimRunRequest{Name: c, ClaimId: "one", Wait: durationpb.New(2 * time.Second)})
				if err != nil && !fault.Is(fault.FromStatus(err), codes.Aborted) {
					t.Error(err)
				}
				if b := res.GetBootstrap(); b != nil {
					mu.Lock()
					defer mu.Unlock()
					given[b.GetRunUid()]++
				}
			})
		}
		if waiting {
			time.Sleep(300 * time.Millisecond) // until all of them wait: the server's clock is the test's, a call's is not
			for range 8 {
				l.submit(c, "")
			}
		}
		wg.Wait()
		if len(given) != 1 {
			t.Errorf("waiting %v: given %v", waiting, given)
		}
		if waiting && len(l.peers.joins) != 1 {
			t.Errorf("%d join tokens: one that was answered is void", len(l.peers.joins))
		}
	}
}
