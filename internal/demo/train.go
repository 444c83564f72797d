package demo

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/redoubt-ml/redoubt/examples"
	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
)

func (w *walk) createWorkspace(ctx context.Context) (string, error) {
	ws, err := w.admin.Resources().CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{
		Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: w.cfg.Workspace, DisplayName: "The walk",
	})
	if err != nil {
		return "", err
	}
	w.workspace, w.made = ws.GetName(), true
	return fmt.Sprintf("%s with its vault, its storage and the managed identity %s", ws.GetName(), ws.GetManagedIdentity()), nil
}

func (w *walk) upload(ctx context.Context) (string, error) {
	dir := filepath.Join(w.dir, "example")
	if err := example(dir); err != nil {
		return "", err
	}
	var last client.Progress
	s, err := w.admin.UploadSnapshot(ctx, w.workspace, dir, func(p client.Progress) { last = p })
	if err != nil {
		return "", err
	}
	w.snapshot = s.GetName()
	return fmt.Sprintf("%d files, %d bytes, encrypted under the workspace's key", last.Files, s.GetTotalBytes()), nil
}

// train submits the training and shows what it logs and measures while it runs.
func (w *walk) train(ctx context.Context) (string, error) {
	limit := time.Minute
	if w.remote() {
		limit = 3 * time.Minute // the machine that carries the run may have to come first
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	kind := computev1.Compute_KIND_LOCAL
	if w.remote() {
		kind = computev1.Compute_KIND_SELF_HOSTED
	}
	c, err := w.admin.Computes().CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: w.workspace, ComputeId: w.cfg.Target, Kind: kind, MaxRuns: 2})
	if err != nil {
		return "", err
	}
	w.compute = c.GetName()
	if w.remote() {
		if err := w.carried(ctx); err != nil {
			return "", err
		}
	}
	r, err := w.admin.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{
		Parent: w.workspace, RunId: "train-1", Compute: w.compute, Snapshot: w.snapshot, Command: []string{"python3", "train.py"}, Experiment: "breast-cancer",
		Limits: &computev1.RunLimits{Timeout: durationpb.New(50 * time.Second)},
	})
	if err != nil {
		return "", err
	}
	w.run = r.GetName()
	live, err := w.follow(ctx)
	if err != nil {
		return "", w.notTaken(err)
	}
	end, err := w.admin.WaitRun(ctx, w.run, nil)
	if err != nil {
		return "", err
	}
	if end.GetState() != computev1.Run_STATE_COMPLETED {
		return "", fmt.Errorf("the run ended as %s: %s", end.GetState(), end.GetMessage())
	}
	if live.epochs == 0 || !live.first.Before(end.GetEndTime().AsTime()) {
		return "", errors.New("no metric arrived while the run was still going")
	}
	return fmt.Sprintf("completed; %d epochs arrived while it ran, the last with loss %.4f and accuracy %.4f", live.epochs, live.loss, live.accuracy), nil
}

// seen is what came in while a run was going.
type seen struct {
	mu             sync.Mutex
	epochs         int
	first          time.Time // when the first epoch arrived
	loss, accuracy float64
}

// follow shows logs and metrics until both streams end, which they do with the run.
func (w *walk) follow(ctx context.Context) (*seen, error) {
	s := &seen{}
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	pr, pw := io.Pipe()
	wg.Go(func() {
		_, err := w.admin.FollowLogs(ctx, w.run, 0, true, pw)
		_ = pw.Close()
		errs <- err
	})
	wg.Go(func() {
		for lines := bufio.NewScanner(pr); lines.Scan(); {
			s.mu.Lock()
			w.printf("   log     %s\n", lines.Text())
			s.mu.Unlock()
		}
	})
	wg.Go(func() {
		byStep := make(map[int64]map[string]float64)
		errs <- w.admin.FollowMetrics(ctx, w.run, func(points []*telemetryv1.Metric) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, p := range points {
				if byStep[p.GetStep()] == nil {
					byStep[p.GetStep()] = make(map[string]float64)
				}
				m := byStep[p.GetStep()]
				m[p.GetKey()] = p.GetValue()
				loss, hasLoss := m["loss"]
				accuracy, hasAccuracy := m["accuracy"]
				if !hasLoss || !hasAccuracy || p.GetKey() != "loss" && p.GetKey() != "accuracy" {
					continue
				}
				s.epochs++
				s.loss, s.accuracy = loss, accuracy
				if s.first.IsZero() {
					s.first = w.cfg.Now()
				}
				w.printf("   metric  epoch %3d  loss %.4f  accuracy %.4f\n", p.GetStep(), loss, accuracy)
			}
			return nil
		})
	})
	wg.Wait()
	return s, errors.Join(<-errs, <-errs)
}

// model is what train.py leaves.
type model struct {
	Features []string  `json:"features"`
	Mean     []float64 `json:"mean"`
	Std      []float64 `json:"std"`
	Weights  []float64 `json:"weights"`
	Bias     float64   `json:"bias"`
	HeldOut  []int     `json:"held_out"`
}

// check downloads the model and computes from it, on the rows that training did not see, how often it is right.
func (w *walk) check(ctx context.Context) (string, error) {
	dir := filepath.Join(w.dir, "download")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := w.admin.DownloadOutputs(ctx, w.run, dir, nil, nil); err != nil {
		return "", err
	}
	b, err := os.ReadFile(filepath.Join(dir, "model.json"))
	if err != nil {
		return "", err
	}
	var m model
	if err := json.Unmarshal(b, &m); err != nil {
		return "", fmt.Errorf("model.json: %w", err)
	}
	accuracy, n, err := heldOut(m)
	if err != nil {
		return "", err
	}
	if accuracy < 0.95 {
		return "", fmt.Errorf("the model is right on %.1f %% of %d held-out rows, which is less than 95 %%", 100*accuracy, n)
	}
	return fmt.Sprintf("model.json, %d bytes; right on %.1f %% of %d held-out rows", len(b), 100*accuracy, n), nil
}

// heldOut computes the accuracy of a model on the rows that it names as held out.
func heldOut(m model) (accuracy float64, rows int, err error) {
	f, err := examples.BreastCancer.Open("breast-cancer/breast-cancer.csv")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	table, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return 0, 0, err
	}
	n := len(m.Weights)
	if n == 0 || len(m.Mean) != n || len(m.Std) != n || len(m.HeldOut) == 0 {
		return 0, 0, errors.New("model.json lacks weights, mean, std or held-out rows")
	}
	right := 0
	for _, i := range m.HeldOut {
		if i < 0 || i+1 >= len(table) || len(table[i+1]) != n+1 {
			return 0, 0, fmt.Errorf("model.json names row %d, which is not there", i)
		}
		z := m.Bias
		for j := range n {
			x, err := strconv.ParseFloat(table[i+1][j], 64)
			if err != nil {
				return 0, 0, err
			}
			z += m.Weights[j] * (x - m.Mean[j]) / m.Std[j]
		}
		if (1/(1+math.Exp(-z)) >= 0.5) == (table[i+1][n] == "1") {
			right++
		}
	}
	return float64(right) / float64(len(m.HeldOut)), len(m.HeldOut), nil
}

// activity shows that each step stands in the log, the refused ones too.
func (w *walk) activity(ctx context.Context) (string, error) {
	want := []string{
		"CreateWorkspace", "CreateSnapshot", "CreateCompute", "SubmitRun SUCCEEDED", "SubmitRun DENIED", "CreateRoleAssignment", "ReportRun", "runs/start",
		"CreateModelVersion", "CreateEndpoint", "CreateDeployment", "GetCredentials SUCCEEDED", "GetCredentials DENIED", "RegenerateKey", "DeleteEndpoint",
	}
	found := make(map[string]int)
	var total int
	var since *timestamppb.Timestamp
	if w.remote() {
		since = timestamppb.New(w.begun.Add(-time.Minute)) // its clock may be another
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		clear(found)
		total = 0
		for page := ""; ; {
			r, err := w.admin.Activity().ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000, PageToken: page, StartTime: since})
			if err != nil {
				return "", err
			}
			for _, e := range r.GetEvents() {
				total++
				method := e.GetMethod()[strings.LastIndexByte(e.GetMethod(), '/')+1:]
				found[method]++
				found[method+" "+strings.TrimPrefix(e.GetResult().String(), "RESULT_")]++
				if strings.HasPrefix(e.GetMethod(), "/compute/") {
					found["runs/"+method]++
				}
			}
			if page = r.GetNextPageToken(); page == "" {
				break
			}
		}
		var missing []string
		for _, m := range want {
			if found[m] == 0 {
				missing = append(missing, m)
			}
		}
		if len(missing) == 0 {
			break
		}
		if time.Now().After(deadline) { // records travel to telemetry in the background
			return "", fmt.Errorf("the activity log lacks %s", strings.Join(missing, ", "))
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	var counts []string
	for m, n := range found {
		if strings.HasSuffix(m, " DENIED") {
			counts = append(counts, fmt.Sprintf("%s ×%d", strings.TrimSuffix(m, " DENIED"), n))
		}
	}
	sort.Strings(counts)
	return fmt.Sprintf("%d events; refused: %s", total, strings.Join(counts, ", ")), nil
}
