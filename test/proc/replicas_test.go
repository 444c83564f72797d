package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// counting prints each request before it answers, so that one that was asked twice can be seen.
const counting = `def run(raw):
    print("asked", raw, flush=True)
    return raw
`

// A5, H3: inference is killed while it is scored, and so is compute. The replica is the same one afterwards, its workers come back by
// themselves, what was answered was asked once, and nothing was asked twice.
func TestReplicasOutliveInference(t *testing.T) {
	needSandbox(t)
	in := New(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	l, err := NewLab(ctx, in.Access(), "replicas")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	e, name := l.deploy(ctx, t)
	keys, err := l.Endpoints().GetCredentials(ctx, &inferencev1.GetCredentialsRequest{Name: e.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	before := l.replicas(ctx, t, name)

	var mu sync.Mutex
	good := make(map[string]bool)
	calling, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: l.Access.TLS(), ForceAttemptHTTP2: true}, Timeout: 20 * time.Second}
			defer client.CloseIdleConnections()
			for n := 0; calling.Err() == nil; n++ {
				body := fmt.Sprintf("call-%d-%d.", i, n)
				if scored(calling, client, e.GetScoringUri(), keys.GetPrimaryKey(), body) {
					mu.Lock()
					good[body] = true
					mu.Unlock()
				}
			}
		})
	}
	more := func(n int) {
		t.Helper()
		mu.Lock()
		want := len(good) + n
		mu.Unlock()
		if err := poll(ctx, func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(good) < want {
				return fmt.Errorf("%d calls were answered, waiting for %d", len(good), want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, service := range []string{"inference", "compute", "inference"} {
		more(50)
		i := slices.IndexFunc(in.Processes, func(p *Process) bool { return p.Name == service })
		if err := in.Processes[i].Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if service == "compute" {
			more(50) // nobody needs it to score
		}
		if err := in.Processes[i].Start(); err != nil {
			t.Fatal(err)
		}
	}
	more(50)
	stop()
	wg.Wait()
	if after := l.replicas(ctx, t, name); !slices.Equal(after, before) {
		t.Errorf("the replicas were %v, and are %v", before, after)
	}
	var log string
	if err := poll(ctx, func() error {
		if log, err = l.replicaLog(ctx, name); err != nil {
			return err
		}
		for body := range good {
			if !strings.Contains(log, "asked "+body) {
				return fmt.Errorf("the log does not have %s, which was answered", body)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(log, "\n")
	slices.Sort(lines)
	for i := 1; i < len(lines); i++ {
		if strings.HasPrefix(lines[i], "asked") && lines[i] == lines[i-1] {
			t.Errorf("%q stands there twice", lines[i])
		}
	}
	t.Logf("%d calls were answered", len(good))
}

// deploy puts the script behind an endpoint, with one replica of two workers, and waits until it answers.
func (l *Lab) deploy(ctx context.Context, t *testing.T) (*inferencev1.Endpoint, string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	must(os.WriteFile(filepath.Join(dir, "score.py"), []byte(counting), 0o600))
	code, err := l.UploadSnapshot(ctx, l.Workspace, dir, nil)
	must(err)
	model, err := l.UploadModel(ctx, &inferencev1.UploadModelVersionRequest{Parent: l.Workspace + "/models/m", CreateModel: true}, filepath.Join(dir, "score.py"), nil)
	must(err)
	e, err := l.Endpoints().CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: l.Workspace, EndpointId: "killed"})
	must(err)
	d, err := l.Endpoints().CreateDeployment(ctx, &inferencev1.CreateDeploymentRequest{Parent: e.GetName(), DeploymentId: "blue", Deployment: &inferencev1.DeploymentSpec{
		Model: model.GetName(), Snapshot: code.GetName(), Compute: l.Compute, Workers: 2, RequestTimeout: durationpb.New(20 * time.Second),
	}})
	must(err)
	d, err = l.WaitDeployment(ctx, d.GetName(), d.GetGeneration(), nil)
	must(err)
	if d.GetState() != inferencev1.Deployment_STATE_READY {
		t.Fatalf("the deployment is not ready: %v", d)
	}
	return e, d.GetName()
}

// replicas are the uids of a deployment's replicas that are ready.
func (l *Lab) replicas(ctx context.Context, t *testing.T, deployment string) (uids []string) {
	t.Helper()
	if err := poll(ctx, func() error {
		d, err := l.Endpoints().GetDeployment(ctx, &inferencev1.GetDeploymentRequest{Name: deployment})
		if err != nil {
			return err
		}
		uids = nil
		for _, r := range d.GetReplicas() {
			if r.GetState() == inferencev1.Replica_STATE_READY {
				uids = append(uids, r.GetUid())
			}
		}
		if len(uids) == 0 {
			return errors.New("no replica is ready")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return uids
}

func (l *Lab) replicaLog(ctx context.Context, deployment string) (string, error) {
	s, err := l.Endpoints().StreamDeploymentLogs(ctx, &inferencev1.StreamDeploymentLogsRequest{Name: deployment})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for {
		c, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out.String(), nil
		}
		if err != nil {
			return "", err
		}
		out.Write(c.GetData())
	}
}

// scored sends one request, once, and says whether the script has answered it.
func scored(ctx context.Context, c *http.Client, uri, key, body string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, uri, bytes.NewReader([]byte(body)))
	if err != nil {
		return false
	}
	req.GetBody = nil // the client does not repeat it by itself
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "text/plain")
	res, err := c.Do(req)
	if err != nil {
		select { // it is being killed, or not there yet
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		return false
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(res.Body)
	return err == nil && res.StatusCode == http.StatusOK && string(got) == body
}
