package scale

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// mostAnswer is how large an answer may be, whatever a run has logged.
const mostAnswer = 24 << 20

// H5: a run with a million points: each is there, and what reads them stays within its bounds.
func TestMetrics(t *testing.T) {
	const keys, batch = 10, 1000
	points := sized(20_000, 1_000_000)
	l := newLab(t, "scale-metrics")
	r, err := l.Tracking().CreateTrackedRun(t.Context(), &computev1.CreateTrackedRunRequest{Parent: l.workspace})
	must(t, err)
	stop := memory(t, "metrics-batches")
	took(t, "metrics-batches-stored", func() {
		s, err := l.Metrics().LogRunData(t.Context())
		must(t, err)
		acked := make(chan error, 1)
		window := make(chan struct{}, 8)
		go func() {
			for {
				if _, err := s.Recv(); err != nil {
					acked <- err
					return
				}
				<-window
			}
		}()
		for n := 0; n < points; n += batch {
			m := &telemetryv1.LogRunDataRequest{Run: r.GetName(), BatchId: fmt.Sprint("b", n)}
			for i := n; i < n+batch; i++ {
				m.Metrics = append(m.Metrics, &telemetryv1.Metric{Key: fmt.Sprint("k", i%keys), Value: float64(i), Step: int64(i / keys), Time: timestamppb.Now()})
			}
			select {
			case window <- struct{}{}:
			case err := <-acked:
				t.Fatal(err)
			}
			must(t, s.Send(m))
		}
		must(t, s.CloseSend())
		if err := <-acked; !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	})
	stop()
	l.read(t, r, "metrics", points/keys, points)
}

// read looks at what a run has logged: k0 to k9, each with so many points, the last one of k9 with the highest value of all.
func (l *lab) read(t *testing.T, r *computev1.Run, name string, each, points int) {
	t.Helper()
	stop := memory(t, name+"-read")
	defer stop()
	took(t, name+"-history-of-one", func() {
		got, token := 0, ""
		for {
			h, err := l.Metrics().ListMetricHistory(t.Context(), &telemetryv1.ListMetricHistoryRequest{Run: r.GetName(), Key: "k3", PageSize: 50_000, PageToken: token})
			must(t, err)
			if n := proto.Size(h); n > mostAnswer {
				t.Errorf("a page of %d bytes", n)
			}
			got += len(h.GetMetrics())
			if token = h.GetNextPageToken(); token == "" {
				break
			}
		}
		if got != each {
			t.Errorf("%d points of one metric, want %d", got, each)
		}
	})
	took(t, name+"-latest", func() {
		d, err := l.Metrics().GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: r.GetName()})
		must(t, err)
		if len(d.GetLatest()) != 10 || proto.Size(d) > 64<<10 {
			t.Errorf("%d latest points in %d bytes", len(d.GetLatest()), proto.Size(d))
		}
	})
	took(t, name+"-search", func() {
		s, err := l.Tracking().SearchRuns(t.Context(), &computev1.SearchRunsRequest{Parent: l.workspace, Filter: fmt.Sprintf("metrics.k9 >= %d", points-1)})
		must(t, err)
		if len(s.GetRuns()) != 1 || s.GetRuns()[0].GetRun().GetUid() != r.GetUid() || proto.Size(s) > 64<<10 {
			t.Errorf("%d runs found in %d bytes", len(s.GetRuns()), proto.Size(s))
		}
	})
	took(t, name+"-watch-all", func() {
		w, err := l.Metrics().WatchMetrics(t.Context(), &telemetryv1.WatchMetricsRequest{Run: r.GetName()})
		must(t, err)
		for got := 0; got < points; {
			m, err := w.Recv()
			must(t, err)
			if n := proto.Size(m); n > mostAnswer {
				t.Fatalf("a message of %d bytes", n)
			}
			got += len(m.GetMetrics())
		}
	})
}

// The same, from user code through its agent.
func TestMetricsOfARun(t *testing.T) {
	points := sized(10_000, 1_000_000)
	l := newLab(t, "scale-agent")
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "train.py"), []byte(`
import json, os, sys, time, urllib.request
points, batch = int(sys.argv[1]), 1000
url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-batch"
for n in range(0, points, batch):
    body = {"run_id": os.environ["MLFLOW_RUN_ID"], "metrics": [
        {"key": "k%d" % (i % 10), "value": i, "step": i // 10, "timestamp": int(time.time() * 1000)} for i in range(n, n + batch)]}
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})).read()
`), 0o600))
	s, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil)
	must(t, err)
	stop := memory(t, "metrics-agent")
	var r *computev1.Run
	begin := time.Now()
	r, _ = l.run(t, s.GetName(), 0, "python3", "train.py", fmt.Sprint(points))
	figure("metrics-agent-run", fmt.Sprintf("%.2f", time.Since(begin).Seconds()), "s, from submit to end, of which the user's code makes the JSON")
	stop()
	l.read(t, r, "metrics-agent", points/10, points)
}
