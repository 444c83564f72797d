package mlflowapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

const ws = "subscriptions/s/resourceGroups/g/workspaces/w"

// peer are the services behind: it notes what is called, and answers with nothing where nothing else is said.
type peer struct {
	mu     sync.Mutex
	called []string // method names without their service
	scopes []string // the resource that each call is about
	md     metadata.MD
	answer map[string]func(in proto.Message, reply proto.Message) error
	// of streams
	sent   chan proto.Message
	closed chan error // nil when the client ended the stream well, else why it ended
	brings []proto.Message
	end    error
}

func (p *peer) saw(ctx context.Context, method string, in any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.called = append(p.called, path.Base(method))
	p.md, _ = metadata.FromOutgoingContext(ctx)
	m, ok := in.(proto.Message)
	if !ok {
		return
	}
	fields := m.ProtoReflect().Descriptor().Fields()
	for _, name := range []string{"name", "parent", "run", "model", "model_version"} {
		fd := fields.ByTextName(name)
		if fd == nil {
			continue
		}
		v := m.ProtoReflect().Get(fd)
		if fd.Message() != nil {
			v = v.Message().Get(fd.Message().Fields().ByTextName("name"))
		}
		p.scopes = append(p.scopes, v.String())
		return
	}
}

func (p *peer) Invoke(ctx context.Context, method string, in, reply any, _ ...grpc.CallOption) error {
	p.saw(ctx, method, in)
	if f := p.answer[path.Base(method)]; f != nil {
		return f(in.(proto.Message), reply.(proto.Message))
	}
	return nil
}

func (p *peer) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	p.saw(ctx, method, nil)
	if p.closed != nil {
		context.AfterFunc(ctx, func() { p.closed <- ctx.Err() })
	}
	return &stream{ctx: ctx, p: p, upload: !desc.ServerStreams}, nil
}

type stream struct {
	ctx    context.Context
	p      *peer
	upload bool
	n      int
}

func (s *stream) Header() (metadata.MD, error) { return nil, nil }
func (s *stream) Trailer() metadata.MD         { return nil }
func (s *stream) Context() context.Context     { return s.ctx }
func (s *stream) CloseSend() error {
	if s.p.closed != nil {
		s.p.closed <- nil
	}
	return nil
}

func (s *stream) SendMsg(m any) error {
	if s.p.sent != nil {
		s.p.sent <- proto.Clone(m.(proto.Message))
	}
	return nil
}

func (s *stream) RecvMsg(m any) error {
	if s.n == len(s.p.brings) {
		if s.p.end != nil {
			return s.p.end
		}
		if s.upload {
			return nil // its one answer
		}
		return io.EOF
	}
	proto.Merge(m.(proto.Message), s.p.brings[s.n])
	s.n++
	return nil
}

func serve(t testing.TB, p *peer) *Handler {
	t.Helper()
	rules, err := rule.Load(rule.Registered("redoubt")...)
	if err != nil {
		t.Fatal(err)
	}
	peers := map[string]grpc.ClientConnInterface{}
	for _, s := range []string{"compute", "telemetry", "inference"} {
		peers[s] = &onward.Conn{Peer: p, Service: s, Rules: rules, MaxMessageBytes: 40 << 20, PublicTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}
	}
	h, err := New(Config{Peers: peers, Held: &intake.Held{}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func send(t testing.TB, h *Handler, method, target, body string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func refused(t testing.TB, res *http.Response, status int, code string) {
	t.Helper()
	b, _ := io.ReadAll(res.Body)
	var e struct {
		Code    string `json:"error_code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(b, &e); err != nil || res.StatusCode != status || e.Code != code || e.Message == "" {
		t.Errorf("%d %s, not %d %s", res.StatusCode, b, status, code)
	}
}

// TestEachRouteIsAnRPC holds which RPCs each route becomes, in which order, and that they are about the workspace of the tracking URI.
func TestEachRouteIsAnRPC(t *testing.T) {
	const run, version, tag = `{"run_id":"r1","key":"k","value":"1"`, `{"name":"m","version":"1","key":"k","value":"v","stage":"Staging"`, `,"tags":[{"key":"k","value":"v"}]}`
	want := map[string]struct{ fields, rpcs string }{
		"POST experiments/create":                               {`{"name":"e"}`, "CreateExperiment"},
		"GET experiments/get":                                   {`?experiment_id=1`, "GetExperiment"},
		"GET experiments/get-by-name":                           {`?experiment_name=e`, "LookupExperiment"},
		"POST experiments/search":                               {`{}`, "SearchExperiments"},
		"GET experiments/search":                                {``, "SearchExperiments"},
		"POST experiments/delete":                               {`{"experiment_id":"1"}`, "DeleteExperiment"},
		"POST experiments/restore":                              {`{"experiment_id":"1"}`, "RestoreExperiment"},
		"POST experiments/update":                               {`{"experiment_id":"1","new_name":"x"}`, "UpdateExperiment"},
		"POST experiments/set-experiment-tag":                   {`{"experiment_id":"1","key":"k","value":"v"}`, "SetExperimentTag"},
		"POST experiments/delete-experiment-tag":                {`{"experiment_id":"1","key":"k"}`, "SetExperimentTag"},
		"POST experiments/search-datasets":                      {`{"experiment_ids":["1"]}`, "SearchRuns"},
		"POST runs/create":                                      {`{"experiment_id":"1"` + tag, "CreateTrackedRun LogBatch"},
		"POST runs/update":                                      {run + `}`, "UpdateTrackedRun"},
		"POST runs/delete":                                      {run + `}`, "DeleteRun"},
		"POST runs/restore":                                     {run + `}`, "RestoreRun"},
		"GET runs/get":                                          {`?run_id=r1`, "GetRun GetRunData"},
		"POST runs/search":                                      {`{"experiment_ids":["1"]}`, "SearchRuns"},
		"POST runs/log-metric":                                  {run + `}`, "LogBatch"},
		"POST runs/log-parameter":                               {run + `}`, "LogBatch"},
		"POST runs/log-batch":                                   {run + tag, "LogBatch"},
		"POST runs/set-tag":                                     {run + `}`, "LogBatch"},
		"POST runs/delete-tag":                                  {run + `}`, "DeleteRunTag"},
		"POST runs/log-inputs":                                  {run + `}`, "LogBatch"},
		"POST runs/outputs":                                     {run + `}`, "LogBatch"},
		"POST runs/log-model":                                   {run + `,"model_json":"{\"artifact_path\":\"m\"}"}`, "GetRunData LogBatch"},
		"GET metrics/get-history":                               {`?run_id=r1&metric_key=k`, "ListMetricHistory"},
		"GET metrics/get-history-bulk-interval":                 {`?run_ids=r1&metric_key=k`, "ListMetricHistory"},
		"POST metrics/get-history-bulk-interval":                {`{"run_ids":["r1","r2"],"metric_key":"k"}`, "ListMetricHistory ListMetricHistory"},
		"GET artifacts/list":                                    {`?run_id=r1&path=a/b`, "GetRun ListOutputs"},
		"POST artifacts/presigned-upload-url":                   {`{}`, ""},
		"POST artifacts/presigned-download-url":                 {`{}`, ""},
		"POST registered-models/create":                         {`{"name":"m"}`, "CreateModel"},
		"POST registered-models/rename":                         {`{"name":"m","new_name":"n"}`, "RenameModel"},
		"PATCH registered-models/update":                        {`{"name":"m"}`, "UpdateModel"},
		"DELETE registered-models/delete":                       {`{"name":"m"}`, "DeleteModel"},
		"GET registered-models/get":                             {`?name=m`, "GetModel ListModelVersions"},
		"GET registered-models/search":                          {``, "ListModels"},
		"POST registered-models/get-latest-versions":            {`{"name":"m"}`, "GetModel ListModelVersions"},
		"GET registered-models/get-latest-versions":             {`?name=m&stages=None&stages=Staging`, "GetModel ListModelVersions"},
		"POST registered-models/set-tag":                        {`{"name":"m","key":"k","value":"v"}`, "GetModel UpdateModel"},
		"DELETE registered-models/delete-tag":                   {`{"name":"m","key":"k"}`, "GetModel UpdateModel"},
		"POST registered-models/alias":                          {`{"name":"m","alias":"a","version":"1"}`, "SetModelAlias"},
		"DELETE registered-models/alias":                        {`{"name":"m","alias":"a"}`, "GetModel DeleteModelAlias"},
		"GET registered-models/alias":                           {`?name=m&alias=a`, "GetModel GetModelVersion"},
		"POST model-versions/create":                            {`{"name":"m","source":"runs:/r1/x"}`, "CreateModelVersion"},
		"PATCH model-versions/update":                           {version + `}`, "UpdateModelVersion"},
		"DELETE model-versions/delete":                          {version + `}`, "DeleteModelVersion"},
		"GET model-versions/get":                                {`?name=m&version=1`, "GetModelVersion"},
		"GET model-versions/search":                             {`?filter=name%3D'm'`, "ListModelVersions"},
		"GET model-versions/get-download-uri":                   {`?name=m&version=1`, "GetModelVersion"},
		"POST model-versions/transition-stage":                  {version + `}`, "GetModelVersion SetModelAlias GetModelVersion"},
		"POST model-versions/set-tag":                           {version + `}`, "GetModelVersion UpdateModelVersion"},
		"DELETE model-versions/delete-tag":                      {version + `}`, "GetModelVersion UpdateModelVersion"},
		"GET ../mlflow-artifacts/artifacts":                     {`?path=1/r1/artifacts`, "ListOutputs"},
		"GET ../mlflow-artifacts/artifacts/1/r1/artifacts/x":    {``, "DownloadOutput"},
		"PUT ../mlflow-artifacts/artifacts/1/r1/artifacts/x":    {`data`, "UploadArtifact"},
		"DELETE ../mlflow-artifacts/artifacts/1/r1/artifacts/x": {``, "DeleteArtifact"},
		"GET ../mlflow-artifacts/artifacts/models/m/1/x":        {``, "DownloadModelVersion"},
		"POST ../mlflow-artifacts/mpu/create/1/r1/artifacts/x":  {`{}`, ""},
		"GET ../mlflow-artifacts/presigned/1/r1/artifacts/x":    {``, ""},
	}
	p := &peer{answer: map[string]func(proto.Message, proto.Message) error{
		"GetModel": func(_, reply proto.Message) error {
			proto.Merge(reply, &inferencev1.Model{Name: ws + "/models/m", Aliases: map[string]int64{"a": 1}})
			return nil
		},
		"CreateTrackedRun": func(_, reply proto.Message) error {
			proto.Merge(reply, &computev1.Run{Name: ws + "/runs/r9"})
			return nil
		},
	}}
	h := serve(t, p)
	for key := range h.routes {
		if _, ok := want[key]; !ok {
			t.Errorf("%s stands in no table", key)
		}
	}
	for key, c := range want {
		p.called, p.scopes = nil, nil
		method, route, _ := strings.Cut(key, " ")
		target, body := "/mlflow/s.g.w/api/2.0/"+strings.TrimPrefix("mlflow/"+route, "mlflow/../"), c.fields
		if strings.HasPrefix(c.fields, "?") || method == http.MethodGet {
			target, body = target+c.fields, ""
		}
		res := send(t, h, method, target, body, "Authorization", "Bearer t")
		status := http.StatusOK
		if c.rpcs == "" {
			status = http.StatusNotImplemented
		}
		b, _ := io.ReadAll(res.Body)
		if got := strings.Join(p.called, " "); got != c.rpcs || res.StatusCode != status {
			t.Errorf("%s called %q, not %q: %d %s", key, got, c.rpcs, res.StatusCode, b)
		}
		for _, s := range p.scopes {
			if s != ws && !strings.HasPrefix(s, ws+"/") {
				t.Errorf("%s is about %q", key, s)
			}
		}
		if c.rpcs != "" && !slices.Equal(p.md["authorization"], []string{"Bearer t"}) {
			t.Errorf("%s carries %v", key, p.md)
		}
	}
}

// TestTokens holds how a caller is known: one header, one form.
func TestTokens(t *testing.T) {
	p := &peer{}
	h := serve(t, p)
	const target = "/mlflow/w/api/2.0/mlflow/experiments/get?experiment_id=0"
	for name, c := range map[string]struct {
		header []string
		want   []string // authorization that passes; nil: refused here
	}{
		"bearer":             {[]string{"Bearer abc"}, []string{"Bearer abc"}},
		"bearer, small":      {[]string{"bearer abc"}, []string{"Bearer abc"}},
		"basic":              {[]string{"Basic YW55Ym9keTphYmM="}, []string{"Bearer abc"}},
		"basic with a colon": {[]string{"Basic dTphOmI="}, []string{"Bearer a:b"}},
		"nobody":             {nil, []string{}},
		"two":                {[]string{"Bearer abc", "Basic YW55Ym9keTphYmM="}, nil},
		"no password":        {[]string{"Basic YW55Ym9keTo="}, nil},
		"no colon":           {[]string{"Basic YW55Ym9keQ=="}, nil},
		"no base64":          {[]string{"Basic ???"}, nil},
		"empty":              {[]string{""}, nil},
		"nothing after":      {[]string{"Bearer "}, nil},
		"another":            {[]string{"DPoP abc"}, nil},
	} {
		p.called, p.md = nil, nil
		var header []string
		for _, v := range c.header {
			header = append(header, "Authorization", v)
		}
		res := send(t, h, http.MethodGet, target, "", append(header, "X-Request-Id", "q", "X-Mlflow-Workspace", "other")...)
		if c.want == nil {
			refused(t, res, http.StatusUnauthorized, "UNAUTHENTICATED")
			if len(p.called) > 0 || !strings.Contains(res.Header.Get("WWW-Authenticate"), "Basic") {
				t.Errorf("%s: %v %v", name, p.called, res.Header)
			}
			continue
		}
		if res.StatusCode != http.StatusOK || !slices.Equal(p.md["authorization"], c.want) || !slices.Equal(p.md["x-request-id"], []string{"q"}) || len(p.md["x-mlflow-workspace"]) > 0 {
			t.Errorf("%s: %d %v", name, res.StatusCode, p.md)
		}
	}
}

func TestWorkspaces(t *testing.T) {
	for s, want := range map[string]string{
		"w": "subscriptions/default/resourceGroups/default/workspaces/w", "s.g.w": ws, "a.b": "", "a.b.c.d": "", "": "", "..": "", "a..b": "", "A": "", "w%2f": "", "s.g.w-": "", "s.g./w": "", "…": "",
	} {
		if got, ok := workspaceOf(s); got != want || ok != (want != "") {
			t.Errorf("%q is %q", s, got)
		}
	}
}

// TestRefusalsPass holds that a service's refusal is read in MLflow's words.
func TestRefusalsPass(t *testing.T) {
	var err error
	p := &peer{answer: map[string]func(proto.Message, proto.Message) error{"GetExperiment": func(proto.Message, proto.Message) error { return err }}}
	h := serve(t, p)
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{fault.NotFound("no"), 404, "RESOURCE_DOES_NOT_EXIST"},
		{fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "no"), 401, "UNAUTHENTICATED"},
		{fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "no"), 429, "REQUEST_LIMIT_EXCEEDED"},
		{errors.New("dial tcp: refused"), 503, "TEMPORARILY_UNAVAILABLE"},
	} {
		err = c.err
		var f *fault.Error
		if errors.As(c.err, &f) {
			err = fault.ToStatus(c.err, "redoubt.test", "r").Err()
		}
		refused(t, send(t, h, http.MethodGet, "/mlflow/w/api/2.0/mlflow/experiments/get?experiment_id=0", ""), c.status, c.code)
	}
}

// at serves the API over a socket.
func at(t *testing.T, p *peer) string {
	t.Helper()
	s := httptest.NewServer(intake.Paced(serve(t, p), 0))
	t.Cleanup(s.Close)
	return s.URL + "/mlflow/s.g.w/api/2.0/mlflow-artifacts/artifacts/"
}

// TestUploadStreams holds that a file goes on while it comes, and that one that breaks off is not ended as if it were whole.
func TestUploadStreams(t *testing.T) {
	for name, c := range map[string]struct {
		size  int64
		whole bool
	}{"whole": {-1, true}, "whole, its size said": {400_000, true}, "broken off": {-1, false}, "broken off, its size said": {500_000, false}} {
		t.Run(name, func(t *testing.T) {
			p := &peer{sent: make(chan proto.Message), closed: make(chan error, 2)}
			r, w := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, at(t, p)+"1/r1/artifacts/a/b.bin", r)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = c.size
			done := make(chan error, 1)
			go func() {
				res, err := http.DefaultClient.Do(req)
				if err == nil {
					_ = res.Body.Close()
					if res.StatusCode != http.StatusOK {
						err = errors.New(res.Status)
					}
				}
				done <- err
			}()
			first := (<-p.sent).(*computev1.UploadArtifactRequest)
			if first.GetName() != ws+"/runs/r1" || first.GetPath() != "a/b.bin" || first.GetSize() != c.size || len(first.GetData()) > 0 {
				t.Errorf("the first message is %v", first)
			}
			_, _ = w.Write(make([]byte, 300_000))
			if m := (<-p.sent).(*computev1.UploadArtifactRequest); len(m.GetData()) != 256<<10 || m.GetName() != "" {
				t.Errorf("%d bytes went on", len(m.GetData()))
			}
			if !c.whole {
				_ = w.CloseWithError(errors.New("the client broke off"))
				if err := <-done; err == nil {
					t.Error("an upload that broke off is answered with 200")
				}
				if err := <-p.closed; err == nil {
					t.Error("the service was told that the file is whole")
				}
				return
			}
			_, _ = w.Write(make([]byte, 100_000))
			_ = w.Close()
			if m := (<-p.sent).(*computev1.UploadArtifactRequest); len(m.GetData()) != 400_000-256<<10 {
				t.Errorf("the rest has %d bytes", len(m.GetData()))
			}
			if err := <-p.closed; err != nil {
				t.Errorf("the stream ended with %v", err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDownloads holds that a file that breaks off is not taken for a whole one, and that none is shown as a page.
func TestDownloads(t *testing.T) {
	get := func(p *peer) (*http.Response, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at(t, p)+"1/r1/artifacts/page.html", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res, string(b), err
	}
	parts := []proto.Message{&computev1.DownloadOutputResponse{Data: []byte("<script>")}, &computev1.DownloadOutputResponse{Data: []byte("</script>")}}
	res, body, err := get(&peer{brings: parts})
	if err != nil || body != "<script></script>" || res.Header.Get("Content-Type") != "application/octet-stream" || res.Header.Get("Content-Disposition") != "attachment" {
		t.Errorf("%v %q %v", res, body, err)
	}
	if res, body, err := get(&peer{}); err != nil || res.StatusCode != 200 || body != "" {
		t.Errorf("an empty file: %v %q %v", res, body, err)
	}
	if _, body, err := get(&peer{brings: parts[:1], end: fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "damaged")}); err == nil {
		t.Errorf("a file that breaks off reads as %q, and nothing is wrong", body)
	}
	res, body, err = get(&peer{end: fault.ToStatus(fault.NotFound("no such file"), "redoubt.test", "r").Err()})
	if err != nil || res.StatusCode != http.StatusNotFound || !strings.Contains(body, "RESOURCE_DOES_NOT_EXIST") {
		t.Errorf("%v %q %v", res, body, err)
	}
}

// TestHistoryIsWholeOrCut holds that an answer with all points of a metric never ends before them.
func TestHistoryIsWholeOrCut(t *testing.T) {
	var pages atomic.Int64
	pages.Store(3)
	p := &peer{answer: map[string]func(proto.Message, proto.Message) error{"ListMetricHistory": func(in, reply proto.Message) error {
		n := len(in.(*telemetryv1.ListMetricHistoryRequest).GetPageToken())
		if int64(n) == pages.Load() {
			return fault.Unavailable("gone")
		}
		out := reply.(*telemetryv1.ListMetricHistoryResponse)
		out.Metrics = []*telemetryv1.Metric{{Key: "k", Step: int64(n)}}
		if n < 3 {
			out.NextPageToken = strings.Repeat("x", n+1)
		}
		return nil
	}}}
	s := httptest.NewServer(serve(t, p))
	defer s.Close()
	get := func() (string, error) {
		res, err := http.Get(s.URL + "/mlflow/w/api/2.0/mlflow/metrics/get-history?run_id=r&metric_key=k")
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return string(b), err
	}
	if text, err := get(); err == nil {
		t.Errorf("half of a history reads as %s", text)
	}
	pages.Store(4)
	text, err := get()
	var out struct{ Metrics []struct{ Step int } }
	if err != nil || json.Unmarshal([]byte(text), &out) != nil || len(out.Metrics) != 4 || out.Metrics[3].Step != 3 {
		t.Errorf("%s %v", text, err)
	}
}

// TestTagsAreBegunAgain holds that two who set tags of one model at once both succeed, and that it ends.
func TestTagsAreBegunAgain(t *testing.T) {
	conflicts := 2
	p := &peer{answer: map[string]func(proto.Message, proto.Message) error{"UpdateModel": func(in, _ proto.Message) error {
		m := in.(*inferencev1.UpdateModelRequest)
		if m.GetModel().GetTags()["k"] != "v" || !slices.Equal(m.GetUpdateMask().GetPaths(), []string{"tags"}) {
			t.Errorf("%v", m)
		}
		if conflicts > 0 {
			conflicts--
			return fault.ToStatus(fault.New(codes.Aborted, faultv1.Reason_ETAG_MISMATCH, "changed"), "redoubt.test", "r").Err()
		}
		return nil
	}}}
	h := serve(t, p)
	const target, body = "/mlflow/w/api/2.0/mlflow/registered-models/set-tag", `{"name":"m","key":"k","value":"v"}`
	if res := send(t, h, http.MethodPost, target, body); res.StatusCode != http.StatusOK || len(p.called) != 6 {
		t.Errorf("%d after %v", res.StatusCode, p.called)
	}
	conflicts = 1000
	refused(t, send(t, h, http.MethodPost, target, body), http.StatusConflict, "RESOURCE_CONFLICT")
}

// TestBodies holds what of a body is refused before a service is asked.
func TestBodies(t *testing.T) {
	p := &peer{}
	h := serve(t, p)
	const target = "/mlflow/w/api/2.0/mlflow/experiments/create"
	for name, c := range map[string]struct {
		body   string
		header []string
		code   string
	}{
		"a form":     {`{"name":"x"}`, []string{"Content-Type", "application/x-www-form-urlencoded"}, "BAD_REQUEST"},
		"compressed": {`{"name":"x"}`, []string{"Content-Encoding", "gzip"}, "BAD_REQUEST"},
		"a list":     {`["name"]`, nil, "INVALID_PARAMETER_VALUE"},
		"half":       {`{"name":`, nil, "BAD_REQUEST"},
		"too large":  {`{"name":"` + strings.Repeat("x", 1<<20) + `"}`, nil, "INVALID_PARAMETER_VALUE"},
		"wrong type": {`{"name":["x"]}`, nil, "INVALID_PARAMETER_VALUE"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, target, strings.NewReader(c.body))
			r.Header.Set("Content-Type", "application/json")
			for i := 0; i+1 < len(c.header); i += 2 {
				r.Header.Set(c.header[i], c.header[i+1])
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			refused(t, w.Result(), http.StatusBadRequest, c.code)
		})
	}
	if len(p.called) > 0 {
		t.Errorf("called %v", p.called)
	}
}
