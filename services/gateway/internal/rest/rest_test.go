package rest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/gen/openapi"
	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

const domain = "redoubt.test"

// peer is a service that notes what is called.
type peer struct {
	method string
	in     proto.Message
	md     metadata.MD
	ctx    context.Context
	answer func(method string, reply proto.Message) error
	stream []proto.Message // what a stream brings
	end    error           // how it ends, io.EOF if nil
}

func (p *peer) saw(ctx context.Context, method string, in any) {
	p.ctx, p.method, p.in = ctx, method, proto.Clone(in.(proto.Message))
	p.md, _ = metadata.FromOutgoingContext(ctx)
}

func (p *peer) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	p.saw(ctx, method, args)
	if p.answer == nil {
		return nil
	}
	return p.answer(method, reply.(proto.Message))
}

func (p *peer) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &stream{ctx: ctx, p: p, method: method}, nil
}

type stream struct {
	ctx    context.Context
	p      *peer
	method string
	n      int
}

func (s *stream) Header() (metadata.MD, error) { return metadata.Pairs("inner", "secret"), nil }
func (s *stream) Trailer() metadata.MD         { return metadata.Pairs("inner", "secret") }
func (s *stream) CloseSend() error             { return nil }
func (s *stream) Context() context.Context     { return s.ctx }
func (s *stream) SendMsg(m any) error          { s.p.saw(s.ctx, s.method, m); return nil }
func (s *stream) RecvMsg(m any) error {
	if s.n == len(s.p.stream) {
		if s.p.end != nil {
			return s.p.end
		}
		return io.EOF
	}
	proto.Merge(m.(proto.Message), s.p.stream[s.n])
	s.n++
	return nil
}

func table(t testing.TB) *rule.Table {
	t.Helper()
	rules, err := rule.Load(rule.Registered("redoubt")...)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func serve(t testing.TB, p *peer) *Handler {
	t.Helper()
	rules := table(t)
	peers := map[string]grpc.ClientConnInterface{}
	for _, s := range []string{"identity", "workspace", "keyvault", "telemetry", "compute", "inference"} {
		peers[s] = &onward.Conn{Peer: p, Service: s, Rules: rules, MaxMessageBytes: 40 << 20, PublicTimeout: time.Minute, Logger: slog.New(slog.DiscardHandler)}
	}
	h, err := New(t.Context(), Config{Rules: rules, Peers: peers, Installation: domain, Held: &intake.Held{}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// send makes a request; header pairs follow.
func send(t testing.TB, h http.Handler, verb, path, body string, header ...string) *http.Response {
	t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r := httptest.NewRequestWithContext(t.Context(), verb, path, in)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func read(t testing.TB, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// reads decodes an error and holds its form.
func reads(t testing.TB, text string) (code int, st, reason, message, requestID string) {
	t.Helper()
	var e errorJSON
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		t.Fatalf("%q is no error of ours: %v", text, err)
	}
	infos := 0
	for _, raw := range e.Error.Details {
		var d struct {
			Type                      string `json:"@type"`
			Reason, Domain, RequestID string
		}
		if err := json.Unmarshal(raw, &d); err != nil {
			t.Fatal(err)
		}
		switch d.Type {
		case "type.googleapis.com/google.rpc.ErrorInfo":
			infos++
			reason = d.Reason
			if d.Domain != "redoubt."+domain {
				t.Errorf("the domain is %q", d.Domain)
			}
		case "type.googleapis.com/google.rpc.RequestInfo":
			requestID = d.RequestID
		}
	}
	if infos != 1 {
		t.Errorf("%d ErrorInfo in %s", infos, text)
	}
	return e.Error.Code, e.Error.Status, reason, e.Error.Message, requestID
}

// provided are the methods that are OAuth's own routes, whole (ADR 29).
const provided = "/redoubt.identity.v1.ProviderService/"

// withOAuthForm are the methods whose HTTP form is a standard's, and which the gateway serves as that.
var withOAuthForm = []string{
	identityv1.TokenService_IssueToken_FullMethodName, identityv1.TokenService_GetDiscovery_FullMethodName, identityv1.TokenService_GetKeys_FullMethodName,
	identityv1.WorkloadIdentityService_GetSPIFFEBundle_FullMethodName,
}

// TestEveryMethodHasARoute holds that what strangers may call has an HTTP path, and that nothing else has one.
func TestEveryMethodHasARoute(t *testing.T) {
	routed := map[string]int{}
	all, err := routesOf(table(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		routed[r.method]++
	}
	methods := table(t).Methods()
	if len(methods) < 130 {
		t.Fatalf("%d methods", len(methods))
	}
	for _, m := range methods {
		if !strings.HasPrefix(m.FullName, "/redoubt.") {
			continue
		}
		md, err := descriptor(m.FullName)
		if err != nil {
			t.Fatal(err)
		}
		want := onward.Open(m) && !m.ClientStream && !slices.Contains(withOAuthForm, m.FullName) && !strings.HasPrefix(m.FullName, provided)
		switch got := len(bindingsOf(md)) > 0; {
		case want && !got:
			t.Errorf("%s has no google.api.http option", m.FullName)
		case !want && got:
			t.Errorf("%s has a google.api.http option, and is not for strangers, takes a stream, or has a form of its own", m.FullName)
		case got != (routed[m.FullName] > 0):
			t.Errorf("%s: %d routes", m.FullName, routed[m.FullName])
		}
	}
}

var star = regexp.MustCompile(`\{[\w.]+=([^}]*)\}`)

// TestRoutesLeadToTheirMethod sends a request along every route.
func TestRoutesLeadToTheirMethod(t *testing.T) {
	p := &peer{}
	h := serve(t, p)
	if len(h.routes) < 100 {
		t.Fatalf("%d routes", len(h.routes))
	}
	for key, r := range h.routes {
		path := star.ReplaceAllString(r.pattern, "$1")
		for n := 1; strings.Contains(path, "*"); n++ {
			path = strings.Replace(path, "*", "x"+string(rune('0'+n)), 1)
		}
		body := ""
		if r.body != "" {
			body = "{}"
		}
		p.method = ""
		res := send(t, h, r.verb, path, body)
		if p.method != r.method || res.StatusCode != http.StatusOK {
			t.Errorf("%s as %s called %q, not %s: %d %s", key, path, p.method, r.method, res.StatusCode, read(t, res))
		}
		// What stood in the path is what the service is asked about.
		if n := star.FindStringIndex(r.pattern); n != nil && !strings.Contains(protoText(p.in), "x1") {
			t.Errorf("%s: the request is %v", key, p.in)
		}
	}
}

func protoText(m proto.Message) string {
	b, _ := json.Marshal(m)
	return string(b)
}

// TestDocument holds that the OpenAPI document has the routes, and no others.
func TestDocument(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := json.Unmarshal(openapi.Document, &doc); err != nil {
		t.Fatal(err)
	}
	routes, err := routesOf(table(t))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, verbs := range doc.Paths {
		n += len(verbs)
	}
	if n != len(routes) {
		t.Errorf("the document has %d operations, and there are %d routes", n, len(routes))
	}
	for _, inside := range []string{"IngestService", "ReplicaService", "ExchangeToken", "EnrolmentService"} {
		if strings.Contains(string(openapi.Document), inside) {
			t.Errorf("the document speaks of %s, which strangers cannot reach", inside)
		}
	}
}

const ws = "/v1/subscriptions/s/resourceGroups/g/workspaces/w"

// TestStrict holds what is refused before a service is asked.
func TestStrict(t *testing.T) {
	p := &peer{}
	h := serve(t, p)
	for _, c := range []struct {
		name, verb, path, body string
		header                 []string
		code                   int
		reason, says           string
	}{
		{name: "unknown field", verb: "POST", path: ws + "/computes", body: `{"kinds":1}`, code: 400, reason: "REQUEST_INVALID", says: "unknown field"},
		{name: "field twice", verb: "POST", path: ws + "/computes", body: `{"computeId":"a","computeId":"b"}`, code: 400, reason: "REQUEST_INVALID", says: "duplicate"},
		{name: "wrong type", verb: "POST", path: ws + "/computes", body: `{"computeId":7}`, code: 400, reason: "REQUEST_INVALID"},
		{name: "two values", verb: "POST", path: ws + "/computes", body: `{} {}`, code: 400, reason: "REQUEST_INVALID", says: "not one JSON value"},
		{name: "no JSON", verb: "POST", path: ws + "/computes", body: `a=b`, code: 400, reason: "REQUEST_INVALID", says: "not one JSON value"},
		{name: "a form", verb: "POST", path: ws + "/computes", body: `{}`, header: []string{"Content-Type", "application/x-www-form-urlencoded"}, code: 400, reason: "REQUEST_INVALID", says: "Content-Type: application/json"},
		{name: "compressed", verb: "POST", path: ws + "/computes", body: `{}`, header: []string{"Content-Encoding", "gzip"}, code: 400, reason: "REQUEST_INVALID", says: "not compressed"},
		{name: "too large", verb: "POST", path: ws + "/computes", body: `{"computeId":"` + strings.Repeat("a", 3<<20) + `"}`, code: 413, reason: "MESSAGE_TOO_LARGE", says: "2162688 bytes"},
		{name: "unknown parameter", verb: "GET", path: ws + "/runs?pageSise=1", code: 400, reason: "REQUEST_INVALID"},
		{name: "parameter of the path", verb: "GET", path: ws + "/runs?parent=other", code: 400, reason: "REQUEST_INVALID"},
		{name: "parameter beside a body", verb: "POST", path: ws + "/computes?computeId=a", body: `{}`, code: 400, reason: "REQUEST_INVALID"},
		{name: "no number", verb: "GET", path: ws + "/runs?pageSize=many", code: 400, reason: "REQUEST_INVALID"},
		{name: "body on GET", verb: "GET", path: ws + "/runs", body: `{}`, code: 400, reason: "REQUEST_INVALID", says: "takes no body"},
		{name: "no route", verb: "GET", path: "/v1/nothing", code: 404, reason: "METHOD_UNKNOWN"},
		{name: "another verb", verb: "PUT", path: ws + "/runs", body: `{}`, code: 501, reason: "METHOD_UNKNOWN", says: "does not take PUT"},
		{name: "override", verb: "POST", path: ws + "/runs/r1", body: ``, header: []string{"X-HTTP-Method-Override", "DELETE", "Content-Type", "application/x-www-form-urlencoded"}, code: 501, reason: "METHOD_UNKNOWN"},
		{name: "GET by a form", verb: "POST", path: ws + "/runs/r1", header: []string{"Content-Type", "application/x-www-form-urlencoded"}, code: 501, reason: "METHOD_UNKNOWN"},
		{name: "slash in a segment", verb: "GET", path: ws + "/runs/r1%2foutputs", code: 400, reason: "REQUEST_INVALID", says: "encoded slash"},
		{name: "dots", verb: "GET", path: ws + "/../../runs", code: 404, reason: "METHOD_UNKNOWN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.method = ""
			var res *http.Response
			if len(c.header) > 0 && c.header[0] == "Content-Type" {
				r := httptest.NewRequestWithContext(t.Context(), c.verb, c.path, strings.NewReader(c.body))
				r.Header.Set(c.header[0], c.header[1])
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				res = w.Result()
			} else {
				res = send(t, h, c.verb, c.path, c.body, append(c.header, "X-Request-Id", "q1")...)
			}
			text := read(t, res)
			code, _, reason, message, _ := reads(t, text)
			if res.StatusCode != c.code || code != c.code || reason != c.reason || !strings.Contains(message, c.says) {
				t.Errorf("%d %s", res.StatusCode, text)
			}
			if p.method != "" {
				t.Errorf("%s was called", p.method)
			}
		})
	}
}

// What stands in a path is decoded once, and no more.
func TestDecodedOnce(t *testing.T) {
	p := &peer{}
	h := serve(t, p)
	for path, want := range map[string]string{"train%20loss": "train loss", "a%252Fb": "a%2Fb", "a:b": "a:b", "%C3%A9": "é"} {
		if res := send(t, h, "GET", ws+"/runs/r1/metrics/"+path, ""); res.StatusCode != 200 {
			t.Errorf("%s: %s", path, read(t, res))
		}
		if got := p.in.(*telemetryv1.ListMetricHistoryRequest).GetKey(); got != want {
			t.Errorf("%s is %q", path, got)
		}
	}
	send(t, h, "GET", ws+"/runs/r1/metrics:history?key=a/b&startStep=-4", "")
	if in := p.in.(*telemetryv1.ListMetricHistoryRequest); in.GetKey() != "a/b" || in.GetStartStep() != -4 {
		t.Errorf("%v", in)
	}
}

// TestRefusals holds how refusals of services read.
func TestRefusals(t *testing.T) {
	p := &peer{}
	h := serve(t, p)
	theirs := func(err error) error { return fault.ToStatus(err, "redoubt."+domain, "r7").Err() }
	for _, c := range []struct {
		name       string
		err        error
		code       int
		status     string
		reason, id string
		header     [2]string
	}{
		{name: "not found", err: theirs(fault.NotFound("no")), code: 404, status: "NOT_FOUND", reason: "RESOURCE_NOT_FOUND", id: "r7"},
		{name: "denied", err: theirs(fault.PermissionDenied("no")), code: 403, status: "PERMISSION_DENIED", reason: "ACCESS_DENIED", id: "r7"},
		{name: "no token", err: theirs(fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING, "no")), code: 401, status: "UNAUTHENTICATED", reason: "TOKEN_MISSING", id: "r7", header: [2]string{"Www-Authenticate", `Bearer realm="redoubt"`}},
		{name: "old token", err: theirs(fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "no")), code: 401, status: "UNAUTHENTICATED", reason: "TOKEN_EXPIRED", id: "r7", header: [2]string{"Www-Authenticate", `Bearer realm="redoubt", error="invalid_token"`}},
		{name: "rate", err: theirs(fault.New(codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED, "no").Retry(1500 * time.Millisecond)), code: 429, status: "RESOURCE_EXHAUSTED", reason: "RATE_LIMITED", id: "r7", header: [2]string{"Retry-After", "2"}},
		{name: "message", err: theirs(fault.New(codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE, "no")), code: 413, status: "RESOURCE_EXHAUSTED", reason: "MESSAGE_TOO_LARGE", id: "r7"},
		{name: "exists", err: theirs(fault.AlreadyExists("no")), code: 409, status: "ALREADY_EXISTS", reason: "RESOURCE_ALREADY_EXISTS", id: "r7"},
		{name: "away", err: status.Error(codes.Unavailable, "dial tcp 10.0.0.7: refused"), code: 503, status: "UNAVAILABLE", reason: "SERVICE_UNAVAILABLE", id: "q1"},
		{name: "not ours", err: errors.New("/var/lib/x"), code: 503, status: "UNAVAILABLE", reason: "SERVICE_UNAVAILABLE", id: "q1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.answer = func(string, proto.Message) error { return c.err }
			res := send(t, h, "GET", ws+"/runs/r1", "", "X-Request-Id", "q1")
			text := read(t, res)
			code, st, reason, _, id := reads(t, text)
			if res.StatusCode != c.code || code != c.code || st != c.status || reason != c.reason || id != c.id || strings.Contains(text, "10.0.0.7") || strings.Contains(text, "/var/lib") {
				t.Errorf("%d %s", res.StatusCode, text)
			}
			if c.header[0] != "" && res.Header.Get(c.header[0]) != c.header[1] {
				t.Errorf("%s is %q", c.header[0], res.Header.Get(c.header[0]))
			}
		})
	}
}

// TestWhatPasses holds which headers reach a service, and how an answer is written.
func TestWhatPasses(t *testing.T) {
	p := &peer{answer: func(_ string, reply proto.Message) error {
		proto.Merge(reply, &telemetryv1.RunData{Latest: []*telemetryv1.Metric{{Key: "loss", Value: 0.5, Step: 9007199254740993}}})
		return nil
	}}
	h := serve(t, p)
	res := send(t, h, "GET", ws+"/runs/r1/data", "", "Authorization", "Bearer a", "DPoP", "p", "Traceparent", "tp", "Tracestate", "ts", "X-Request-Id", "q",
		"Cookie", "c", "X-Forwarded-For", "192.0.2.66", "X-Forwarded-Host", "evil", "Grpc-Timeout", "1n", "Grpc-Metadata-Authorization", "Bearer b", rpc.AddressHeader, "10.0.0.1", "Connection", "x")
	want := metadata.MD{"authorization": {"Bearer a"}, "dpop": {"p"}, "traceparent": {"tp"}, "tracestate": {"ts"}, "x-request-id": {"q"}, rpc.AddressHeader: {"192.0.2.1"}}
	if len(p.md) != len(want) {
		t.Errorf("metadata: %v", p.md)
	}
	for k, v := range want {
		if !slices.Equal(p.md[k], v) {
			t.Errorf("%s passed as %q", k, p.md[k])
		}
	}
	if text := read(t, res); strings.ReplaceAll(text, " ", "") != `{"latest":[{"key":"loss","value":0.5,"step":"9007199254740993","time":null}],"params":[],"tags":[]}` {
		t.Errorf("the answer is %s", text)
	}
	if len(res.Header) != 1 || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("headers of the answer: %v", res.Header)
	}
	if d, ok := p.ctx.Deadline(); !ok || time.Until(d) > unaryMost {
		t.Errorf("the deadline of the call is %v", d)
	}
}

const unaryMost = time.Minute

// TestStreams holds how a stream is written, and how it ends badly.
func TestStreams(t *testing.T) {
	p := &peer{stream: []proto.Message{&computev1.Run{Name: "a"}, &computev1.Run{Name: "b"}}}
	h := serve(t, p)
	res := send(t, h, "GET", ws+"/runs/r1:watch", "")
	if lines := strings.Split(strings.TrimSpace(read(t, res)), "\n"); res.StatusCode != 200 || len(lines) != 2 || !strings.Contains(lines[1], `"result":{"name":"b"`) {
		t.Errorf("%d %q", res.StatusCode, lines)
	}
	p.end = fault.ToStatus(fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "over"), "redoubt."+domain, "r7").Err()
	lines := strings.Split(strings.TrimSpace(read(t, send(t, h, "GET", ws+"/runs/r1:watch", ""))), "\n")
	if len(lines) != 3 {
		t.Fatalf("%q", lines)
	}
	if code, _, reason, _, id := reads(t, lines[2]); code != 401 || reason != "TOKEN_EXPIRED" || id != "r7" {
		t.Errorf("%s", lines[2])
	}
	p.stream = nil
	res = send(t, h, "GET", ws+"/runs/r1:watch", "")
	if code, _, _, _, _ := reads(t, read(t, res)); res.StatusCode != 401 || code != 401 || res.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
}
