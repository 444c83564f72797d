package agent_test

import (
	"encoding/csv"
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

const example = "../../examples/breast-cancer"

// model is what train.py leaves.
type model struct {
	Features []string  `json:"features"`
	Weights  []float64 `json:"weights"`
	Bias     float64   `json:"bias"`
	Mean     []float64 `json:"mean"`
	Std      []float64 `json:"std"`
	HeldOut  []int     `json:"held_out"`
}

// heldOut gives the rows that a model was not trained on, with their labels.
func heldOut(t *testing.T, doc []byte) (rows [][]float64, labels []int) {
	t.Helper()
	var m model
	if err := json.Unmarshal(doc, &m); err != nil {
		t.Fatalf("model.json: %v", err)
	}
	f, err := os.Open(filepath.Join(example, "breast-cancer.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	lines, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	header, all := lines[0], lines[1:]
	if len(all) != 569 || !slices.Equal(m.Features, header[:len(header)-1]) || len(m.Weights) != 30 || len(m.Mean) != 30 || len(m.Std) != 30 {
		t.Fatalf("%d rows, %d features, %d weights", len(all), len(m.Features), len(m.Weights))
	}
	if n := len(m.HeldOut); n < 80 || n > 150 || len(slices.Compact(slices.Sorted(slices.Values(m.HeldOut)))) != n {
		t.Fatalf("%d rows held out", n)
	}
	for _, i := range m.HeldOut {
		row := make([]float64, 30)
		for j := range row {
			if row[j], err = strconv.ParseFloat(all[i][j], 64); err != nil {
				t.Fatal(err)
			}
		}
		rows = append(rows, row)
		label, err := strconv.Atoi(all[i][30])
		if err != nil {
			t.Fatal(err)
		}
		labels = append(labels, label)
	}
	return rows, labels
}

// heldOutAccuracy is that of a model on the rows that it was not trained on.
func heldOutAccuracy(t *testing.T, doc []byte) float64 {
	t.Helper()
	var m model
	if err := json.Unmarshal(doc, &m); err != nil {
		t.Fatalf("model.json: %v", err)
	}
	rows, labels := heldOut(t, doc)
	right := 0
	for i, row := range rows {
		score := m.Bias
		for j, w := range m.Weights {
			score += w * (row[j] - m.Mean[j]) / m.Std[j]
		}
		if (score >= 0) == (labels[i] == 1) {
			right++
		}
	}
	return float64(right) / float64(len(rows))
}

// TestExampleOutsideOfARun trains the example's model with nothing but python3 and something that speaks MLflow's REST API.
func TestExampleOutsideOfARun(t *testing.T) {
	needPython(t)
	t.Parallel()
	var mu sync.Mutex
	points := map[string][]float64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			RunID   string `json:"run_id"`
			Metrics []struct {
				Key   string  `json:"key"`
				Value float64 `json:"value"`
			} `json:"metrics"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.RunID != "r9" || !strings.HasPrefix(r.URL.Path, "/api/2.0/mlflow/runs/") {
			http.Error(w, "{}", http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, m := range in.Metrics {
			points[m.Key] = append(points[m.Key], m.Value)
		}
		_, _ = w.Write([]byte("{}"))
	}))
	defer server.Close()
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "python3", "train.py")
	cmd.Dir = example
	cmd.Env = append(os.Environ(), "MLFLOW_TRACKING_URI="+server.URL, "MLFLOW_RUN_ID=r9", "REDOUBT_OUTPUTS="+out, "PYTHONDONTWRITEBYTECODE=1")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	doc, err := os.ReadFile(filepath.Join(out, "model.json"))
	if err != nil {
		t.Fatal(err)
	}
	if a := heldOutAccuracy(t, doc); a < 0.95 {
		t.Errorf("held-out accuracy %.4f", a)
	}
	loss := points["loss"]
	if len(loss) != 40 || len(points["accuracy"]) != 40 || loss[39] >= loss[0] || math.IsNaN(loss[39]) {
		t.Errorf("logged %v", points)
	}
}

// TestExampleAsARun trains it as a run: the snapshot is its working folder, the agent logs for it, its output comes back (H3, H5).
func TestExampleAsARun(t *testing.T) {
	needSandbox(t)
	needPython(t)
	t.Parallel()
	p := newPlatform(t, "python3", "train.py")
	for _, name := range []string{"train.py", "breast-cancer.csv"} {
		b, err := os.ReadFile(filepath.Join(example, name))
		if err != nil {
			t.Fatal(err)
		}
		p.files[name] = b
	}
	live := 0 // metrics that were there while the command was still going
	p.onLog = func(log []byte) {
		if !strings.Contains(string(log), "held out: loss") {
			live = len(p.metrics)
		}
	}
	if r := p.carry(p.config()); r.GetState() != computev1.Run_STATE_COMPLETED || r.GetOutputs() != 1 {
		t.Fatalf("reported %v; log %s", r, p.log)
	}
	if a := heldOutAccuracy(t, p.outputs["model.json"]); a < 0.95 {
		t.Errorf("held-out accuracy %.4f", a)
	}
	if len(p.metrics) != 81 || live < 60 || p.params["epochs"] != "40" || p.tags["model"] == "" || !strings.Contains(string(p.log), "epoch 40") {
		t.Errorf("%d metrics, %d of them live; params %v, tags %v", len(p.metrics), live, p.params, p.tags)
	}
}
