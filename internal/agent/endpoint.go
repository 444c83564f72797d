package agent

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// What one request may hold (those of MLflow's own server).
const (
	mostBody    = 1 << 20
	mostItems   = 1000
	mostParams  = 100
	mostTags    = 100
	mostKey     = 250
	mostParam   = 6000
	mostTag     = 8000
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

// refusalJSON is an error as MLflow's clients read it.
type refusalJSON struct {
	status  int
	Code    string `json:"error_code"`
	Message string `json:"message"`
}

func refuse(status int, code, message string) *refusalJSON {
	return &refusalJSON{status, code, message}
}

func badParameter(message string) *refusalJSON {
	return refuse(http.StatusBadRequest, "INVALID_PARAMETER_VALUE", message)
}

// ServeHTTP implements http.Handler. A request is answered with 200 when what it brought is stored.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if bad := e.serve(w, r); bad != nil {
		if bad.status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
		w.WriteHeader(bad.status)
		_ = json.NewEncoder(w).Encode(bad) // fails when the client is gone
		return
	}
	_, _ = io.WriteString(w, "{}")
}

func (e *endpoint) serve(w http.ResponseWriter, r *http.Request) *refusalJSON {
	if host, _, err := net.SplitHostPort(e.host); r.Host != e.host && (err != nil || r.Host != strings.Replace(e.host, host, "localhost", 1)) {
		return refuse(http.StatusForbidden, "PERMISSION_DENIED", "this endpoint is at http://"+e.host)
	}
	route, ok := strings.CutPrefix(r.URL.Path, "/api/2.0/mlflow/runs/")
	if !ok {
		route, ok = strings.CutPrefix(r.URL.Path, "/ajax-api/2.0/mlflow/runs/")
	}
	read, known := map[string]func([]byte) (ids, *telemetryv1.LogRunDataRequest, *refusalJSON){
		"log-metric": e.logMetric, "log-batch": e.logBatch, "log-parameter": e.logParameter, "set-tag": e.setTag,
	}[route]
	if !ok || !known || r.Method != http.MethodPost {
		return refuse(http.StatusNotFound, "ENDPOINT_NOT_FOUND", "a run's endpoint has POST /api/2.0/mlflow/runs/{log-metric,log-batch,log-parameter,set-tag}")
	}
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	default:
		return refuse(http.StatusServiceUnavailable, "TEMPORARILY_UNAVAILABLE", "too many requests at once")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBody))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return refuse(http.StatusRequestEntityTooLarge, "INVALID_PARAMETER_VALUE", "a request has at most 1 MiB")
		}
		return refuse(http.StatusBadRequest, "BAD_REQUEST", "the request broke off")
	}
	id, req, bad := read(body)
	if bad != nil {
		return bad
	}
	if bad := e.checkRun(id); bad != nil {
		return bad
	}
	if len(req.GetMetrics())+len(req.GetParams())+len(req.GetTags()) == 0 {
		return nil
	}
	if err := e.meter.store(r.Context(), req); err != nil {
		return refusalOf(err)
	}
	return nil
}

func refusalOf(err error) *refusalJSON {
	switch fault.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return refuse(http.StatusServiceUnavailable, "TEMPORARILY_UNAVAILABLE", text(err))
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return refuse(http.StatusInternalServerError, "INTERNAL_ERROR", text(err))
	case codes.PermissionDenied, codes.Unauthenticated:
		return refuse(http.StatusForbidden, "PERMISSION_DENIED", text(err))
	case codes.NotFound:
		return refuse(http.StatusNotFound, "RESOURCE_DOES_NOT_EXIST", text(err))
	}
	// Also a used up limit: clients repeat what they get a 429 for, and this one does not pass.
	return badParameter(text(err))
}

// checkRun refuses every run but this one.
func (e *endpoint) checkRun(id ids) *refusalJSON {
	have := id.RunID
	if have == "" {
		have = id.RunUUID
	}
	switch {
	case have == "":
		return badParameter("run_id is missing; it is in the environment variable MLFLOW_RUN_ID")
	case have != e.runID || id.RunUUID != "" && id.RunUUID != have:
		return refuse(http.StatusForbidden, "PERMISSION_DENIED", "a run logs for itself only; its id is in the environment variable MLFLOW_RUN_ID")
	}
	return nil
}

type ids struct {
	RunID   string `json:"run_id"`
	RunUUID string `json:"run_uuid"`
}

type metricJSON struct {
	Key       string   `json:"key"`
	Value     *number  `json:"value"`
	Timestamp *integer `json:"timestamp"`
	Step      *integer `json:"step"`
}

type textJSON struct {
	Key   string  `json:"key"`
	Value *string `json:"value"`
}

func decode(body []byte, into any) *refusalJSON {
	if err := json.Unmarshal(body, into); err != nil {
		var wrong *json.UnmarshalTypeError
		var bad *badNumberError
		switch {
		case errors.As(err, &bad):
			return badParameter(bad.Error())
		case errors.As(err, &wrong):
			return badParameter("the field " + strconv.Quote(wrong.Field) + " cannot be a JSON " + wrong.Value)
		}
		return refuse(http.StatusBadRequest, "BAD_REQUEST", `the body is not a JSON object (NaN and infinite values are written as strings: "NaN", "Infinity", "-Infinity")`)
	}
	return nil
}

func (e *endpoint) logMetric(body []byte) (ids, *telemetryv1.LogRunDataRequest, *refusalJSON) {
	var in struct {
		ids
		metricJSON
	}
	if bad := decode(body, &in); bad != nil {
		return in.ids, nil, bad
	}
	req := &telemetryv1.LogRunDataRequest{}
	return in.ids, req, e.metrics(req, []metricJSON{in.metricJSON})
}

func (e *endpoint) logParameter(body []byte) (ids, *telemetryv1.LogRunDataRequest, *refusalJSON) {
	return e.logText(body, e.params)
}

func (e *endpoint) setTag(body []byte) (ids, *telemetryv1.LogRunDataRequest, *refusalJSON) {
	return e.logText(body, e.tags)
}

func (e *endpoint) logText(body []byte, add func(*telemetryv1.LogRunDataRequest, []textJSON) *refusalJSON) (ids, *telemetryv1.LogRunDataRequest, *refusalJSON) {
	var in struct {
		ids
		textJSON
	}
	if bad := decode(body, &in); bad != nil {
		return in.ids, nil, bad
	}
	req := &telemetryv1.LogRunDataRequest{}
	return in.ids, req, add(req, []textJSON{in.textJSON})
}

func (e *endpoint) logBatch(body []byte) (ids, *telemetryv1.LogRunDataRequest, *refusalJSON) {
	var in struct {
		ids
		Metrics []metricJSON `json:"metrics"`
		Params  []textJSON   `json:"params"`
		Tags    []textJSON   `json:"tags"`
	}
	if bad := decode(body, &in); bad != nil {
		return in.ids, nil, bad
	}
	switch {
	case len(in.Metrics)+len(in.Params)+len(in.Tags) > mostItems:
		return in.ids, nil, badParameter("a batch has at most 1000 metrics, params and tags together")
	case len(in.Params) > mostParams:
		return in.ids, nil, badParameter("a batch has at most 100 params")
	case len(in.Tags) > mostTags:
		return in.ids, nil, badParameter("a batch has at most 100 tags")
	}
	req := &telemetryv1.LogRunDataRequest{}
	for _, bad := range []*refusalJSON{e.metrics(req, in.Metrics), e.params(req, in.Params), e.tags(req, in.Tags)} {
		if bad != nil {
			return in.ids, nil, bad
		}
	}
	return in.ids, req, nil
}

func (e *endpoint) metrics(req *telemetryv1.LogRunDataRequest, list []metricJSON) *refusalJSON {
	for _, m := range list {
		if bad := checkKey(m.Key); bad != nil {
			return bad
		}
		if m.Value == nil {
			return badParameter("the metric " + strconv.Quote(m.Key) + " has no value")
		}
		out := &telemetryv1.Metric{Key: m.Key, Value: float64(*m.Value), Time: timestamppb.New(e.now())}
		if m.Timestamp != nil {
			if out.Time = timestamppb.New(time.UnixMilli(int64(*m.Timestamp))); !out.GetTime().IsValid() {
				return badParameter("the timestamp of the metric " + strconv.Quote(m.Key) + " is in milliseconds since 1970, up to the year 9999")
			}
		}
		if m.Step != nil {
			out.Step = int64(*m.Step)
		}
		req.Metrics = append(req.Metrics, out)
	}
	return nil
}

func (e *endpoint) params(req *telemetryv1.LogRunDataRequest, list []textJSON) *refusalJSON {
	for _, p := range list {
		if bad := checkText(p, mostParam); bad != nil {
			return bad
		}
		req.Params = append(req.Params, &telemetryv1.Param{Key: p.Key, Value: *p.Value})
	}
	return nil
}

func (e *endpoint) tags(req *telemetryv1.LogRunDataRequest, list []textJSON) *refusalJSON {
	for _, t := range list {
		if bad := checkText(t, mostTag); bad != nil {
			return bad
		}
		req.Tags = append(req.Tags, &telemetryv1.Tag{Key: t.Key, Value: *t.Value})
	}
	return nil
}

func checkText(t textJSON, most int) *refusalJSON {
	if bad := checkKey(t.Key); bad != nil {
		return bad
	}
	switch {
	case t.Value == nil:
		return badParameter(strconv.Quote(t.Key) + " has no value")
	case len(*t.Value) > most:
		return badParameter("the value of " + strconv.Quote(t.Key) + " is longer than " + strconv.Itoa(most) + " bytes")
	}
	return nil
}

// checkKey holds a name to its length. Which characters it may have is telemetry's to say.
func checkKey(key string) *refusalJSON {
	if key == "" || len(key) > mostKey {
		return badParameter("a key has 1 to 250 bytes")
	}
	return nil
}

// badNumberError says what a number should have been.
type badNumberError struct{ want string }

// Error implements error.
func (e *badNumberError) Error() string { return e.want }

// number is a double, as a JSON number or as a string that holds one, "NaN" and "Infinity" among them.
type number float64

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	switch s {
	case "NaN":
		*n = number(math.NaN())
		return nil
	case "Infinity":
		*n = number(math.Inf(1))
		return nil
	case "-Infinity":
		*n = number(math.Inf(-1))
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || strings.ContainsAny(s, "nNxX_pP") {
		return &badNumberError{`the value of a metric is a number, "NaN", "Infinity" or "-Infinity"`}
	}
	*n = number(f)
	return nil
}

// integer is an int64, as a JSON number or as a string that holds one.
type integer int64

// UnmarshalJSON implements json.Unmarshaler.
func (n *integer) UnmarshalJSON(b []byte) error {
	s := strings.Trim(string(b), `"`)
	i, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(s, 64)
		if ferr != nil || f != math.Trunc(f) || math.Abs(f) >= 1<<53 || strings.ContainsAny(s, "nNxX_pP") {
			return &badNumberError{"steps and timestamps are whole numbers"}
		}
		i = int64(f)
	}
	*n = integer(i)
	return nil
}
