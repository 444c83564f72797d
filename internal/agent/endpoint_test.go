package agent

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// endpointAt serves an endpoint whose batches are answered by store.
func endpointAt(t *testing.T, readTimeout time.Duration, store func(*telemetryv1.LogRunDataRequest) error) string {
	t.Helper()
	m := newMeter(nil, "")
	server := m.server("r1", 0, Config{Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	server.ReadTimeout = readTimeout
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { _ = server.Serve(l) }()
	go func() {
		defer close(ended)
		for m.pending(ctx) {
			m.mu.Lock()
			req := m.wait[0].req
			m.mu.Unlock()
			m.answer(req.GetBatchId(), store(req))
		}
	}()
	t.Cleanup(func() { _ = server.Close(); cancel(); <-ended })
	return "http://" + l.Addr().String()
}

func post(t *testing.T, method, url, host, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b) || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the answer is no JSON: %q", b)
	}
	return res.StatusCode, string(b)
}

func many(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }

// TestEndpoint speaks MLflow's REST API, well and badly (H5).
func TestEndpoint(t *testing.T) {
	const base = "/api/2.0/mlflow/runs/"
	metric := func(value, more string) string {
		return `{"run_id":"r1","key":"k","timestamp":1,"value":` + value + more + `}`
	}
	cases := []struct {
		name, path, body string
		method, host     string
		status           int
		code             string // of the error
		check            func(*telemetryv1.LogRunDataRequest) bool
	}{
		{name: "metric", path: base + "log-metric", body: `{"run_id":"r1","run_uuid":"r1","key":"loss","value":0.25,"timestamp":1700000000123,"step":3,"model_id":"x"}`, status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool {
			m := r.GetMetrics()[0]
			return m.GetKey() == "loss" && m.GetValue() == 0.25 && m.GetStep() == 3 && m.GetTime().AsTime().UnixMilli() == 1700000000123
		}},
		{name: "ajax prefix", path: "/ajax-api/2.0/mlflow/runs/log-metric", body: metric("1", ""), status: 200},
		{name: "localhost", path: base + "log-metric", host: "localhost:7460", body: metric("1", ""), status: 200},
		{name: "run_uuid alone", path: base + "log-metric", body: `{"run_uuid":"r1","key":"k","value":1}`, status: 200},
		{name: "numbers as strings", path: base + "log-metric", body: metric(`"1.5"`, `,"step":"9007199254740993"`), status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool {
			return r.GetMetrics()[0].GetValue() == 1.5 && r.GetMetrics()[0].GetStep() == 9007199254740993
		}},
		{name: "negative step", path: base + "log-metric", body: metric(`1`, `,"step":-5`), status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool { return r.GetMetrics()[0].GetStep() == -5 }},
		{name: "NaN", path: base + "log-metric", body: metric(`"NaN"`, ""), status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool { return math.IsNaN(r.GetMetrics()[0].GetValue()) }},
		{name: "infinite", path: base + "log-metric", body: metric(`"-Infinity"`, ""), status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool { return math.IsInf(r.GetMetrics()[0].GetValue(), -1) }},
		{name: "parameter", path: base + "log-parameter", body: `{"run_id":"r1","key":"lr","value":"0.1"}`, status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool {
			return r.GetParams()[0].GetKey() == "lr" && r.GetParams()[0].GetValue() == "0.1"
		}},
		{name: "tag", path: base + "set-tag", body: `{"run_id":"r1","key":"a","value":""}`, status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool { return r.GetTags()[0].GetKey() == "a" }},
		{name: "batch", path: base + "log-batch", body: `{"run_id":"r1","metrics":[{"key":"a","value":1,"timestamp":1,"step":1},{"key":"b","value":2}],"params":[{"key":"p","value":"v"}],"tags":[{"key":"t","value":"v"}]}`, status: 200, check: func(r *telemetryv1.LogRunDataRequest) bool {
			return len(r.GetMetrics()) == 2 && len(r.GetParams()) == 1 && len(r.GetTags()) == 1
		}},
		{name: "empty batch", path: base + "log-batch", body: `{"run_id":"r1"}`, status: 200},
		{name: "full batch", path: base + "log-batch", body: `{"run_id":"r1","metrics":[` + many(1000, `{"key":"a","value":1}`) + `]}`, status: 200},

		{name: "batch too long", path: base + "log-batch", body: `{"run_id":"r1","metrics":[` + many(1001, `{"key":"a","value":1}`) + `]}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "too many params", path: base + "log-batch", body: `{"run_id":"r1","params":[` + many(101, `{"key":"a","value":"1"}`) + `]}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "too many tags", path: base + "log-batch", body: `{"run_id":"r1","tags":[` + many(101, `{"key":"a","value":"1"}`) + `]}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "another run", path: base + "log-metric", body: `{"run_id":"r2","key":"k","value":1}`, status: 403, code: "PERMISSION_DENIED"},
		{name: "two runs", path: base + "log-metric", body: `{"run_id":"r1","run_uuid":"r2","key":"k","value":1}`, status: 403, code: "PERMISSION_DENIED"},
		{name: "no run", path: base + "log-metric", body: `{"key":"k","value":1}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "no value", path: base + "log-metric", body: `{"run_id":"r1","key":"k"}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "null value", path: base + "log-metric", body: metric("null", ""), status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "value is a word", path: base + "log-metric", body: metric(`"high"`, ""), status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "value past doubles", path: base + "log-metric", body: metric(`1e999`, ""), status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "bare NaN", path: base + "log-metric", body: metric(`NaN`, ""), status: 400, code: "BAD_REQUEST"},
		{name: "half a step", path: base + "log-metric", body: metric("1", `,"step":1.5`), status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "step past int64", path: base + "log-metric", body: metric("1", `,"step":9223372036854775808`), status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "time past all time", path: base + "log-metric", body: `{"run_id":"r1","key":"k","value":1,"timestamp":9223372036854775807}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "no key", path: base + "log-metric", body: `{"run_id":"r1","value":1}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "long key", path: base + "set-tag", body: `{"run_id":"r1","key":"` + strings.Repeat("k", 251) + `","value":"v"}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "long parameter", path: base + "log-parameter", body: `{"run_id":"r1","key":"k","value":"` + strings.Repeat("k", 6001) + `"}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "a number as text", path: base + "set-tag", body: `{"run_id":"r1","key":"k","value":1}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "refused by telemetry", path: base + "log-parameter", body: `{"run_id":"r1","key":"refuse","value":"x"}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "a limit of telemetry", path: base + "log-parameter", body: `{"run_id":"r1","key":"limit","value":"x"}`, status: 400, code: "INVALID_PARAMETER_VALUE"},
		{name: "no JSON", path: base + "log-metric", body: `loss=1`, status: 400, code: "BAD_REQUEST"},
		{name: "too large", path: base + "log-batch", body: `{"run_id":"r1"` + strings.Repeat(" ", 1<<20) + `}`, status: 413, code: "INVALID_PARAMETER_VALUE"},
		{name: "another host", path: base + "log-metric", host: "evil.example", body: metric("1", ""), status: 403, code: "PERMISSION_DENIED"},
		{name: "GET", method: http.MethodGet, path: base + "log-metric", body: metric("1", ""), status: 404, code: "ENDPOINT_NOT_FOUND"},
		{name: "log-param", path: base + "log-param", body: metric("1", ""), status: 404, code: "ENDPOINT_NOT_FOUND"},
		{name: "no prefix", path: "log-metric", body: metric("1", ""), status: 404, code: "ENDPOINT_NOT_FOUND"},
		{name: "other routes", path: "/api/2.0/mlflow/experiments/create", body: `{}`, status: 404, code: "ENDPOINT_NOT_FOUND"},
	}
	var got *telemetryv1.LogRunDataRequest
	url := endpointAt(t, time.Minute, func(req *telemetryv1.LogRunDataRequest) error {
		got = proto.CloneOf(req)
		switch {
		case len(req.GetParams()) == 1 && req.GetParams()[0].GetKey() == "refuse":
			return fault.InvalidArgument("it has another value")
		case len(req.GetParams()) == 1 && req.GetParams()[0].GetKey() == "limit":
			return fault.ResourceExhausted("too many")
		}
		return nil
	})
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got = nil
			method, host := c.method, c.host
			if method == "" {
				method = http.MethodPost
			}
			if host == "" {
				host = sandbox.Address(0)
			}
			status, body := post(t, method, url+"/"+strings.TrimPrefix(c.path, "/"), host, c.body)
			var answer struct {
				Code string `json:"error_code"`
			}
			_ = json.Unmarshal([]byte(body), &answer)
			if status != c.status || answer.Code != c.code || c.status == 200 && body != "{}" {
				t.Errorf("%d %s", status, body)
			}
			if c.check != nil && (got == nil || !c.check(got)) {
				t.Errorf("stored %v", got)
			}
		})
	}
}

// TestEndpointWaits answers late, since the platform is away for longer than a request may take to come in.
func TestEndpointWaits(t *testing.T) {
	release := make(chan struct{})
	url := endpointAt(t, 50*time.Millisecond, func(*telemetryv1.LogRunDataRequest) error { <-release; return nil })
	time.AfterFunc(200*time.Millisecond, func() { close(release) })
	if status, body := post(t, http.MethodPost, url+"/api/2.0/mlflow/runs/set-tag", sandbox.Address(0), `{"run_id":"r1","key":"k","value":"v"}`); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
}

// TestBatchID has what comes again be the same batch, where storing it once is what was meant.
func TestBatchID(t *testing.T) {
	metric := func(v float64) *telemetryv1.LogRunDataRequest {
		return &telemetryv1.LogRunDataRequest{Metrics: []*telemetryv1.Metric{{Key: "k", Value: v}}}
	}
	tag := func() *telemetryv1.LogRunDataRequest {
		return &telemetryv1.LogRunDataRequest{Tags: []*telemetryv1.Tag{{Key: "k", Value: "v"}}}
	}
	for _, c := range []struct {
		name string
		a, b *telemetryv1.LogRunDataRequest
		same bool
	}{{"metric again", metric(1), metric(1), true}, {"another metric", metric(1), metric(2), false}, {"tag again", tag(), tag(), false}} {
		a, errA := batchID(c.a)
		b, errB := batchID(c.b)
		if errA != nil || errB != nil || (a == b) != c.same || len(a) > 64 || len(b) > 64 {
			t.Errorf("%s: %q %q %v %v", c.name, a, b, errA, errB)
		}
	}
}

// TestLogsAreBounded writes more than may wait: the writer goes on as it is stored, and never has more waiting.
func TestLogsAreBounded(t *testing.T) {
	const most, size = 10, 1000
	l := newLogs(nil, "", 0, most)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range size / 4 {
			if n, err := l.Write([]byte("abcd")); n != 4 || err != nil {
				t.Errorf("wrote %d: %v", n, err)
			}
		}
	}()
	for stored := int64(0); stored < size; {
		if !l.pending(t.Context()) {
			t.Fatal("nothing to send")
		}
		l.mu.Lock()
		n := len(l.wait)
		l.mu.Unlock()
		if n > most {
			t.Fatalf("%d bytes wait", n)
		}
		stored++
		l.acknowledge(&computev1.AppendLogsResponse{Stored: stored})
	}
	<-ended
	if n, err := l.drain(t.Context()); n != size || err != nil {
		t.Errorf("drained at %d: %v", n, err)
	}
}

// TestLogsAreDropped has nobody take the log: the writer is not held up.
func TestLogsAreDropped(t *testing.T) {
	for name, drop := range map[string]func(*logs){
		"gone": (*logs).discard,
		"full": func(l *logs) { l.acknowledge(&computev1.AppendLogsResponse{Stored: 3, Full: true}) },
	} {
		l := newLogs(nil, "", 0, 10)
		ended := make(chan struct{})
		go func() { defer close(ended); _, _ = l.Write(make([]byte, 100)) }()
		if !l.pending(t.Context()) {
			t.Fatal(name)
		}
		drop(l)
		<-ended
		if len(l.wait) != 0 {
			t.Errorf("%s: %d bytes wait", name, len(l.wait))
		}
	}
}
