package mlflowapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

// Prefix is where the API begins. The workspace follows.
const Prefix = "/mlflow/"

// mostSearch bounds the body of a search, whose filter may have 1 MiB.
const mostSearch = 5 << 20

// Config of the API. All of it is required.
type Config struct {
	// Peers are the connections to the services, by name: those of package onward.
	Peers map[string]grpc.ClientConnInterface
	// Held counts the bodies of all routes together.
	Held *intake.Held
	Now  func() time.Time
}

// Handler serves the API of all workspaces.
type Handler struct {
	cfg         Config
	experiments computev1.ExperimentServiceClient
	tracking    computev1.TrackingServiceClient
	runs        computev1.RunServiceClient
	metrics     telemetryv1.MetricServiceClient
	models      inferencev1.ModelServiceClient
	routes      map[string]route
}

// route answers one request: with an object that JSON can say, nil for an empty one, or an error.
type route func(c *call) (any, error)

// call is one request.
type call struct {
	ctx       context.Context // of the RPCs that it becomes
	workspace string          // name
	body      []byte          // the JSON object of its fields
	w         http.ResponseWriter
	r         *http.Request
}

// written is what a route gives that has written its answer itself.
type written struct{}

// New makes the API.
func New(cfg Config) (*Handler, error) {
	if cfg.Held == nil || cfg.Now == nil {
		return nil, errors.New("mlflowapi: Held and Now are required")
	}
	compute, telemetry, inference := cfg.Peers["compute"], cfg.Peers["telemetry"], cfg.Peers["inference"]
	if compute == nil || telemetry == nil || inference == nil {
		return nil, errors.New("mlflowapi: connections to compute, telemetry and inference are required")
	}
	h := &Handler{
		cfg:         cfg,
		experiments: computev1.NewExperimentServiceClient(compute), tracking: computev1.NewTrackingServiceClient(compute), runs: computev1.NewRunServiceClient(compute),
		metrics: telemetryv1.NewMetricServiceClient(telemetry), models: inferencev1.NewModelServiceClient(inference), routes: map[string]route{},
	}
	for _, part := range []map[string]route{h.experimentRoutes(), h.runRoutes(), h.logRoutes(), h.artifactRoutes(), h.modelRoutes(), h.versionRoutes()} {
		for key, r := range part {
			h.routes[key] = r
		}
	}
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out, err := h.serve(w, r)
	if err != nil {
		refusal := mlflow.RefusalOf(err)
		if refusal.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="redoubt", Bearer realm="redoubt"`)
		}
		refusal.Answer(w)
		return
	}
	switch out.(type) {
	case written:
		return
	case nil:
		out = struct{}{}
	}
	b, err := json.Marshal(out)
	if err != nil {
		mlflow.Refuse(http.StatusInternalServerError, "INTERNAL_ERROR", "internal fault").Answer(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // fails when the client is gone
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) (any, error) {
	// The path as it was sent: nothing but an artifact's own path is ever decoded.
	first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), Prefix), "/")
	workspace, ok := workspaceOf(first)
	if !ok {
		return nil, mlflow.NoEndpoint("a tracking URI ends with /mlflow/WORKSPACE or /mlflow/SUBSCRIPTION.GROUP.WORKSPACE")
	}
	c := &call{workspace: workspace, w: w, r: r}
	switch r.Method + " " + rest {
	case "GET health":
		return text(w, "OK")
	case "GET version":
		return text(w, "redoubt (REST API 2.0 of MLflow)")
	case "GET api/3.0/mlflow/server-info", "GET ajax-api/3.0/mlflow/server-info":
		return map[string]any{
			"store_type": "redoubt", "workspaces_enabled": false, "trace_archival_enabled": false,
			"multipart_uploads_enabled": false, "multipart_downloads_enabled": false,
		}, nil
	}
	name, ok := strings.CutPrefix(rest, "api/2.0/")
	if !ok {
		name, ok = strings.CutPrefix(rest, "ajax-api/2.0/")
	}
	if !ok {
		return nil, mlflow.NoEndpoint("there is no such route")
	}
	token, err := tokenOf(r)
	if err != nil {
		return nil, err
	}
	c.ctx = onward.WithToken(onward.Context(r), token)
	if path, ok := strings.CutPrefix(name, "mlflow-artifacts/"); ok {
		return h.proxy(c, path)
	}
	do, ok := h.routes[r.Method+" "+strings.TrimPrefix(name, "mlflow/")]
	if !ok || !strings.HasPrefix(name, "mlflow/") {
		return nil, mlflow.NoEndpoint("there is no such route")
	}
	release, err := h.fields(c, strings.HasSuffix(name, "/search"))
	if err != nil {
		return nil, err
	}
	defer release()
	return do(c)
}

func text(w http.ResponseWriter, s string) (any, error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, s)
	return written{}, nil
}

// workspaceOf reads which workspace a tracking URI is of.
func workspaceOf(s string) (name string, ok bool) {
	ids := strings.Split(s, ".")
	switch len(ids) {
	case 1:
		ids = []string{"default", "default", ids[0]}
	case 3:
	default:
		return "", false
	}
	for _, id := range ids {
		if resource.ValidID(id) != nil {
			return "", false
		}
	}
	return "subscriptions/" + ids[0] + "/resourceGroups/" + ids[1] + "/workspaces/" + ids[2], true
}

// tokenOf reads the caller's token: a bearer token, or the password of Basic, whoever the user is called.
func tokenOf(r *http.Request) (string, error) {
	given := r.Header.Values("Authorization")
	switch len(given) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", unknownCaller("the header Authorization stands there more than once")
	}
	scheme, value, _ := strings.Cut(given[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer") && value != "":
		return value, nil
	case strings.EqualFold(scheme, "Basic"):
		raw, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			return "", unknownCaller("the header Authorization cannot be read")
		}
		if _, token, ok := strings.Cut(string(raw), ":"); ok && token != "" {
			return token, nil
		}
	}
	return "", unknownCaller("sign in with a token: as MLFLOW_TRACKING_TOKEN, or as MLFLOW_TRACKING_PASSWORD with any MLFLOW_TRACKING_USERNAME")
}

func unknownCaller(message string) error {
	return mlflow.Refuse(http.StatusUnauthorized, "UNAUTHENTICATED", message)
}

// fields makes one JSON object of the fields of a request: of its query if it is a GET, of its body otherwise.
func (h *Handler) fields(c *call, search bool) (release func(), err error) {
	release = func() {}
	if c.r.Method == http.MethodGet {
		c.body, err = json.Marshal(queryOf(c.r.URL.Query()))
		return release, err
	}
	if c.r.ContentLength == 0 {
		c.body = []byte("{}")
		return release, nil
	}
	if t, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type")); err != nil || t != "application/json" || len(c.r.Header.Values("Content-Encoding")) > 0 {
		return nil, mlflow.BadRequest("the body has to be JSON, not compressed: send Content-Type: application/json")
	}
	most := int64(mlflow.MostBody)
	if search {
		most = mostSearch
	}
	release, err = h.cfg.Held.Reserve(c.w, c.r, most)
	if err == nil {
		if c.body, err = io.ReadAll(c.r.Body); err != nil {
			release()
		}
	}
	if err != nil {
		return nil, unread(err)
	}
	return release, nil
}

// queryOf is a query as fields: what stands there more than once is a list.
func queryOf(query map[string][]string) map[string]any {
	out := make(map[string]any, len(query))
	for k, v := range query {
		if len(v) == 1 {
			out[k] = v[0]
		} else {
			out[k] = v
		}
	}
	return out
}

// unread says why a body could not be taken in.
func unread(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return mlflow.BadParameter("a request of this kind has at most 1 MiB, a search 5 MiB; send less at once")
	case errors.Is(err, intake.ErrFull):
		r := mlflow.Refuse(http.StatusServiceUnavailable, "TEMPORARILY_UNAVAILABLE", "too many large requests at once; repeat the request")
		r.After = time.Second
		return r
	case errors.Is(err, intake.ErrSlow):
		return mlflow.Refuse(http.StatusRequestTimeout, "BAD_REQUEST", "the body came too slowly")
	}
	return mlflow.BadRequest("the body broke off")
}

// in reads the fields of a request.
func in[T any](c *call) (*T, error) {
	into := new(T)
	if bad := mlflow.Decode(c.body, into); bad != nil {
		return nil, bad
	}
	return into, nil
}

// texts is a list of strings; a query has a single one without brackets.
type texts []string

// UnmarshalJSON implements json.Unmarshaler.
func (t *texts) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = texts{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}
