package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/redoubt-ml/redoubt/examples"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// register makes the run's output the first version of a model (H6).
func (w *walk) register(ctx context.Context) (string, error) {
	models := inferencev1.NewModelServiceClient(w.admin.Conn())
	name := w.workspace + "/models/breast-cancer"
	v, err := models.CreateModelVersion(ctx, &inferencev1.CreateModelVersionRequest{
		Parent: name, SourceRun: w.run, SourcePath: "model.json", CreateModel: true, Description: "logistic regression on 30 features",
	})
	if err != nil {
		return "", err
	}
	if v.GetSourceRun() != w.run || v.GetSourceSnapshot() != w.snapshot || len(v.GetSignature()) == 0 {
		return "", fmt.Errorf("the version does not say where it came from: run %q, snapshot %q, a signature of %d bytes", v.GetSourceRun(), v.GetSourceSnapshot(), len(v.GetSignature()))
	}
	if _, err := models.SetModelAlias(ctx, &inferencev1.SetModelAliasRequest{Name: name, Alias: "champion", Version: v.GetVersion()}); err != nil {
		return "", err
	}
	w.model = name + "/versions/champion"
	return fmt.Sprintf("breast-cancer version %d, signed, from run train-1 and its snapshot; its alias is champion", v.GetVersion()), nil
}

// deploy puts the model behind an endpoint and waits until it answers.
func (w *walk) deploy(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	endpoints := inferencev1.NewEndpointServiceClient(w.admin.Conn())
	e, err := endpoints.CreateEndpoint(ctx, &inferencev1.CreateEndpointRequest{Parent: w.workspace, EndpointId: "tumours", Endpoint: &inferencev1.NewEndpoint{Kind: inferencev1.Endpoint_KIND_LOCAL}})
	if err != nil {
		return "", err
	}
	w.endpoint, w.scoring = e.GetName(), e.GetScoringUri()
	d, err := endpoints.CreateDeployment(ctx, &inferencev1.CreateDeploymentRequest{Parent: w.endpoint, DeploymentId: "blue", Deployment: &inferencev1.DeploymentSpec{
		Model: w.model, Snapshot: w.snapshot, EntryScript: "score.py", Compute: w.compute, Workers: 2, RequestTimeout: durationpb.New(10 * time.Second),
	}})
	if err != nil {
		return "", err
	}
	watch, err := endpoints.WatchDeployment(ctx, &inferencev1.WatchDeploymentRequest{Name: d.GetName()})
	if err != nil {
		return "", err
	}
	for d.GetState() != inferencev1.Deployment_STATE_READY {
		if d.GetState() == inferencev1.Deployment_STATE_FAILED {
			return "", fmt.Errorf("the deployment failed: %s", d.GetMessage())
		}
		if d, err = watch.Recv(); err != nil {
			return "", fmt.Errorf("the deployment was not ready in time (%s): %w", d.GetMessage(), err)
		}
	}
	return fmt.Sprintf("1 replica with %d workers in the sandbox answers for %s", d.GetSpec().GetWorkers(), e.GetScoringUri()), nil
}

// caller scores over TLS as any HTTP client does.
type caller struct {
	http *http.Client
	uri  string
}

func (w *walk) caller() (*caller, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(w.ca) {
		return nil, errors.New("the installation's root is no certificate")
	}
	return &caller{http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}}}, uri: w.scoring}, nil
}

func (c *caller) close() { c.http.CloseIdleConnections() }

// answer is what score.py says.
type answer struct {
	Predictions []int `json:"predictions"`
}

// score asks about rows. A status other than 200 is no error.
func (c *caller) score(ctx context.Context, key redact.Secret, rows [][]float64) (status int, a answer, err error) {
	body, err := json.Marshal(map[string]any{"data": rows})
	if err != nil {
		return 0, a, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.uri, bytes.NewReader(body))
	if err != nil {
		return 0, a, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key.RevealString())
	res, err := c.http.Do(req)
	if err != nil {
		return 0, a, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return 0, a, err
	}
	if res.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, &a); err != nil || len(a.Predictions) != len(rows) {
			return 0, a, fmt.Errorf("the answer has %d predictions for %d rows: %w", len(a.Predictions), len(rows), err)
		}
	}
	return res.StatusCode, a, nil
}

// scoreAll asks for each held-out row by itself, and counts how often the answer is right.
func (w *walk) scoreAll(ctx context.Context) (string, error) {
	endpoints := inferencev1.NewEndpointServiceClient(w.admin.Conn())
	keys, err := endpoints.GetCredentials(ctx, &inferencev1.GetCredentialsRequest{Name: w.endpoint})
	if err != nil {
		return "", err
	}
	w.primary, w.secondary = redact.FromString(keys.GetPrimaryKey()), redact.FromString(keys.GetSecondaryKey())
	rows, labels, err := w.heldOutRows()
	if err != nil {
		return "", err
	}
	c, err := w.caller()
	if err != nil {
		return "", err
	}
	defer c.close()
	right, took := 0, make([]time.Duration, 0, len(rows))
	for i, row := range rows {
		began := time.Now()
		status, a, err := c.score(ctx, w.primary, [][]float64{row})
		if err != nil || status != http.StatusOK {
			return "", fmt.Errorf("row %d: status %d: %w", i, status, err)
		}
		took = append(took, time.Since(began))
		if a.Predictions[0] == labels[i] {
			right++
		}
	}
	accuracy := float64(right) / float64(len(rows))
	if accuracy < 0.95 {
		return "", fmt.Errorf("the endpoint is right on %.1f %% of %d held-out rows, which is less than 95 %%", 100*accuracy, len(rows))
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	return fmt.Sprintf("%d requests over TLS, right on %.1f %%; the median took %s", len(rows), 100*accuracy, took[len(took)/2].Round(10*time.Microsecond)), nil
}

// heldOutRows are the rows that the downloaded model names, with their labels.
func (w *walk) heldOutRows() (rows [][]float64, labels []int, err error) {
	b, err := os.ReadFile(filepath.Join(w.dir, "download", "model.json"))
	if err != nil {
		return nil, nil, err
	}
	var m model
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, nil, err
	}
	f, err := examples.BreastCancer.Open("breast-cancer/breast-cancer.csv")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	table, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, nil, err
	}
	for _, i := range m.HeldOut {
		if i < 0 || i+1 >= len(table) {
			return nil, nil, fmt.Errorf("model.json names row %d, which is not there", i)
		}
		line := table[i+1]
		row := make([]float64, len(line)-1)
		for j := range row {
			if row[j], err = strconv.ParseFloat(line[j], 64); err != nil {
				return nil, nil, err
			}
		}
		label, err := strconv.Atoi(line[len(line)-1])
		if err != nil {
			return nil, nil, err
		}
		rows, labels = append(rows, row), append(labels, label)
	}
	return rows, labels, nil
}

// keys tries a wrong key, and replaces the primary one while the secondary one is in use (A5).
func (w *walk) keys(ctx context.Context) (string, error) {
	rows, _, err := w.heldOutRows()
	if err != nil {
		return "", err
	}
	c, err := w.caller()
	if err != nil {
		return "", err
	}
	defer c.close()
	try := func(what string, key redact.Secret, want int) error {
		status, _, err := c.score(ctx, key, rows[:1])
		if err == nil && status != want {
			err = fmt.Errorf("%s: status %d, want %d", what, status, want)
		}
		return err
	}
	if err := try("a wrong key", redact.FromString("rdk_"+rand.Text()+rand.Text()), http.StatusUnauthorized); err != nil {
		return "", err
	}
	busy, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	calls, failed := 0, error(nil)
	started := make(chan struct{})
	load.Go(func() {
		for once := sync.OnceFunc(func() { close(started) }); failed == nil; calls++ {
			status, _, err := c.score(ctx, w.secondary, rows[:1])
			if err != nil || status != http.StatusOK {
				failed = fmt.Errorf("the secondary key while the primary one was replaced: status %d: %w", status, err)
			}
			once()
			if busy.Err() != nil {
				return
			}
		}
	})
	<-started
	regenerated, err := inferencev1.NewEndpointServiceClient(w.admin.Conn()).RegenerateKey(ctx, &inferencev1.RegenerateKeyRequest{Name: w.endpoint, KeyType: inferencev1.KeyType_KEY_TYPE_PRIMARY})
	if err == nil {
		err = errors.Join(
			try("the old primary key", w.primary, http.StatusUnauthorized),
			try("the new primary key", redact.FromString(regenerated.GetPrimaryKey()), http.StatusOK),
		)
	}
	stop()
	load.Wait()
	if err := errors.Join(err, failed); err != nil {
		return "", err
	}
	return fmt.Sprintf("a wrong key: 401; primary replaced: the old one 401, the new one 200; %d calls with the secondary one meanwhile, 0 failed", calls), nil
}

// readerScores has the Reader score under his role, and shows that he gets no key by it (B1).
func (w *walk) readerScores(ctx context.Context) (string, error) {
	reader, err := w.connect(w.reader)
	if err != nil {
		return "", err
	}
	defer func() { _ = reader.Close() }()
	rows, _, err := w.heldOutRows()
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]any{"data": rows})
	if err != nil {
		return "", err
	}
	res, err := inferencev1.NewScoringServiceClient(reader.Conn()).Score(ctx, &inferencev1.ScoreRequest{Endpoint: w.endpoint, ContentType: "application/json", Data: body})
	if err != nil {
		return "", err
	}
	var a answer
	if err := json.Unmarshal(res.GetData(), &a); err != nil || len(a.Predictions) != len(rows) {
		return "", fmt.Errorf("the answer has %d predictions for %d rows (status %d): %w", len(a.Predictions), len(rows), res.GetStatus(), err)
	}
	_, err = inferencev1.NewEndpointServiceClient(reader.Conn()).GetCredentials(ctx, &inferencev1.GetCredentialsRequest{Name: w.endpoint})
	f := fault.Describe(fault.FromStatus(err))
	if fault.Code(f) != codes.PermissionDenied || f.Metadata()["action"] != "inference/endpoints/listKeys" {
		return "", fmt.Errorf("a Reader's look at the keys was not refused as it should be: %w", err)
	}
	return fmt.Sprintf("%d rows in one call, without a key; reading the keys: %s, the action %s is missing", len(rows), fault.CodeName(codes.PermissionDenied), f.Metadata()["action"]), nil
}

// scoringLog shows that what was answered and what was refused stands in the log (G3).
func (w *walk) scoringLog(ctx context.Context) (string, error) {
	requests := telemetryv1.NewRequestLogServiceClient(w.admin.Conn())
	deadline := time.Now().Add(10 * time.Second)
	for {
		byStatus, byAuth := make(map[string]int), make(map[string]int)
		total := 0
		for page := ""; ; {
			r, err := requests.ListRequests(ctx, &telemetryv1.ListRequestsRequest{Endpoint: w.endpoint, PageSize: 1000, PageToken: page})
			if err != nil {
				return "", err
			}
			if r.GetDropped() != 0 {
				return "", fmt.Errorf("%d requests were not kept", r.GetDropped())
			}
			for _, q := range r.GetRequests() {
				total++
				byStatus[strconv.Itoa(int(q.GetStatusCode()))]++
				byAuth[q.GetAuth()]++
			}
			if page = r.GetNextPageToken(); page == "" {
				break
			}
		}
		if byStatus["401"] == 2 && byAuth["key-primary"] > 100 && byAuth["key-secondary"] > 0 && byAuth["role"] == 1 {
			return fmt.Sprintf("%d requests: %s; %s", total, counts(byStatus), counts(byAuth)), nil
		}
		if time.Now().After(deadline) { // records travel to telemetry in the background
			return "", fmt.Errorf("the scoring log is not what was asked: %s; %s", counts(byStatus), counts(byAuth))
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// counts writes a table of numbers in the order of its keys.
func counts(m map[string]int) string {
	list := make([]string, 0, len(m))
	for k, n := range m {
		if k == "" {
			k = "refused"
		}
		list = append(list, fmt.Sprintf("%s ×%d", k, n))
	}
	sort.Strings(list)
	return strings.Join(list, ", ")
}

// takeDown removes the endpoint, and sees that nobody answers there any more.
func (w *walk) takeDown(ctx context.Context) (string, error) {
	if _, err := inferencev1.NewEndpointServiceClient(w.admin.Conn()).DeleteEndpoint(ctx, &inferencev1.DeleteEndpointRequest{Name: w.endpoint}); err != nil {
		return "", err
	}
	c, err := w.caller()
	if err != nil {
		return "", err
	}
	defer c.close()
	rows, _, err := w.heldOutRows()
	if err != nil {
		return "", err
	}
	status, _, err := c.score(ctx, w.secondary, rows[:1])
	if err != nil {
		return "", err
	}
	if status != http.StatusUnauthorized && status != http.StatusNotFound {
		return "", fmt.Errorf("the endpoint still answers: status %d", status)
	}
	if w.remote() {
		return fmt.Sprintf("its key reads %d; whether its replica has ended is for the machine that carried it to say", status), nil
	}
	// The replica finishes what it has and ends by itself; its agent would outlive the installation otherwise.
	if err := eventually(ctx, func() error { return working(w.dir) }); err != nil {
		return "", fmt.Errorf("the replica goes on: %w", err)
	}
	return fmt.Sprintf("its key reads %d; its replica has ended", status), nil
}
