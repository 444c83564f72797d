package compute

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// lose has a run's agent be silent for too long.
func (l *lab) lose(uid string) {
	l.t.Helper()
	l.advance(l.cfg.Silence + time.Millisecond)
	l.step()
	l.is("silent", uid, computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
}

// deaf finds that nothing is taken of a run's agent, though its token were let in.
func (a *agent) deaf(name string) {
	a.l.t.Helper()
	const code, reason = codes.FailedPrecondition, faultv1.Reason_RUN_ENDED
	_, err := a.assignment()
	want(a.l.t, name+": assignment", err, code, reason)
	_, err = a.heartbeat()
	want(a.l.t, name+": heartbeat", err, code, reason)
	_, err = a.log(0, "x")
	want(a.l.t, name+": log", err, code, reason)
	_, err = a.upload("late", "x", nil)
	want(a.l.t, name+": output", err, code, reason)
	want(a.l.t, name+": report", a.report(computev1.Run_STATE_COMPLETED, 0, 0), code, reason)
}

// A4, H3: the agent of a run that was given up as lost delivers what it has, within its time and once; the run stays LOST, and says how it ended.
func TestLostDelivers(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_SELF_HOSTED, 4)
	l.submit(c, "r")
	res, err := l.computes().ClaimRun(l.as("owner"), &computev1.ClaimRunRequest{Name: c})
	must(t, err)
	uid := res.GetBootstrap().GetRunUid()
	a := l.agent(uid)
	_, err = a.assignment()
	must(t, err)
	_, err = a.log(0, "before ")
	must(t, err)
	l.lose(uid)
	ended := l.now()
	if got, ok := l.peers.narrowed[uid]; !ok || !got.Equal(ended.Add(l.cfg.LostGrace)) || len(l.peers.revoked) != 0 {
		t.Fatalf("A4: identity was told %v, %v", l.peers.narrowed, l.peers.revoked)
	}
	shown, err := l.runs().GetRun(l.as("reader"), &computev1.GetRunRequest{Name: a.name})
	if must(t, err); !shown.GetDeliverUntil().AsTime().Equal(ended.Add(l.cfg.LostGrace)) || shown.GetReportTime() != nil {
		t.Errorf("shown while it may deliver: %v", shown)
	}

	l.advance(10 * time.Second)
	l.step()
	_, err = a.assignment()
	want(t, "an assignment", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	if stop, err := a.heartbeat(); err != nil || !stop {
		t.Errorf("the agent is not told to end: %v", err)
	}
	thief := l.agent(uid) // the same run, a key of its own
	_, err = thief.log(7, "x")
	want(t, "another's log", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	want(t, "another's report", thief.report(computev1.Run_STATE_COMPLETED, 7, 0), codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	if got, err := a.log(7, "after"); err != nil || got.GetStored() != 12 {
		t.Errorf("log: %v %v", got, err)
	}
	_, err = a.upload("model", "weights", nil)
	must(t, err)
	want(t, "a report before the log", a.report(computev1.Run_STATE_COMPLETED, 13, 1), codes.FailedPrecondition, 0)
	want(t, "a report before the outputs", a.report(computev1.Run_STATE_COMPLETED, 12, 2), codes.FailedPrecondition, 0)
	must(t, a.report(computev1.Run_STATE_COMPLETED, 12, 1))
	l.is("reported", uid, computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	if !slices.Equal(l.peers.revoked, []string{uid}) || !l.stored(uid).Revoked {
		t.Errorf("A4: the token lives on after the report: %v", l.peers.revoked)
	}
	shown, err = l.runs().GetRun(l.as("reader"), &computev1.GetRunRequest{Name: a.name})
	must(t, err)
	if shown.GetReportedState() != computev1.Run_STATE_COMPLETED || !shown.GetReportTime().AsTime().Equal(ended.Add(10*time.Second)) || shown.GetDeliverUntil() != nil ||
		!shown.GetEndTime().AsTime().Equal(ended) || !strings.Contains(shown.GetMessage(), "it came back after 10s and delivered: COMPLETED, exit code 0") || shown.GetLogBytes() != 12 {
		t.Errorf("shown: %v", shown)
	}
	a.deaf("after the report")
	outputs, err := l.runs().ListOutputs(l.as("reader"), &computev1.ListOutputsRequest{Name: a.name})
	if must(t, err); len(outputs.GetOutputs()) != 1 {
		t.Errorf("outputs %v", outputs)
	}
}

// A4: the time to deliver ends by the clock, also where nobody looked when it did; then the tokens are killed, and an agent that is still on this
// machine.
func TestDeliveryEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		away func(l *lab) // while the time ends
	}{
		{"while all goes on", func(l *lab) { l.advance(l.cfg.LostGrace) }},
		{"while compute is down", func(l *lab) {
			l.advance(l.cfg.LostGrace)
			l.restart()
		}},
		{"while identity is away", func(l *lab) {
			l.peers.set(func(p *peers) { p.away = fault.Unavailable("identity is away") })
			l.advance(l.cfg.LostGrace)
			_ = l.s.queue.RevokeEnded(l.t.Context())
			l.peers.set(func(p *peers) { p.away = nil })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			a, uid := l.running(l.target(computev1.Compute_KIND_LOCAL, 4), "r")
			l.lose(uid)
			l.advance(l.cfg.LostGrace - time.Millisecond)
			l.step()
			if _, err := a.log(0, "in time"); err != nil {
				t.Errorf("just in time: %v", err)
			}
			if len(l.driver.killed) != 0 || len(l.driver.cleaned) != 0 || len(l.peers.revoked) != 0 {
				t.Errorf("killed %v, cleaned %v, revoked %v before its time was over", l.driver.killed, l.driver.cleaned, l.peers.revoked)
			}
			l.advance(-(l.cfg.LostGrace - time.Millisecond))
			tc.away(l)
			a.deaf("at the end") // before anybody has looked
			l.step()
			if !slices.Contains(l.driver.killed, uid) || !slices.Contains(l.driver.cleaned, uid) || !slices.Equal(l.peers.revoked, []string{uid}) {
				t.Errorf("killed %v, cleaned %v, revoked %v", l.driver.killed, l.driver.cleaned, l.peers.revoked)
			}
			a.deaf("after it")
			if got := l.stored(uid); got.State != computev1.Run_STATE_LOST || got.LogBytes != 7 || !got.ReportedAt.IsZero() {
				t.Errorf("what it delivered is not there: %+v", got)
			}
		})
	}
}

// A4: from when a run is cancelled, or has had its time, its token opens what delivers and no more: everywhere when CancelRun has returned.
func TestCancelledOnlyDelivers(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 8)
	cancel := func(a *agent) (*computev1.Run, error) {
		return l.runs().CancelRun(l.as("owner"), &computev1.CancelRunRequest{Name: a.name})
	}
	a, uid := l.running(c, "r")
	_, err := cancel(a)
	must(t, err)
	if got, ok := l.peers.narrowed[uid]; !ok || !got.Equal(l.now().Add(l.cfg.CancelGrace)) || len(l.peers.revoked) != 0 {
		t.Fatalf("identity was told %v, %v", l.peers.narrowed, l.peers.revoked)
	}
	_, err = a.upload("model", "weights", nil)
	must(t, err)
	must(t, a.report(computev1.Run_STATE_CANCELED, 0, 1))
	l.is("reported", uid, computev1.Run_STATE_CANCELED, 0)
	if !slices.Equal(l.peers.revoked, []string{uid}) {
		t.Errorf("the token lives on: %v", l.peers.revoked)
	}
	a.deaf("after the report")

	// Where identity does not answer, whoever cancels hears so; the run is asked to stop all the same, and the queue tells identity.
	b, uid := l.running(c, "pending")
	l.peers.set(func(p *peers) { p.away = fault.Unavailable("identity is away") })
	for range 2 {
		_, err = cancel(b)
		want(t, "identity is away", err, codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING)
	}
	if stop, err := b.heartbeat(); err != nil || !stop {
		t.Errorf("the agent is not told: %v", err)
	}
	l.peers.set(func(p *peers) { p.away = nil })
	l.step()
	if _, ok := l.peers.narrowed[uid]; !ok {
		t.Error("nobody tells identity again")
	}
	if _, err = cancel(b); err != nil {
		t.Errorf("once more: %v", err)
	}

	// Silence gives no more time than being cancelled does.
	silent, uid := l.running(c, "silent")
	_, err = cancel(silent)
	must(t, err)
	at := l.now()
	l.lose(uid)
	if got := l.stored(uid).DeliverUntil; !got.Equal(at.Add(l.cfg.CancelGrace)) {
		t.Errorf("it may deliver until %v", got.Sub(at))
	}
}

// A4: a run whose agent is known to have died, or never came, has nothing that could be delivered.
func TestNobodyDelivers(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 8)
	a, uid := l.running(c, "died")
	l.driver.gone[uid] = true
	l.step()
	l.is("died", uid, computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	a.deaf("died")
	never := l.submit(c, "never")
	l.step()
	l.advance(l.cfg.StartGrace + time.Second)
	l.step()
	l.is("never", never.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	if len(l.peers.narrowed) != 0 || len(l.peers.revoked) != 2 {
		t.Errorf("identity was told %v, %v", l.peers.narrowed, l.peers.revoked)
	}
	// Nor does one to a run that is deleted, or whose workspace is.
	b, gone := l.running(c, "deleted")
	l.lose(gone)
	_, err := l.s.store.Update(t.Context(), gone, func(context.Context, *sqldb.Tx, *store.Run) error { return nil }, nil)
	must(t, err)
	_, err = computev1.NewTrackingServiceClient(l.dial("gateway")).DeleteRun(l.as("owner"), &computev1.DeleteRunRequest{Name: b.name})
	must(t, err)
	_, err = b.heartbeat()
	want(t, "of a deleted run", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	_, err = b.log(0, "x")
	want(t, "to the log of a deleted run", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	_, err = computev1.NewRunInternalServiceClient(l.dial("workspace")).PurgeWorkspace(t.Context(), &computev1.PurgeWorkspaceRequest{WorkspaceUid: l.uids[ws1]})
	must(t, err)
	if !slices.Contains(l.peers.revoked, gone) {
		t.Error("A4: purged with a token that delivers")
	}
}

// Files that its agent has delivered are the agent's until its time is over: nobody changes what it will count.
func TestDeliveredFilesAreTheAgents(t *testing.T) {
	l := newLab(t)
	a, uid := l.running(l.target(computev1.Compute_KIND_LOCAL, 1), "r")
	l.lose(uid)
	_, err := a.upload("model", "weights", nil)
	must(t, err)
	_, err = l.s.store.DeleteOutputs(t.Context(), l.stored(uid), l.left(uid), func(context.Context, *sqldb.Tx) error { return nil })
	want(t, "while it may deliver", err, codes.FailedPrecondition, 0)
	must(t, a.report(computev1.Run_STATE_FAILED, 0, 1))
	_, err = l.s.store.DeleteOutputs(t.Context(), l.stored(uid), l.left(uid), func(context.Context, *sqldb.Tx) error { return nil })
	must(t, err)
}

// left is what a run has left.
func (l *lab) left(uid string) []store.Output {
	l.t.Helper()
	list, err := l.s.store.Outputs(l.t.Context(), l.stored(uid))
	must(l.t, err)
	return list
}
