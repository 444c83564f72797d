package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
)

// counting prints each request before it does anything, so that one that was asked twice can be seen.
const counting = `import os, time

def run(raw):
    print("asked", raw, flush=True)
    if raw.startswith("die"):
        os._exit(1)
    while raw.startswith("wait"):
        time.sleep(0.01)
    return raw
`

// killAgent ends the agent of a run as nobody would.
func killAgent(t *testing.T, runUID string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(mesh.Dir, "compute", "runs", runUID, "agent.pid"))
	if err != nil {
		t.Fatal(err)
	}
	number, _, _ := strings.Cut(string(b), " ")
	pid, err := strconv.Atoi(number)
	if err != nil || pid <= 1 {
		t.Fatalf("the agent's process is %q", b)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) replicaLog(t *testing.T, deployment, replica string) string {
	t.Helper()
	s, err := l.Endpoints().StreamDeploymentLogs(t.Context(), &inferencev1.StreamDeploymentLogsRequest{Name: deployment, Replica: replica})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for {
		c, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		out.Write(c.GetData())
	}
}

// ready are the replicas that take requests, by uid.
func (l *lab) ready(t *testing.T, deployment string) (uids []string) {
	t.Helper()
	d, err := l.Endpoints().GetDeployment(t.Context(), &inferencev1.GetDeploymentRequest{Name: deployment})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range d.GetReplicas() {
		if r.GetState() == inferencev1.Replica_STATE_READY {
			uids = append(uids, r.GetUid())
		}
	}
	return uids
}

// workers is how many workers of a deployment are connected.
func (l *lab) workers(t *testing.T, deployment string) (n int32) {
	t.Helper()
	d, err := l.Endpoints().GetDeployment(t.Context(), &inferencev1.GetDeploymentRequest{Name: deployment})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range d.GetReplicas() {
		n += r.GetReadyWorkers()
	}
	return n
}

// A5, G3: a worker and an agent that are killed, and a worker that hangs, cost what they were at. The rest goes on, no request is asked
// twice, and the log has every one.
func TestReplicasThatAreKilled(t *testing.T) {
	l := newLab(t, "killed")
	if _, _, err := sandbox.Interpreter(t.Context(), "python3"); err != nil {
		t.Skipf("there is no Python for replicas: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "score.py"), []byte(counting), 0o600); err != nil {
		t.Fatal(err)
	}
	code, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := l.Endpoints().CreateEndpoint(t.Context(), &inferencev1.CreateEndpointRequest{Parent: l.workspace, EndpointId: "killed"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Endpoints().CreateDeployment(t.Context(), &inferencev1.CreateDeploymentRequest{Parent: e.GetName(), DeploymentId: "blue", Deployment: &inferencev1.DeploymentSpec{
		Model: l.model(t, "one"), Snapshot: code.GetName(), Compute: l.compute, Replicas: 2, RequestTimeout: durationpb.New(15 * time.Second),
	}})
	if err != nil {
		t.Fatal(err)
	}
	name := l.settled(t, d).GetName()
	keys, err := l.Endpoints().GetCredentials(t.Context(), &inferencev1.GetCredentialsRequest{Name: e.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	c := strangers(t, mesh.CA)
	var mu sync.Mutex
	asked, statuses := 0, map[int]int{}
	ask := func(ctx context.Context, body string) (int, string) {
		status, answer, err := post(ctx, c, e.GetScoringUri(), keys.GetPrimaryKey(), body)
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
		mu.Lock()
		defer mu.Unlock()
		asked++
		statuses[status]++
		return status, answer
	}
	seen := make(map[string]string) // logs of replicas that have ended
	times := func(body string) (n int) {
		for _, uid := range l.ready(t, name) {
			seen[uid] = l.replicaLog(t, name, uid)
		}
		for _, log := range seen {
			n += strings.Count(log, "asked "+body+"\n")
		}
		return n
	}
	both := func(what string) (uids []string) {
		t.Helper()
		soon(t, what, func() bool { uids = l.ready(t, name); return len(uids) == 2 })
		return uids
	}
	uids := both("both replicas are ready")

	// Both are busy: one dies with its agent, the other hangs until its time is over.
	var waiting sync.WaitGroup
	answers := make([]int, 2)
	for i := range answers {
		waiting.Go(func() { answers[i], _ = ask(t.Context(), fmt.Sprintf("wait-%d", i)) })
	}
	soon(t, "both requests have been asked", func() bool { return times("wait-0") == 1 && times("wait-1") == 1 })
	killAgent(t, uids[0])
	waiting.Wait()
	if answers[0]+answers[1] != http.StatusBadGateway+http.StatusGatewayTimeout || answers[0]*answers[1] != http.StatusBadGateway*http.StatusGatewayTimeout {
		t.Errorf("the one whose agent was killed and the one that hung: %v", answers)
	}
	again := both("another replica has taken the place of the dead one")
	if again[0] == uids[0] || again[1] == uids[0] {
		t.Errorf("%v are ready, and %s was killed", again, uids[0])
	}

	// Workers die while calls go on.
	var calls sync.WaitGroup
	for i := range 3 {
		calls.Go(func() {
			for j := range 25 {
				body := fmt.Sprintf("call-%d-%d", i, j)
				if status, answer := ask(t.Context(), body); status != http.StatusOK || answer != body {
					t.Errorf("%s: %d %s", body, status, answer)
				}
			}
		})
	}
	for i := range 4 {
		if status, answer := ask(t.Context(), fmt.Sprintf("die-%d", i)); status != http.StatusBadGateway {
			t.Errorf("die-%d: %d %s", i, status, answer)
		}
		soon(t, "both replicas have their worker again", func() bool { return l.workers(t, name) == 2 })
	}
	calls.Wait()
	soon(t, "the logs have the last call", func() bool { return times("call-2-24") == 1 })
	for _, body := range []string{"wait-0", "wait-1", "die-0", "die-1", "die-2", "die-3", "call-1-0", "call-2-12"} {
		if n := times(body); n != 1 {
			t.Errorf("%s was asked %d times", body, n)
		}
	}

	soon(t, "the request log has every request", func() bool {
		list, err := telemetryv1.NewRequestLogServiceClient(l.Conn()).ListRequests(t.Context(), &telemetryv1.ListRequestsRequest{Endpoint: e.GetName(), PageSize: 1000})
		if err != nil {
			t.Fatal(err)
		}
		got := map[int]int{}
		for _, r := range list.GetRequests() {
			got[int(r.GetStatusCode())]++
		}
		return len(list.GetRequests()) == asked && fmt.Sprint(got) == fmt.Sprint(statuses)
	})
	if statuses[http.StatusBadGateway] != 5 || statuses[http.StatusGatewayTimeout] != 1 || asked != 81 {
		t.Errorf("%d requests: %v", asked, statuses)
	}
	if _, err := l.Endpoints().DeleteEndpoint(t.Context(), &inferencev1.DeleteEndpointRequest{Name: e.GetName()}); err != nil {
		t.Fatal(err)
	}
}
