package mlflowapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"mime"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/artifacts"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/registry"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/tracking"
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
	cfg    Config
	files  *artifacts.Files
	routes map[string]call.Route
}

// New makes the API.
func New(cfg Config) (*Handler, error) {
	compute, telemetry, inference := cfg.Peers["compute"], cfg.Peers["telemetry"], cfg.Peers["inference"]
	if compute == nil || telemetry == nil || inference == nil || cfg.Held == nil || cfg.Now == nil {
		return nil, errors.New("mlflowapi: connections to compute, telemetry and inference, Held and Now are required")
	}
	h := &Handler{cfg: cfg, files: artifacts.New(compute, inference), routes: tracking.Routes(compute, telemetry, cfg.Now)}
	maps.Copy(h.routes, registry.Routes(inference))
	maps.Copy(h.routes, h.files.Routes())
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
	case call.Written:
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
	c := &call.Call{Workspace: workspace, W: w, R: r}
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
	c.Ctx = onward.WithToken(onward.Context(r), token)
	if path, ok := strings.CutPrefix(name, "mlflow-artifacts/"); ok {
		return h.files.Proxy(c, path)
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
	return call.Written{}, nil
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
func (h *Handler) fields(c *call.Call, search bool) (release func(), err error) {
	release = func() {}
	if c.R.Method == http.MethodGet {
		c.Body, err = json.Marshal(queryOf(c.R.URL.Query()))
		return release, err
	}
	if c.R.ContentLength == 0 {
		c.Body = []byte("{}")
		return release, nil
	}
	if t, _, err := mime.ParseMediaType(c.R.Header.Get("Content-Type")); err != nil || t != "application/json" || len(c.R.Header.Values("Content-Encoding")) > 0 {
		return nil, mlflow.BadRequest("the body has to be JSON, not compressed: send Content-Type: application/json")
	}
	most := int64(mlflow.MostBody)
	if search {
		most = mostSearch
	}
	release, err = h.cfg.Held.Reserve(c.W, c.R, most)
	if err == nil {
		if c.Body, err = io.ReadAll(c.R.Body); err != nil {
			release()
		}
	}
	if err != nil {
		return nil, call.Unread(err)
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
