package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// lab is a workspace with a local target and a snapshot.
type lab struct {
	*client.Client
	workspace, compute, snapshot string
}

func newLab(t *testing.T, id string) *lab { return labOn(t, mesh, id) }

func labOn(t *testing.T, mesh *testmesh.Mesh, id string) *lab {
	t.Helper()
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	c, err := client.Dial(client.Context{Name: "e2e", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	l := &lab{Client: c, workspace: workspaceOn(t, mesh, id).GetName()}
	target, err := c.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: l.workspace, ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 4})
	if err != nil {
		t.Fatal(err)
	}
	l.compute = target.GetName()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello from the snapshot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := c.UploadSnapshot(t.Context(), l.workspace, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.snapshot = s.GetName()
	return l
}

func (l *lab) request(command ...string) *computev1.SubmitRunRequest {
	return &computev1.SubmitRunRequest{Parent: l.workspace, Compute: l.compute, Snapshot: l.snapshot, Command: command}
}

func (l *lab) submit(t *testing.T, req *computev1.SubmitRunRequest) *computev1.Run {
	t.Helper()
	r, err := l.Runs().SubmitRun(t.Context(), req)
	if err != nil {
		t.Fatalf("submit: %v", err)
	}
	return r
}

// finish waits for the end of a run and gives it with its log.
func (l *lab) finish(t *testing.T, run string) (*computev1.Run, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	r, err := l.WaitRun(ctx, run, nil)
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	var log bytes.Buffer
	if _, err := l.FollowLogs(ctx, run, 0, false, &log); err != nil {
		t.Fatalf("logs: %v", err)
	}
	return r, log.String()
}

// H3: what can become of a command, and what the run says of it.
func TestRunEnds(t *testing.T) {
	l := newLab(t, "run-ends")
	for _, c := range []struct {
		name    string
		req     *computev1.SubmitRunRequest
		state   computev1.Run_State
		code    int32
		reason  string
		message string
		log     string
	}{
		{name: "completes", req: l.request("/bin/sh", "-c", "cat hello.txt"), state: computev1.Run_STATE_COMPLETED, log: "hello from the snapshot"},
		{name: "exits 3", req: l.request("/bin/sh", "-c", "echo out; echo err >&2; exit 3"), state: computev1.Run_STATE_FAILED, code: 3, log: "err"},
		{name: "no such command", req: l.request("no-such-program"), state: computev1.Run_STATE_FAILED, reason: "RUN_COMMAND_MISSING", message: "no-such-program"},
		{name: "killed for memory", req: &computev1.SubmitRunRequest{
			Parent: l.workspace, Compute: l.compute, Snapshot: l.snapshot, Command: []string{"/bin/sh", "-c", `a=x; while :; do a="$a$a"; done`},
			Limits: &computev1.RunLimits{MemoryBytes: 64 << 20},
		}, state: computev1.Run_STATE_FAILED},
		{name: "times out", req: &computev1.SubmitRunRequest{
			Parent: l.workspace, Compute: l.compute, Snapshot: l.snapshot, Command: []string{"/bin/sh", "-c", "sleep 100"},
			Limits: &computev1.RunLimits{Timeout: durationpb.New(300 * time.Millisecond)},
		}, state: computev1.Run_STATE_FAILED, reason: "DEADLINE_PASSED", message: "timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, log := l.finish(t, l.submit(t, c.req).GetName())
			if r.GetState() != c.state || c.code != 0 && r.GetExitCode() != c.code || r.GetReason() != c.reason && c.reason != "" || !strings.Contains(r.GetMessage(), c.message) {
				t.Errorf("ended as %s, code %d, reason %q, message %q", r.GetState(), r.GetExitCode(), r.GetReason(), r.GetMessage())
			}
			if !strings.Contains(log, c.log) {
				t.Errorf("log: %q", log)
			}
		})
	}
}

// H3: a run that never ends is cancelled, and forks end with it.
func TestCancel(t *testing.T) {
	l := newLab(t, "run-cancel")
	r := l.submit(t, l.request("/bin/sh", "-c", "for i in 1 2 3 4; do sleep 1000 & done; echo started; wait"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen := &waitFor{want: "started", found: make(chan struct{})}
	go func() { _, _ = l.FollowLogs(ctx, r.GetName(), 0, true, seen) }()
	select {
	case <-seen.found:
	case <-ctx.Done():
		t.Fatal("the run does not start")
	}
	if _, err := l.Runs().CancelRun(ctx, &computev1.CancelRunRequest{Name: r.GetName()}); err != nil {
		t.Fatal(err)
	}
	end, _ := l.finish(t, r.GetName())
	if end.GetState() != computev1.Run_STATE_CANCELED {
		t.Errorf("ended as %s: %s", end.GetState(), end.GetMessage())
	}
	if again, err := l.Runs().CancelRun(ctx, &computev1.CancelRunRequest{Name: r.GetName()}); err != nil || again.GetEtag() == "" || again.GetState() != computev1.Run_STATE_CANCELED {
		t.Errorf("cancelling again: %v %v", again, err)
	}
}

type waitFor struct {
	want  string
	got   strings.Builder
	found chan struct{}
	done  bool
}

func (w *waitFor) Write(p []byte) (int, error) {
	w.got.Write(p)
	if !w.done && strings.Contains(w.got.String(), w.want) {
		w.done = true
		close(w.found)
	}
	return len(p), nil
}

// H3: 100 MB without a newline fill the log to its limit and nothing else.
func TestLongLine(t *testing.T) {
	l := newLab(t, "run-long-line")
	req := l.request("/bin/sh", "-c", "head -c 100000000 /dev/zero | tr '\\0' x")
	req.Limits = &computev1.RunLimits{LogBytes: 1 << 20}
	r, log := l.finish(t, l.submit(t, req).GetName())
	if r.GetState() != computev1.Run_STATE_COMPLETED {
		t.Errorf("ended as %s: %s", r.GetState(), r.GetMessage())
	}
	if len(log) != 1<<20 || r.GetLogBytes() != 1<<20 || strings.Trim(log, "x") != "" {
		t.Errorf("the log has %d bytes, the run says %d", len(log), r.GetLogBytes())
	}
}

// H3, F1: what a submit refuses, and that nothing of it is there afterwards.
func TestSubmitRefused(t *testing.T) {
	l := newLab(t, "run-refused")
	other := newLab(t, "run-refused-other")
	with := func(change func(*computev1.SubmitRunRequest)) *computev1.SubmitRunRequest {
		r := l.request("/bin/true")
		change(r)
		return r
	}
	for _, c := range []struct {
		name   string
		req    *computev1.SubmitRunRequest
		code   codes.Code
		reason faultv1.Reason
	}{
		{"no command", l.request(), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"an empty program", l.request(""), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a NUL", l.request("/bin/echo", "a\x00b"), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a hostile id", with(func(r *computev1.SubmitRunRequest) { r.RunId = "../x" }), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a look-alike id", with(func(r *computev1.SubmitRunRequest) { r.RunId = "trаin" }), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a secret in the environment", with(func(r *computev1.SubmitRunRequest) { r.Environment = map[string]string{"DB_PASSWORD": "hunter2"} }), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a key in the environment", with(func(r *computev1.SubmitRunRequest) {
			r.Environment = map[string]string{"X": "AKIA" + "ABCDEFGHIJKLMNOP"}
		}), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"the agent's own variable", with(func(r *computev1.SubmitRunRequest) { r.Environment = map[string]string{"MLFLOW_TRACKING_URI": "x"} }), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"another workspace's compute", with(func(r *computev1.SubmitRunRequest) { r.Compute = other.compute }), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"another workspace's snapshot", with(func(r *computev1.SubmitRunRequest) { r.Snapshot = other.snapshot }), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a compute that is not there", with(func(r *computev1.SubmitRunRequest) { r.Compute = l.workspace + "/computes/none" }), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND},
		{"a snapshot that is not there", with(func(r *computev1.SubmitRunRequest) { r.Snapshot = l.workspace + "/snapshots/s0000" }), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND},
		{"a negative limit", with(func(r *computev1.SubmitRunRequest) { r.Limits = &computev1.RunLimits{MemoryBytes: -1} }), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := l.Runs().SubmitRun(t.Context(), c.req)
			if !fault.Is(err, c.code) || fault.ReasonOf(err) != c.reason {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows the value: %v", err)
			}
		})
	}
	list, err := l.Runs().ListRuns(t.Context(), &computev1.ListRunsRequest{Parent: l.workspace})
	if err != nil || len(list.GetRuns()) != 0 {
		t.Errorf("left: %v %v", list, err)
	}
}

// H3: a submit that is repeated gives the same run; another one under its request_id is refused; an id is taken once.
func TestSubmitAgain(t *testing.T) {
	l := newLab(t, "run-again")
	req := l.request("/bin/true")
	req.RequestId = "5b1c1b1e-7a0e-4a43-9a3b-0a4a54b1a001"
	a, b := l.submit(t, req), l.submit(t, req)
	if a.GetUid() != b.GetUid() {
		t.Errorf("%s and %s", a.GetUid(), b.GetUid())
	}
	changed := l.request("/bin/false")
	changed.RequestId = req.GetRequestId()
	if _, err := l.Runs().SubmitRun(t.Context(), changed); fault.ReasonOf(err) != faultv1.Reason_REQUEST_ID_REUSED {
		t.Errorf("another request: %v", err)
	}
	named := l.request("/bin/true")
	named.RunId = "mine"
	l.submit(t, named)
	if _, err := l.Runs().SubmitRun(t.Context(), named); !fault.Is(err, codes.AlreadyExists) {
		t.Errorf("the same id: %v", err)
	}
	// Pages: two runs, one a page; the token of another list is refused.
	p, err := l.Runs().ListRuns(t.Context(), &computev1.ListRunsRequest{Parent: l.workspace, PageSize: 1})
	if err != nil || len(p.GetRuns()) != 1 || p.GetNextPageToken() == "" {
		t.Fatalf("first page: %v %v", p, err)
	}
	q, err := l.Runs().ListRuns(t.Context(), &computev1.ListRunsRequest{Parent: l.workspace, PageSize: 1, PageToken: p.GetNextPageToken()})
	if err != nil || len(q.GetRuns()) != 1 || q.GetRuns()[0].GetUid() == p.GetRuns()[0].GetUid() {
		t.Errorf("second page: %v %v", q, err)
	}
	if _, err := l.Computes().ListComputes(t.Context(), &computev1.ListComputesRequest{Parent: l.workspace, PageToken: p.GetNextPageToken()}); fault.ReasonOf(err) != faultv1.Reason_PAGE_TOKEN_INVALID {
		t.Errorf("another list's token: %v", err)
	}
	if _, err := l.Runs().ListRuns(t.Context(), &computev1.ListRunsRequest{Parent: l.workspace, PageSize: -1}); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("page size -1: %v", err)
	}
}

// H5: a user logs for a run too; NaN and the infinities are kept; a repeated batch counts once.
func TestMetricsOfUsers(t *testing.T) {
	l := newLab(t, "run-metrics")
	r := l.submit(t, l.request("/bin/sh", "-c", "sleep 30"))
	stream, err := l.Metrics().LogRunData(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	values := []float64{1, math.NaN(), math.Inf(1), math.Inf(-1)}
	batch := &telemetryv1.LogRunDataRequest{Run: r.GetName(), BatchId: "b1"}
	for i, v := range values {
		batch.Metrics = append(batch.Metrics, &telemetryv1.Metric{Key: "loss", Value: v, Step: int64(i), Time: timestamppb.Now()})
	}
	for range 2 {
		if err := stream.Send(batch); err != nil {
			t.Fatal(err)
		}
		if ack, err := stream.Recv(); err != nil || ack.GetBatchId() != "b1" {
			t.Fatalf("ack: %v %v", ack, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end of stream: %v", err)
	}
	h, err := l.Metrics().ListMetricHistory(t.Context(), &telemetryv1.ListMetricHistoryRequest{Run: r.GetName(), Key: "loss"})
	if err != nil || len(h.GetMetrics()) != len(values) {
		t.Fatalf("history: %v %v", h, err)
	}
	for i, m := range h.GetMetrics() {
		if math.Float64bits(m.GetValue()) != math.Float64bits(values[i]) && !(math.IsNaN(m.GetValue()) && math.IsNaN(values[i])) {
			t.Errorf("step %d: %v, wanted %v", i, m.GetValue(), values[i])
		}
	}
	if _, err := l.Runs().CancelRun(t.Context(), &computev1.CancelRunRequest{Name: r.GetName()}); err != nil {
		t.Error(err)
	}
}
