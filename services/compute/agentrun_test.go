package compute

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// H3, A4: a run from its submission to its end, as its agent has it; the end is final.
func TestAgentCarriesRun(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 4)
	r := l.submit(c, "r")
	uid := r.GetUid()
	a := l.agent(uid)
	_, err := a.assignment()
	want(t, "the assignment of a queued run", err, codes.FailedPrecondition, 0)
	l.step()
	l.is("started", uid, computev1.Run_STATE_STARTING, 0)

	// Nothing before the assignment: whoever carries the run is not settled.
	_, err = a.heartbeat()
	want(t, "heartbeat first", err, codes.FailedPrecondition, 0)
	_, err = a.log(0, "x")
	want(t, "log first", err, codes.FailedPrecondition, 0)
	_, err = a.upload("f", "x", nil)
	want(t, "output first", err, codes.FailedPrecondition, 0)
	want(t, "report first", a.report(computev1.Run_STATE_COMPLETED, 0, 0), codes.FailedPrecondition, 0)

	got, err := a.assignment()
	must(t, err)
	if got.GetRunUid() != uid || got.GetRun() != r.GetName() || got.GetCommand()[0] != "true" || got.GetHeartbeat().AsDuration() != l.cfg.Heartbeat || got.GetLimits().GetLogBytes() != 1000 {
		t.Errorf("assignment %v", got)
	}
	l.is("assigned", uid, computev1.Run_STATE_RUNNING, 0)
	if _, err := a.assignment(); err != nil {
		t.Errorf("the same agent again: %v", err)
	}
	second := l.agent(uid) // the same run, a key of its own
	_, err = second.assignment()
	want(t, "assignment to a second agent", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	_, err = second.heartbeat()
	want(t, "heartbeat of a second agent", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	_, err = second.log(0, "x")
	want(t, "log of a second agent", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	_, err = second.upload("f", "x", nil)
	want(t, "output of a second agent", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	want(t, "report of a second agent", second.report(computev1.Run_STATE_COMPLETED, 0, 0), codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)
	stolen := *a
	stolen.prover = second.prover
	_, err = stolen.heartbeat()
	want(t, "the token with another key", err, codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID)
	other := l.submit(c, "other")
	l.step()
	across := *a
	across.name = other.GetName()
	_, err = across.assignment()
	want(t, "the token at another run", err, codes.NotFound, 0)
	_, err = l.runs().GetRun(a.ctx("GetRun"), &computev1.GetRunRequest{Name: r.GetName()})
	if err == nil {
		t.Error("a run token reads runs")
	}

	res, err := a.log(0, "hello")
	if must(t, err); res.GetStored() != 5 {
		t.Errorf("log: %v", res)
	}
	_, err = a.upload("out/model", strings.Repeat("m", 500), nil)
	must(t, err)
	want(t, "report before the log", a.report(computev1.Run_STATE_COMPLETED, 6, 1), codes.FailedPrecondition, 0)
	want(t, "report before the outputs", a.report(computev1.Run_STATE_COMPLETED, 5, 2), codes.FailedPrecondition, 0)
	want(t, "report without an output", a.report(computev1.Run_STATE_COMPLETED, 5, 0), codes.FailedPrecondition, 0)
	for _, s := range []computev1.Run_State{0, 1, 2, 3, 4, 8} {
		want(t, "report "+s.String(), a.report(s, 5, 1), codes.InvalidArgument, 0)
	}
	l.is("still", uid, computev1.Run_STATE_RUNNING, 0)
	must(t, a.report(computev1.Run_STATE_COMPLETED, 5, 1))
	l.is("reported", uid, computev1.Run_STATE_COMPLETED, 0)
	if got := l.stored(uid); !got.Revoked || len(l.peers.revoked) != 1 {
		t.Errorf("A4: the token lives on: %v", l.peers.revoked)
	}

	want(t, "report twice", a.report(computev1.Run_STATE_FAILED, 5, 1), codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	_, err = a.heartbeat()
	want(t, "heartbeat after the end", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	_, err = a.log(5, "late")
	want(t, "log after the end", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	_, err = a.upload("late", "x", nil)
	want(t, "output after the end", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	_, err = a.assignment()
	want(t, "assignment after the end", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
	l.is("at last", uid, computev1.Run_STATE_COMPLETED, 0)
	before := l.stored(uid).Version
	got2, err := l.runs().CancelRun(l.as("owner"), &computev1.CancelRunRequest{Name: r.GetName()})
	if must(t, err); got2.GetState() != computev1.Run_STATE_COMPLETED || got2.GetCancelRequested() || l.stored(uid).Version != before {
		t.Errorf("cancelling what has ended changed it: %v", got2)
	}
}

// D1: outputs are whole or not there, within their limits, and come back as they were.
func TestUploads(t *testing.T) {
	l := newLab(t)
	a, uid := l.running(l.target(computev1.Compute_KIND_LOCAL, 1), "r")
	for _, tc := range []struct {
		name, path, content string
		change              func(*computev1.UploadOutputRequest)
		code                codes.Code
		reason              faultv1.Reason
	}{
		{"plain", "a", strings.Repeat("a", 700), nil, codes.OK, 0},
		{"in its place", "a", strings.Repeat("b", 600), nil, codes.OK, 0},
		{"empty", "dir/empty", "", nil, codes.OK, 0},
		{"a bad path", "../a", "x", nil, codes.InvalidArgument, faultv1.Reason_PATH_INVALID},
		{"another digest", "b", "x", func(r *computev1.UploadOutputRequest) { r.Digest[0] ^= 1 }, codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		{"no digest", "b", "x", func(r *computev1.UploadOutputRequest) { r.Digest = nil }, codes.InvalidArgument, 0},
		{"shorter than announced", "b", "x", func(r *computev1.UploadOutputRequest) { r.Size = 2 }, codes.InvalidArgument, faultv1.Reason_DIGEST_MISMATCH},
		{"longer than announced", "b", "xxx", func(r *computev1.UploadOutputRequest) { r.Size = 2 }, codes.InvalidArgument, 0},
		{"negative size", "b", "x", func(r *computev1.UploadOutputRequest) { r.Size = -1 }, codes.InvalidArgument, 0},
		{"one too big", "b", strings.Repeat("x", 1001), nil, codes.ResourceExhausted, 0},
		{"too much in all", "b", strings.Repeat("x", 401), nil, codes.ResourceExhausted, 0},
		{"just as much", "b", strings.Repeat("x", 400), nil, codes.OK, 0},
		{"too many", "c", "", nil, codes.ResourceExhausted, 0},
	} {
		_, err := a.upload(tc.path, tc.content, tc.change)
		want(t, tc.name, err, tc.code, tc.reason)
	}
	name := l.stored(uid).Name()
	list, err := l.runs().ListOutputs(l.as("reader"), &computev1.ListOutputsRequest{Name: name})
	must(t, err)
	got := make(map[string]string)
	for _, o := range list.GetOutputs() {
		s, err := l.runs().DownloadOutput(l.as("owner"), &computev1.DownloadOutputRequest{Name: name, Path: o.GetPath()})
		must(t, err)
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
			got[o.GetPath()] += string(m.GetData())
		}
	}
	if len(got) != 3 && len(list.GetOutputs()) != 3 || got["a"] != strings.Repeat("b", 600) || got["b"] != strings.Repeat("x", 400) || got["dir/empty"] != "" {
		t.Errorf("came back: %v", list)
	}
	blobs := 0
	for _, err := range l.cfg.Blobs.List(t.Context(), l.uids[ws1]) {
		must(t, err)
		blobs++
	}
	if blobs != 3 {
		t.Errorf("%d blobs for 3 outputs: what was refused or replaced has left something", blobs)
	}
	// The run's end and its purge leave nothing.
	must(t, a.report(computev1.Run_STATE_COMPLETED, 0, 3))
	internal := computev1.NewRunInternalServiceClient(l.dial("workspace"))
	for range 2 {
		_, err = internal.PurgeWorkspace(t.Context(), &computev1.PurgeWorkspaceRequest{WorkspaceUid: l.uids[ws1]})
		must(t, err)
	}
	for info := range l.cfg.Blobs.List(t.Context(), l.uids[ws1]) {
		t.Errorf("%s is left", info.Name)
	}
}

// Cancelling, in each state that a run can be in.
func TestCancel(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 64)
	cancel := func(name string) *computev1.Run {
		t.Helper()
		r, err := l.runs().CancelRun(l.as("owner"), &computev1.CancelRunRequest{Name: name})
		must(t, err)
		return r
	}
	queued := l.submit(c, "queued")
	cancel(queued.GetName())
	l.step()
	l.is("queued", queued.GetUid(), computev1.Run_STATE_CANCELED, 0)
	if l.driver.starts(queued.GetUid()) != 0 {
		t.Error("a cancelled run was started")
	}

	starting := l.submit(c, "starting")
	l.step()
	cancel(starting.GetName())
	good, goodUID := l.running(c, "good")
	bad, badUID := l.running(c, "bad")
	cancel(good.name)
	cancel(bad.name)
	if stop, err := good.heartbeat(); err != nil || !stop {
		t.Errorf("the agent is not told: %v", err)
	}
	must(t, good.report(computev1.Run_STATE_CANCELED, 0, 0))
	l.is("reported", goodUID, computev1.Run_STATE_CANCELED, 0)
	for range 5 {
		l.advance(time.Second)
		_, err := bad.heartbeat()
		must(t, err)
		l.step()
	}
	l.is("in its grace", badUID, computev1.Run_STATE_RUNNING, 0)
	cancel(bad.name) // asking again gives no more time
	l.advance(time.Second)
	l.step()
	l.is("past its grace", badUID, computev1.Run_STATE_CANCELED, 0)
	l.is("cancelled while starting", starting.GetUid(), computev1.Run_STATE_CANCELED, 0)
	if len(l.driver.killed) != 2 {
		t.Errorf("killed %v", l.driver.killed)
	}
	_, err := l.runs().CancelRun(l.as("reader"), &computev1.CancelRunRequest{Name: bad.name})
	want(t, "by a reader", err, codes.PermissionDenied, 0)
}

// A run is lost when no agent comes, when it dies on the way, or after three heartbeats of silence; and stopped when its time is over.
func TestLostAndTimeout(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 64)
	never, died := l.submit(c, "never"), l.submit(c, "died")
	l.step()
	silent, silentUID := l.running(c, "silent")
	l.driver.gone[died.GetUid()] = true
	l.step()
	l.is("died", died.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	l.advance(3 * time.Second)
	l.step()
	l.is("three heartbeats", silentUID, computev1.Run_STATE_RUNNING, 0)
	l.advance(time.Millisecond)
	l.step()
	l.is("more", silentUID, computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)
	if stop, err := silent.heartbeat(); err != nil || !stop {
		t.Errorf("the lost agent is not told to end: %v", err)
	}
	l.is("in its grace", never.GetUid(), computev1.Run_STATE_STARTING, 0)
	l.advance(7 * time.Second)
	l.step()
	l.is("after it", never.GetUid(), computev1.Run_STATE_LOST, faultv1.Reason_SERVICE_UNAVAILABLE)

	for _, tc := range []struct {
		id     string
		report computev1.Run_State
		state  computev1.Run_State
		reason faultv1.Reason
	}{
		{"hung", 0, computev1.Run_STATE_FAILED, faultv1.Reason_DEADLINE_PASSED},
		{"stopped", computev1.Run_STATE_CANCELED, computev1.Run_STATE_FAILED, faultv1.Reason_DEADLINE_PASSED},
	} {
		req := l.request(c, tc.id)
		req.Limits = &computev1.RunLimits{Timeout: durationpb.New(2 * time.Second)}
		r, err := l.runs().SubmitRun(l.as("owner"), req)
		must(t, err)
		l.step()
		a := l.agent(r.GetUid())
		_, err = a.assignment()
		must(t, err)
		stop := false
		for range 3 {
			if stop {
				t.Errorf("%s: stopped before its time", tc.id)
			}
			l.advance(time.Second)
			l.step()
			stop, err = a.heartbeat()
			must(t, err)
		}
		if !stop {
			t.Fatalf("%s: not stopped", tc.id)
		}
		if tc.report != 0 {
			must(t, a.report(tc.report, 0, 0))
		}
		for range 6 {
			l.advance(time.Second)
			l.step()
			_, _ = a.heartbeat()
		}
		l.is(tc.id, r.GetUid(), tc.state, tc.reason)
	}
	// A timeout that comes too late changes nothing of the end.
	a, uid := l.running(c, "in-time")
	must(t, a.report(computev1.Run_STATE_COMPLETED, 0, 0))
	l.s.queue.TimeOut(t.Context(), uid, time.Second)
	l.is("in time", uid, computev1.Run_STATE_COMPLETED, 0)
}

// A4: the end of a run is answered when its token is refused everywhere; where that is not known the agent hears so, and the run has ended all
// the same.
func TestReportSaysWhatIsPending(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 4)
	for id, away := range map[string]error{
		"pending": fault.New(codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING, "nothing was heard of telemetry/a"),
		"away":    fault.Unavailable("identity is away"),
	} {
		a, uid := l.running(c, id)
		l.peers.set(func(p *peers) { p.away = away })
		want(t, id, a.report(computev1.Run_STATE_COMPLETED, 0, 0), codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING)
		l.is(id, uid, computev1.Run_STATE_COMPLETED, 0)
		if l.stored(uid).Revoked {
			t.Errorf("%s: the token passes for revoked", id)
		}
		want(t, id+", once more", a.report(computev1.Run_STATE_COMPLETED, 0, 0), codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
		l.peers.set(func(p *peers) { p.away = nil })
		must(t, l.s.queue.RevokeEnded(t.Context()))
		if !l.stored(uid).Revoked {
			t.Errorf("%s: nobody asks identity again", id)
		}
	}
}

// Purging ends what runs, and waits for identity to kill its tokens.
func TestPurgeWorkspace(t *testing.T) {
	l := newLab(t)
	c := l.target(computev1.Compute_KIND_LOCAL, 4)
	a, uid := l.running(c, "r")
	client := computev1.NewRunInternalServiceClient(l.dial("workspace"))
	l.peers.set(func(p *peers) { p.away = errors.New("away") })
	_, err := client.PurgeWorkspace(t.Context(), &computev1.PurgeWorkspaceRequest{WorkspaceUid: l.uids[ws1]})
	if err == nil || l.stored(uid).Revoked {
		t.Error("A4: purged with a token alive")
	}
	l.peers.set(func(p *peers) { p.away = nil })
	_, err = client.PurgeWorkspace(t.Context(), &computev1.PurgeWorkspaceRequest{WorkspaceUid: l.uids[ws1]})
	must(t, err)
	if len(l.driver.killed) == 0 || len(l.peers.revoked) != 1 {
		t.Errorf("killed %v, revoked %v", l.driver.killed, l.peers.revoked)
	}
	if _, err := a.heartbeat(); err == nil {
		t.Error("the agent of a purged run is heard")
	}
	_, err = computev1.NewRunInternalServiceClient(l.dial("gateway")).PurgeWorkspace(t.Context(), &computev1.PurgeWorkspaceRequest{WorkspaceUid: resource.NewUID("ws")})
	want(t, "by another service", err, codes.PermissionDenied, 0)
}
