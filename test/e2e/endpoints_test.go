package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// script says which version of it, and of its model, answers.
const script = `import json, os

def init():
    global model
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.txt")) as f:
        model = f.read().strip()

def run(raw):
    print("asked for", len(raw), "bytes")
    return {"script": %q, "model": model, "sum": sum(sum(r) for r in json.loads(raw)["data"])}
`

// scripts uploads a snapshot with the script of a version.
func (l *lab) scripts(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "score.py"), fmt.Appendf(nil, script, version), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.GetName()
}

// model registers a version of the model m.
func (l *lab) model(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.txt"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := l.UploadModel(t.Context(), &inferencev1.UploadModelVersionRequest{Parent: l.workspace + "/models/m", CreateModel: true}, filepath.Join(dir, "model.txt"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return v.GetName()
}

// settled waits until a generation of a deployment is ready.
func (l *lab) settled(t *testing.T, d *inferencev1.Deployment) *inferencev1.Deployment {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	got, err := l.WaitDeployment(ctx, d.GetName(), d.GetGeneration(), nil)
	if err != nil || got.GetState() != inferencev1.Deployment_STATE_READY {
		t.Fatalf("%v, %v\n%s", got, err, l.logOf(t, d.GetName()))
	}
	return got
}

func (l *lab) logOf(t *testing.T, deployment string) string {
	t.Helper()
	s, err := l.Endpoints().StreamDeploymentLogs(t.Context(), &inferencev1.StreamDeploymentLogsRequest{Name: deployment})
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for {
		c, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			return out.String() + err.Error()
		}
		out.Write(c.GetData())
	}
}

// strangers is a client of the scoring listener that believes the installation's roots.
func strangers(t *testing.T, ca []byte) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 60 * time.Second}
}

func post(ctx context.Context, c *http.Client, uri, credential, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, uri, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if credential != "" {
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// A5, H6: a model is deployed, scored over TLS, replaced without a failed call, and taken away.
func TestDeployment(t *testing.T) {
	l := newLab(t, "deployment")
	if _, _, err := sandbox.Interpreter(t.Context(), "python3"); err != nil {
		t.Skipf("there is no Python for replicas: %v", err)
	}
	e, err := l.Endpoints().CreateEndpoint(t.Context(), &inferencev1.CreateEndpointRequest{Parent: l.workspace, EndpointId: "e1"})
	if err != nil {
		t.Fatal(err)
	}
	first, second := l.model(t, "one"), l.model(t, "two")
	spec := &inferencev1.DeploymentSpec{Model: first, Snapshot: l.scripts(t, "a"), Compute: l.compute, Workers: 2}
	d, err := l.Endpoints().CreateDeployment(t.Context(), &inferencev1.CreateDeploymentRequest{Parent: e.GetName(), DeploymentId: "blue", Deployment: spec})
	if err != nil {
		t.Fatal(err)
	}
	d = l.settled(t, d)
	keys, err := l.Endpoints().GetCredentials(t.Context(), &inferencev1.GetCredentialsRequest{Name: e.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	c := strangers(t, mesh.CA)
	ask := func(credential string) (int, string) {
		t.Helper()
		status, body, err := post(t.Context(), c, e.GetScoringUri(), credential, `{"data": [[1, 2], [3, 4]]}`)
		if err != nil {
			t.Fatal(err)
		}
		return status, body
	}
	if status, body := ask(keys.GetPrimaryKey()); status != http.StatusOK || body != `{"script":"a","model":"one","sum":10}` {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := ask(keys.GetPrimaryKey() + "x"); status != http.StatusUnauthorized {
		t.Errorf("with a wrong key: %d %s", status, body)
	}
	soon(t, "the log says what the script has printed", func() bool { return strings.Contains(l.logOf(t, d.GetName()), "asked for 26 bytes") })

	// The next version takes its place while calls go on.
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	seen := make(map[string]int)
	calls.Go(func() {
		for ctx.Err() == nil {
			status, body, err := post(t.Context(), c, e.GetScoringUri(), keys.GetSecondaryKey(), `{"data": [[1]]}`)
			if err != nil || status != http.StatusOK {
				t.Errorf("meanwhile: %d %s %v", status, body, err)
			}
			seen[body]++
		}
	})
	spec = proto.CloneOf(spec)
	spec.Model, spec.Snapshot = second, l.scripts(t, "b")
	u, err := l.Endpoints().UpdateDeployment(t.Context(), &inferencev1.UpdateDeploymentRequest{Name: d.GetName(), Deployment: spec})
	if err != nil {
		t.Fatal(err)
	}
	l.settled(t, u)
	status, body := ask(keys.GetPrimaryKey())
	cancel()
	calls.Wait()
	if status != http.StatusOK || body != `{"script":"b","model":"two","sum":10}` {
		t.Errorf("%d %s", status, body)
	}
	if seen[`{"script":"a","model":"one","sum":1}`] == 0 || len(seen) > 2 {
		t.Errorf("meanwhile: %v", seen)
	}

	if _, err := l.Endpoints().DeleteEndpoint(t.Context(), &inferencev1.DeleteEndpointRequest{Name: e.GetName()}); err != nil {
		t.Fatal(err)
	}
	if status, body := ask(keys.GetPrimaryKey()); status != http.StatusNotFound && status != http.StatusUnauthorized {
		t.Errorf("of an endpoint that is gone: %d %s", status, body)
	}
	soon(t, "nothing runs any more, and the version can be deleted", func() bool {
		_, err := l.Models().DeleteModelVersion(t.Context(), &inferencev1.DeleteModelVersionRequest{Name: second})
		if err != nil && !fault.Is(fault.FromStatus(err), codes.FailedPrecondition) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// H3: replicas outlive the installation's process, and connect again to the next one: none is started anew, and the keys are the same.
func TestDeploymentOutlivesRestart(t *testing.T) {
	own, err := testmesh.StartOnPorts()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	l := labOn(t, own, "deployed")
	if _, _, err := sandbox.Interpreter(t.Context(), "python3"); err != nil {
		t.Skipf("there is no Python for replicas: %v", err)
	}
	e, err := l.Endpoints().CreateEndpoint(t.Context(), &inferencev1.CreateEndpointRequest{Parent: l.workspace, EndpointId: "e1"})
	if err != nil {
		t.Fatal(err)
	}
	spec := &inferencev1.DeploymentSpec{Model: l.model(t, "one"), Snapshot: l.scripts(t, "a"), Compute: l.compute}
	d, err := l.Endpoints().CreateDeployment(t.Context(), &inferencev1.CreateDeploymentRequest{Parent: e.GetName(), DeploymentId: "blue", Deployment: spec})
	if err != nil {
		t.Fatal(err)
	}
	before := l.settled(t, d)
	keys, err := l.Endpoints().GetCredentials(t.Context(), &inferencev1.GetCredentialsRequest{Name: e.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Restart(); err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(client.Context{Name: "e2e", Server: own.URL, CAPEM: own.CA}, redact.FromString(own.Admin(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	l.Client = c
	outside := strangers(t, own.CA)
	soon(t, "it answers again", func() bool {
		status, body, err := post(t.Context(), outside, e.GetScoringUri(), keys.GetPrimaryKey(), `{"data": [[1]]}`)
		return err == nil && status == http.StatusOK && body == `{"script":"a","model":"one","sum":1}`
	})
	got, err := l.Endpoints().GetDeployment(t.Context(), &inferencev1.GetDeploymentRequest{Name: d.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.GetReplicas()) != 1 || got.GetReplicas()[0].GetUid() != before.GetReplicas()[0].GetUid() {
		t.Errorf("it was %v, and is %v\n%s", before.GetReplicas(), got.GetReplicas(), own.Log())
	}
	// H1: the workspace takes all of it away.
	if _, err := l.Resources().DeleteWorkspace(t.Context(), &workspacev1.DeleteWorkspaceRequest{Name: l.workspace}); err != nil {
		t.Fatal(err)
	}
	if status, body, err := post(t.Context(), outside, e.GetScoringUri(), keys.GetPrimaryKey(), `{"data": [[1]]}`); err != nil || status == http.StatusOK {
		t.Errorf("after its workspace is gone: %d %s %v", status, body, err)
	}
	soon(t, "no replica is left on the machine", func() bool {
		left, err := filepath.Glob(filepath.Join(own.Dir, "compute", "runs", "run_*"))
		return err == nil && len(left) == 0
	})
}

// soon repeats what becomes true.
func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			t.Fatalf("it does not come to this: %s", what)
		case <-tick.C:
		}
	}
}
