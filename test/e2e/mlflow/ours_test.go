package mlflow

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	cli "github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// script is what any script does that logs to MLflow, by its REST API.
const script = `
import json, os, urllib.request
base = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/"
run = os.environ["MLFLOW_RUN_ID"]
def post(route, **fields):
    body = json.dumps(dict(fields, run_id=run)).encode()
    urllib.request.urlopen(urllib.request.Request(base + route, body, {"Content-Type": "application/json"})).read()
post("log-batch", metrics=[{"key": "loss", "value": 1 / (s + 1), "timestamp": 1700000000000 + s, "step": s} for s in range(10)], params=[{"key": "lr", "value": "0.1"}], tags=[])
model = os.path.join(os.environ["REDOUBT_OUTPUTS"], "model")
os.makedirs(model)
open(os.path.join(model, "weights.json"), "w").write("[1, 2]")
`

// TestRunsOfOurs holds that a run that the platform carries is a run for MLflow's clients: found, read, listed, registered from; and that
// they do not say how it ended (H3, H5, H6).
func TestRunsOfOurs(t *testing.T) {
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	c := newClient(t, "ours")
	r, err := cli.Dial(cli.Context{Name: "e2e", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: c.parent, ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 1}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "train.py"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot, err := r.UploadSnapshot(t.Context(), c.parent, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	run, err := r.Runs().SubmitRun(t.Context(), &computev1.SubmitRunRequest{
		Parent: c.parent, Compute: c.parent + "/computes/here", Snapshot: snapshot.GetName(), Command: []string{"python3", "train.py"}, DisplayName: "ours", Experiment: "trained here",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	if run, err = r.WaitRun(ctx, run.GetName(), nil); err != nil || run.GetState() != computev1.Run_STATE_COMPLETED {
		t.Fatalf("%v %v", run, err)
	}
	exp := text(c.ok(get, "mlflow/experiments/get-by-name", "GetExperiment", object{"experiment_name": "trained here"}), "experiment", "experiment_id")
	found := at(c.ok(post, "mlflow/runs/search", "SearchRuns", object{"experiment_ids": []string{exp}, "filter": "metrics.loss < 0.2 AND params.lr = '0.1' AND attributes.status = 'FINISHED'"}), "runs").([]any)
	if len(found) != 1 || text(found[0], "info", "run_name") != "ours" {
		t.Fatalf("found %v", found)
	}
	id := text(found[0], "info", "run_id")
	if id != run.GetName()[strings.LastIndexByte(run.GetName(), '/')+1:] {
		t.Errorf("its id is %s", id)
	}
	if points := at(c.ok(get, "mlflow/metrics/get-history", "GetMetricHistory", object{"run_id": id, "metric_key": "loss"}), "metrics").([]any); len(points) != 10 {
		t.Errorf("%d points", len(points))
	}
	root := strings.TrimPrefix(text(found[0], "info", "artifact_uri"), "mlflow-artifacts:/")
	if files := c.ok(get, "mlflow/artifacts/list", "ListArtifacts", object{"run_id": id}); text(files, "files", 0, "path") != "model" || c.get(root+"/model/weights.json") != "[1, 2]" {
		t.Errorf("its files: %v", files)
	}
	c.refused(post, "mlflow/runs/update", object{"run_id": id, "status": "FAILED"}, 400, invalid)
	if out := c.ok(post, "mlflow/runs/update", "UpdateRun", object{"run_id": id, "run_name": "renamed"}); text(out, "run_info", "run_name") != "renamed" || text(out, "run_info", "status") != "FINISHED" {
		t.Errorf("renamed: %v", out)
	}
	c.ok(post, "mlflow/runs/set-tag", "Empty", object{"run_id": id, "key": "seen", "value": "yes"})
	c.ok(post, "mlflow/registered-models/create", "GetRegisteredModel", object{"name": "ours"})
	v := c.ok(post, "mlflow/model-versions/create", "GetModelVersion", object{"name": "ours", "source": "runs:/" + id + "/model", "run_id": id})
	if text(v, "model_version", "run_id") != id || c.get("models/ours/1/weights.json") != "[1, 2]" {
		t.Errorf("the version is %v", v)
	}
}
