package compute

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

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

// While a peer is away a run waits; afterwards it goes on.
func TestPeerAway(t *testing.T) {
	l := newLab(t)
	r := l.submit(l.target(computev1.Compute_KIND_LOCAL, 1), "r")
	l.peers.set(func(p *peers) { p.away = fault.Unavailable("away") })
	if err := l.s.startQueued(t.Context()); !fault.Is(err, codes.Unavailable) {
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

// Adopting keeps every agent whose run has not ended, and counts its silence anew.
func TestAdopt(t *testing.T) {
	l := newLab(t)
	_, uid := l.running(l.target(computev1.Compute_KIND_LOCAL, 2), "r")
	l.advance(time.Hour)
	l.restart()
	must(t, l.s.adopt(t.Context()))
	l.step()
	l.is("adopted", uid, computev1.Run_STATE_RUNNING, 0)
	if len(l.driver.kept) != 1 || l.driver.kept[0] != uid {
		t.Errorf("kept %v", l.driver.kept)
	}
}

// crash is what a process that dies leaves of the call it was in.
type crash struct{}

// H3: whatever dies when, no run is started twice, each ends, and once ended it stays as it is.
func TestStartedOnce(t *testing.T) {
	db := sqldbtest.Open(t, envelope.Migrations(), audit.Migrations(), Migrations())
	l := newStill(t, db)
	cmp := store.Compute{UID: resource.NewUID("cmp"), Workspace: l.uids[ws1], ID: "c", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 2}
	nothing := func(context.Context, *sqldb.Tx) error { return nil }
	must(t, l.s.store.InsertCompute(t.Context(), cmp, nothing))
	number := 0
	rapid.Check(t, func(r *rapid.T) {
		var uids []string
		ended := make(map[string]computev1.Run_State)
		l.driver.fail, l.driver.before = nil, nil
		l.peers.set(func(p *peers) { p.away, p.join, p.actAs = nil, nil, nil })
		dying := func(fn func()) {
			defer func() {
				if p := recover(); p != nil {
					if _, ok := p.(crash); !ok {
						panic(p)
					}
					l.restart()
				}
			}()
			fn()
		}
		turn := func() {
			_ = l.s.startQueued(t.Context()) // its errors are logged, and it is called again
			_ = l.s.watchActive(t.Context())
			_ = l.s.revokeEnded(t.Context())
		}
		r.Repeat(map[string]func(*rapid.T){
			"submit": func(*rapid.T) {
				number++
				run := &store.Run{
					UID: resource.NewUID("run"), Workspace: l.uids[ws1], Kind: computev1.Run_KIND_JOB, Compute: cmp.UID, Submitter: "usr_owner", State: computev1.Run_STATE_QUEUED, Created: l.now(),
					Spec: l.request(ws1+"/computes/c", fmt.Sprintf("r%d", number)),
				}
				_, err := l.s.store.InsertRun(t.Context(), run, "", nothing)
				must(t, err)
				uids = append(uids, run.UID)
			},
			"turn": func(*rapid.T) { turn() },
			"die before the driver starts": func(*rapid.T) {
				l.driver.before = func() { panic(crash{}) }
				dying(turn)
				l.driver.before = nil
			},
			"die and adopt": func(*rapid.T) {
				l.restart()
				must(t, l.s.adopt(t.Context()))
			},
			"two at once": func(*rapid.T) {
				other, err := New(l.cfg)
				must(t, err)
				var wg sync.WaitGroup
				for _, s := range []*Service{l.s, other} {
					wg.Go(func() { _ = s.startQueued(t.Context()) })
				}
				wg.Wait()
			},
			"identity comes and goes": func(*rapid.T) {
				l.peers.set(func(p *peers) {
					if p.away == nil {
						p.away = fault.Unavailable("away")
					} else {
						p.away = nil
					}
				})
			},
			"no join": func(*rapid.T) {
				l.peers.set(func(p *peers) { p.join = fault.Unavailable("away") })
				turn()
				l.peers.set(func(p *peers) { p.join = nil })
			},
			"the agent dies": func(r *rapid.T) {
				if len(uids) > 0 {
					l.driver.gone[rapid.SampledFrom(uids).Draw(r, "uid")] = true
				}
			},
			"time": func(r *rapid.T) { l.advance(time.Duration(rapid.IntRange(1, 8000).Draw(r, "ms")) * time.Millisecond) },
			"": func(r *rapid.T) {
				for _, uid := range uids {
					run := l.stored(uid)
					if n := l.driver.starts(uid); n > 1 || n > 0 && run.State == computev1.Run_STATE_QUEUED || run.Generation > 1 {
						r.Fatalf("%s: started %d times, generation %d, %v", uid, n, run.Generation, run.State)
					}
					if was, ok := ended[uid]; ok && was != run.State {
						r.Fatalf("%s: ended as %v, is %v", uid, was, run.State)
					}
					if run.HasEnded() {
						ended[uid] = run.State
					}
				}
			},
		})
		l.peers.set(func(p *peers) { p.away = nil })
		for range 2 * (len(uids) + 1) {
			l.advance(l.cfg.StartGrace + time.Second)
			turn()
		}
		for _, uid := range uids {
			if run := l.stored(uid); !run.HasEnded() || run.Generation > 0 && !run.Revoked {
				r.Fatalf("%s never ends: %v, revoked %v", uid, run.State, run.Revoked)
			}
		}
	})
}
