package proc

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
)

// Script counts: each number is a metric, and one line of output when the platform has said that it is stored. It leaves a file.
const Script = `import json, os, sys, time, urllib.error, urllib.request
uri, run = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]
for i in range(1, int(sys.argv[1]) + 1):
    body = json.dumps({"run_id": run, "key": "i", "value": i, "step": i, "timestamp": int(time.time() * 1000)}).encode()
    request = urllib.request.Request(uri + "/api/2.0/mlflow/runs/log-metric", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            response.read()
        print("stored", i, flush=True)
    except urllib.error.HTTPError as error:
        print("refused", i, error.code, flush=True)
    time.sleep(float(sys.argv[2]))
with open(os.path.join(os.environ["REDOUBT_OUTPUTS"], "model.txt"), "w") as f:
    f.write("counted to " + sys.argv[1] + "\n")
`

// Lab is a workspace with a target on this machine and a snapshot of Script, and the client of who made them.
type Lab struct {
	*client.Client
	Access                       Access
	Token                        string
	Workspace, Compute, Snapshot string
	// Changes are the request ids of what was acknowledged so far, with the method.
	Changes map[string]string
}

// NewLab signs in and makes a lab. The workspace gets this id.
func NewLab(ctx context.Context, a Access, id string) (_ *Lab, err error) {
	l := &Lab{Access: a, Changes: make(map[string]string)}
	if l.Token, err = a.SignIn(ctx); err != nil {
		return nil, fmt.Errorf("sign in: %w", err)
	}
	if l.Client, err = a.Dial(l.Token); err != nil {
		return nil, err
	}
	return l, l.furnish(ctx, id)
}

// furnish makes what is in a lab.
func (l *Lab) furnish(ctx context.Context, id string) error {
	ws, err := l.Resources().CreateWorkspace(l.change(ctx, "CreateWorkspace"), &workspacev1.CreateWorkspaceRequest{Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: id})
	if err != nil {
		return fmt.Errorf("workspace: %w", err)
	}
	l.Workspace = ws.GetName()
	c, err := l.Computes().CreateCompute(l.change(ctx, "CreateCompute"), &computev1.CreateComputeRequest{Parent: l.Workspace, ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 4})
	if err != nil {
		return fmt.Errorf("compute: %w", err)
	}
	l.Compute = c.GetName()
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.WriteFile(filepath.Join(dir, "count.py"), []byte(Script), 0o600); err != nil {
		return err
	}
	s, err := l.UploadSnapshot(ctx, l.Workspace, dir, nil)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	l.Snapshot = s.GetName()
	return nil
}

// change names the request, which the activity log must show later.
func (l *Lab) change(ctx context.Context, method string) context.Context {
	id := fmt.Sprintf("proc-%d-%016x", len(l.Changes), rand.Uint64())
	l.Changes[id] = method
	return metadata.AppendToOutgoingContext(ctx, "x-request-id", id)
}

// Count submits a run that counts to n, with a pause after each number.
func (l *Lab) Count(ctx context.Context, id string, n int, pause time.Duration) (*computev1.Run, error) {
	return l.Runs().SubmitRun(ctx, l.count(id, n, pause))
}

func (l *Lab) count(id string, n int, pause time.Duration) *computev1.SubmitRunRequest {
	return &computev1.SubmitRunRequest{
		Parent: l.Workspace, RunId: id, RequestId: "request-" + id, Compute: l.Compute, Snapshot: l.Snapshot,
		Command: []string{"python3", "count.py", fmt.Sprint(n), fmt.Sprint(pause.Seconds())},
	}
}

// History is the metric that Script logs, by step in the order in which it is kept.
func (l *Lab) History(ctx context.Context, run, key string) (steps []int64, err error) {
	for page := ""; ; {
		h, err := l.Metrics().ListMetricHistory(ctx, &telemetryv1.ListMetricHistoryRequest{Run: run, Key: key, PageSize: 1000, PageToken: page})
		if err != nil {
			return nil, err
		}
		for _, m := range h.GetMetrics() {
			if m.GetValue() != float64(m.GetStep()) {
				return nil, fmt.Errorf("step %d has the value %v", m.GetStep(), m.GetValue())
			}
			steps = append(steps, m.GetStep())
		}
		if page = h.GetNextPageToken(); page == "" {
			return steps, nil
		}
	}
}

// WantActivity waits until every change stands in the activity log once, with its method, as succeeded.
func (l *Lab) WantActivity(ctx context.Context, t testing.TB, changes map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin, events := time.Now(), 0
	err := poll(ctx, func() error {
		found := make(map[string]int)
		uids := make(map[string]bool)
		for page := ""; ; {
			r, err := l.Activity().ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000, PageToken: page})
			if err != nil {
				return err
			}
			for _, e := range r.GetEvents() {
				if uids[e.GetUid()] {
					t.Errorf("the event %s stands twice", e.GetUid())
				}
				uids[e.GetUid()] = true
				events = len(uids)
				if m, ok := changes[e.GetRequestId()]; ok && strings.HasSuffix(e.GetMethod(), "/"+m) && e.GetCode() == codes.OK.String() {
					found[e.GetRequestId()]++
				}
			}
			if page = r.GetNextPageToken(); page == "" {
				break
			}
		}
		var missing []string
		for id, m := range changes {
			if found[id] != 1 {
				missing = append(missing, fmt.Sprintf("%s %s ×%d", m, id, found[id]))
			}
		}
		if len(missing) > 0 {
			slices.Sort(missing)
			return fmt.Errorf("%d of %d changes do not stand there once: %s", len(missing), len(changes), strings.Join(missing[:min(5, len(missing))], ", "))
		}
		return nil
	})
	if err != nil {
		t.Errorf("activity: %v, after %d events and %s", err, events, time.Since(begin).Round(time.Millisecond))
		return
	}
	t.Logf("all of %d changes stand in the activity log of %d events, looked for %s", len(changes), events, time.Since(begin).Round(time.Millisecond))
}

// Walk goes the whole walk on an installation: sign in, workspace, snapshot, a run on the local target for at least that long, its
// metrics, log, outputs, and the activity log. While the run lasts, every service is called all the time over one connection and over new
// ones, without repeats; no call may fail. It gives the number of those calls and of the certificates that the gateway showed.
func Walk(t *testing.T, a Access, id string, long time.Duration) (calls, certificates int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long+2*time.Minute)
	defer cancel()
	l, err := NewLab(ctx, a, id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := l.Secrets().SetSecret(l.change(ctx, "SetSecret"), &keyvaultv1.SetSecretRequest{Parent: l.Workspace, SecretId: "db", Value: []byte("value")}); err != nil {
		t.Fatalf("secret: %v", err)
	}
	steps := max(10, int(long/(250*time.Millisecond)))
	r, err := l.Count(l.change(ctx, "SubmitRun"), "count", steps, long/time.Duration(steps))
	if err != nil {
		t.Fatalf("submit: %v", err)
	}
	calling, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	seen := make(map[string]bool)
	wg.Go(func() { calls = l.callAll(calling, t, r.GetName()) })
	wg.Go(func() { l.handshakes(calling, t, seen) })
	var live []*telemetryv1.Metric
	wg.Go(func() {
		if err := l.FollowMetrics(ctx, r.GetName(), func(m []*telemetryv1.Metric) error { live = append(live, m...); return nil }); err != nil {
			t.Errorf("following the metrics: %v", err)
		}
	})
	var log bytes.Buffer
	wg.Go(func() {
		if _, err := l.FollowLogs(ctx, r.GetName(), 0, true, &log); err != nil {
			t.Errorf("following the log: %v", err)
		}
	})
	end, err := l.WaitRun(ctx, r.GetName(), nil)
	stop()
	wg.Wait()
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	if end.GetState() != computev1.Run_STATE_COMPLETED || end.GetExitCode() != 0 {
		t.Fatalf("the run ended as %s: %s\n%s", end.GetState(), end.GetMessage(), log.String())
	}
	var want strings.Builder
	wantSteps := make([]int64, steps)
	for i := range steps {
		fmt.Fprintf(&want, "stored %d\n", i+1)
		wantSteps[i] = int64(i + 1)
	}
	if log.String() != want.String() {
		t.Errorf("the log is %q", log.String())
	}
	if got, err := l.History(ctx, r.GetName(), "i"); err != nil || !slices.Equal(got, wantSteps) {
		t.Errorf("metrics: %v %v", got, err)
	}
	if len(live) != steps {
		t.Errorf("%d of %d metrics were followed: %v … %v", len(live), steps, live[:min(1, len(live))], live[max(0, len(live)-1):])
	}
	dir := t.TempDir()
	if err := l.DownloadOutputs(ctx, r.GetName(), dir, nil, nil); err != nil {
		t.Errorf("outputs: %v", err)
	} else if b, err := os.ReadFile(filepath.Join(dir, "model.txt")); err != nil || string(b) != fmt.Sprintf("counted to %d\n", steps) {
		t.Errorf("model.txt: %q %v", b, err)
	}
	l.WantActivity(ctx, t, maps.Clone(l.Changes))
	return calls, len(seen)
}

// probe calls every service once.
func (a Access) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	token, err := a.SignIn(ctx)
	if err != nil {
		return err
	}
	c, err := a.plain(token)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := workspacev1.NewResourceServiceClient(c).ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: "subscriptions/default/resourceGroups/default"}); err != nil {
		return err
	}
	_, err = telemetryv1.NewActivityServiceClient(c).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1})
	return err
}

// each is one call of every service.
func (l *Lab) each(ctx context.Context, c grpc.ClientConnInterface, run string) error {
	if _, err := identityv1.NewSignInServiceClient(c).WhoAmI(ctx, &identityv1.WhoAmIRequest{}); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if _, err := workspacev1.NewResourceServiceClient(c).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: l.Workspace}); err != nil {
		return fmt.Errorf("workspace: %w", err)
	}
	if _, err := keyvaultv1.NewSecretServiceClient(c).ListSecrets(ctx, &keyvaultv1.ListSecretsRequest{Parent: l.Workspace}); err != nil {
		return fmt.Errorf("keyvault: %w", err)
	}
	if _, err := computev1.NewRunServiceClient(c).ListRuns(ctx, &computev1.ListRunsRequest{Parent: l.Workspace}); err != nil {
		return fmt.Errorf("compute: %w", err)
	}
	if run == "" {
		return nil
	}
	if _, err := telemetryv1.NewMetricServiceClient(c).GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: run}); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	return nil
}

// callAll calls until ctx ends, over one connection and, each tenth time, over a new one.
func (l *Lab) callAll(ctx context.Context, t *testing.T, run string) (calls int) {
	old, err := l.Access.plain(l.Token)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer func() { _ = old.Close() }()
	for round := 0; ctx.Err() == nil; round++ {
		conn := old
		if round%10 == 9 {
			if conn, err = l.Access.plain(l.Token); err != nil {
				t.Error(err)
				return calls
			}
		}
		err := l.each(ctx, conn, run)
		if conn != old {
			_ = conn.Close()
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			t.Errorf("round %d at %s: %v", round, time.Now().Format("15:04:05.000"), err)
		}
		calls += 5
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return calls
}

// handshakes notes the certificates that the gateway shows, each of which must be believable and valid.
func (l *Lab) handshakes(ctx context.Context, t *testing.T, seen map[string]bool) {
	d := tls.Dialer{Config: l.Access.TLS()}
	d.Config.VerifyConnection = func(state tls.ConnectionState) error {
		seen[string(state.PeerCertificates[0].Raw)] = true
		return nil
	}
	for ctx.Err() == nil {
		c, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(l.Access.URL, "https://"))
		if err == nil {
			_ = c.Close()
		} else if ctx.Err() == nil {
			t.Errorf("handshake: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}
