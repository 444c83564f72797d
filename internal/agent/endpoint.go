package agent

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
)

// What is taken at once. What one request may hold stands in package mlflow.
const (
	mostAtOnce  = 64 // requests
	mostConns   = 256
	headerLimit = 16 << 10
)

// endpoint is what user code reaches of the platform: MLflow's REST API, as far as logging for its own run goes.
type endpoint struct {
	meter *meter
	runID string
	host  string
	now   func() time.Time
	slots chan struct{}
}

// server serves the run's endpoint, for a run of this id.
func (m *meter) server(runID string, port uint16, cfg Config) *http.Server {
	e := &endpoint{meter: m, runID: runID, host: sandbox.Address(port), now: cfg.Now, slots: make(chan struct{}, mostAtOnce)}
	return newServer(e, cfg)
}

func newServer(h http.Handler, cfg Config) *http.Server {
	// No WriteTimeout: an answer waits for as long as the platform is away.
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: headerLimit,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
}

// limited holds a listener to a number of connections; the next one waits.
type limited struct {
	net.Listener
	slots chan struct{}
}

// Accept implements net.Listener.
func (l limited) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

type limitedConn struct {
	net.Conn
	free func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// ServeHTTP implements http.Handler. A request is answered with 200 when what it brought is stored.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if bad := e.serve(w, r); bad != nil {
		if bad.Status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
		w.WriteHeader(bad.Status)
		_ = json.NewEncoder(w).Encode(bad) // fails when the client is gone
		return
	}
	_, _ = io.WriteString(w, "{}")
}

func (e *endpoint) serve(w http.ResponseWriter, r *http.Request) *mlflow.Refusal {
	if host, _, err := net.SplitHostPort(e.host); r.Host != e.host && (err != nil || r.Host != strings.Replace(e.host, host, "localhost", 1)) {
		return mlflow.Refuse(http.StatusForbidden, "PERMISSION_DENIED", "this endpoint is at http://"+e.host)
	}
	route, ok := strings.CutPrefix(r.URL.Path, "/api/2.0/mlflow/runs/")
	if !ok {
		route, ok = strings.CutPrefix(r.URL.Path, "/ajax-api/2.0/mlflow/runs/")
	}
	read, known := map[string]func([]byte) (mlflow.RunIDs, *mlflow.Batch, *mlflow.Refusal){
		"log-metric": e.logMetric, "log-batch": e.logBatch, "log-parameter": e.logParameter, "set-tag": e.setTag,
	}[route]
	if !ok || !known || r.Method != http.MethodPost {
		return mlflow.Refuse(http.StatusNotFound, "ENDPOINT_NOT_FOUND", "a run's endpoint has POST /api/2.0/mlflow/runs/{log-metric,log-batch,log-parameter,set-tag}")
	}
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	default:
		return mlflow.Refuse(http.StatusServiceUnavailable, "TEMPORARILY_UNAVAILABLE", "too many requests at once")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mlflow.MostBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return mlflow.Refuse(http.StatusRequestEntityTooLarge, "INVALID_PARAMETER_VALUE", "a request has at most 1 MiB")
		}
		return mlflow.Refuse(http.StatusBadRequest, "BAD_REQUEST", "the request broke off")
	}
	id, batch, bad := read(body)
	if bad != nil {
		return bad
	}
	logged, bad := batch.Check(e.now())
	if bad != nil {
		return bad
	}
	if bad := e.checkRun(id); bad != nil {
		return bad
	}
	req := &telemetryv1.LogRunDataRequest{Metrics: logged.Metrics, Params: logged.Params, Tags: logged.Tags}
	if len(req.GetMetrics())+len(req.GetParams())+len(req.GetTags()) == 0 {
		return nil
	}
	if err := e.meter.store(r.Context(), req); err != nil {
		return refusalOf(err)
	}
	return nil
}

func refusalOf(err error) *mlflow.Refusal {
	switch fault.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return mlflow.Refuse(http.StatusServiceUnavailable, "TEMPORARILY_UNAVAILABLE", text(err))
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return mlflow.Refuse(http.StatusInternalServerError, "INTERNAL_ERROR", text(err))
	case codes.PermissionDenied, codes.Unauthenticated:
		return mlflow.Refuse(http.StatusForbidden, "PERMISSION_DENIED", text(err))
	case codes.NotFound:
		return mlflow.Refuse(http.StatusNotFound, "RESOURCE_DOES_NOT_EXIST", text(err))
	}
	// Also a used up limit: clients repeat what they get a 429 for, and this one does not pass.
	return mlflow.BadParameter(text(err))
}

// checkRun refuses every run but this one.
func (e *endpoint) checkRun(id mlflow.RunIDs) *mlflow.Refusal {
	have := id.RunID
	if have == "" {
		have = id.RunUUID
	}
	switch {
	case have == "":
		return mlflow.BadParameter("run_id is missing; it is in the environment variable MLFLOW_RUN_ID")
	case have != e.runID || id.RunUUID != "" && id.RunUUID != have:
		return mlflow.Refuse(http.StatusForbidden, "PERMISSION_DENIED", "a run logs for itself only; its id is in the environment variable MLFLOW_RUN_ID")
	}
	return nil
}

func (e *endpoint) logMetric(body []byte) (mlflow.RunIDs, *mlflow.Batch, *mlflow.Refusal) {
	var in struct {
		mlflow.RunIDs
		mlflow.Metric
	}
	bad := mlflow.Decode(body, &in)
	return in.RunIDs, &mlflow.Batch{Metrics: []mlflow.Metric{in.Metric}}, bad
}

func (e *endpoint) logParameter(body []byte) (mlflow.RunIDs, *mlflow.Batch, *mlflow.Refusal) {
	id, text, bad := logText(body)
	return id, &mlflow.Batch{Params: text}, bad
}

func (e *endpoint) setTag(body []byte) (mlflow.RunIDs, *mlflow.Batch, *mlflow.Refusal) {
	id, text, bad := logText(body)
	return id, &mlflow.Batch{Tags: text}, bad
}

func logText(body []byte) (mlflow.RunIDs, []mlflow.Text, *mlflow.Refusal) {
	var in struct {
		mlflow.RunIDs
		mlflow.Text
	}
	bad := mlflow.Decode(body, &in)
	return in.RunIDs, []mlflow.Text{in.Text}, bad
}

func (e *endpoint) logBatch(body []byte) (mlflow.RunIDs, *mlflow.Batch, *mlflow.Refusal) {
	var in struct {
		mlflow.RunIDs
		mlflow.Batch
	}
	bad := mlflow.Decode(body, &in)
	return in.RunIDs, &in.Batch, bad
}
