package serving

import (
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/flow"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// Names of headers, as net/http keeps them.
const (
	headerRequestID  = "X-Request-Id"
	headerDeployment = "Azureml-Model-Deployment"
	headerClientID   = "X-Ms-Client-Request-Id"
)

// maxPassed bounds the two headers of a client's that reach the worker.
const maxPassed = 256

// request is an HTTP request on its way.
type request struct {
	*flow.Call
	server  *Server
	w       http.ResponseWriter
	r       *http.Request
	dialect dialect
}

// dialect is how a protocol says that something went wrong.
type dialect func(*flow.Refusal) []byte

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.serveGRPC(w, r)
		return
	}
	if r.ContentLength != 0 { // whatever is said about it, it has to come, or the connection goes
		s.Allow(w, s.BodyTime(time.Now(), flow.BodyRate))
	}
	if r.URL.Path == "/" {
		s.healthy(w, r)
		return
	}
	uid, rest, ok := route(r.URL.Path)
	if !ok {
		s.nowhere(w)
		return
	}
	h := protocolOf(rest)
	q := &request{server: s, Call: s.NewCall(h.protocol, one(r.Header, headerRequestID), one(r.Header, "Traceparent")), w: w, r: r, dialect: h.dialect}
	defer q.End()
	defer q.recover()
	q.Describe(r)
	w.Header()[headerRequestID] = []string{q.ID}
	q.Endpoint, _ = s.Endpoint(uid)
	p, refused := flow.Present(r.Header["Authorization"])
	if refused == nil {
		refused = q.Admit(func(e *flow.State) (flow.Caller, *flow.Refusal) { return flow.Admit(e, &p, s.cfg.Now()) })
	}
	if refused == nil {
		refused = q.selectors()
	}
	if refused == nil {
		refused = h.serve(q, rest)
	}
	if refused != nil {
		q.refuse(refused)
	}
}

// recover turns a fault of ours into an answer, where none has begun.
func (q *request) recover() {
	v := recover()
	switch {
	case v == nil:
		return
	case v == http.ErrAbortHandler: //nolint:errorlint // net/http compares it so
		panic(v)
	}
	q.server.cfg.Logger.Error("a request failed by a fault of ours", "request_id", q.ID, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if q.Logged { // its answer may have begun
		panic(http.ErrAbortHandler)
	}
	q.Abandon()
	q.refuse(flow.Refuse(http.StatusInternalServerError, codes.Internal, faultv1.Reason_INTERNAL_FAULT, "internal fault"))
}

// route takes the path of a request to an endpoint apart.
func route(path string) (uid, rest string, ok bool) {
	path, ok = strings.CutPrefix(path, "/endpoints/")
	if !ok {
		return "", "", false
	}
	uid, rest, _ = strings.Cut(path, "/")
	return uid, rest, uid != ""
}

// handler serves what is below an endpoint, for callers who may.
type handler struct {
	protocol string
	dialect  dialect
	serve    func(q *request, rest string) *flow.Refusal
}

func protocolOf(rest string) handler {
	first, _, _ := strings.Cut(rest, "/")
	switch first {
	case "v2":
		return handler{"oip-rest", textBody, (*request).oip}
	case "v1":
		return handler{"kserve-v1", textBody, (*request).kserve}
	case "invocations", "ping", "health", "version":
		return handler{"mlflow", mlflowBody, (*request).mlflow}
	}
	return handler{"http", errorBody, (*request).plain}
}

// plain serves our own protocol.
func (q *request) plain(rest string) *flow.Refusal {
	switch rest {
	case "score":
		if q.r.Method != http.MethodPost {
			return flow.WrongMethod(http.MethodPost)
		}
		return q.score()
	case "swagger.json":
		return q.swagger()
	case "":
		return q.health()
	}
	return flow.NotFound("there is nothing at this path of the endpoint")
}

// score passes a request through as it is.
func (q *request) score() *flow.Refusal {
	if refused := q.Choose(); refused != nil {
		return refused
	}
	contentType, accept := one(q.r.Header, "Content-Type"), one(q.r.Header, "Accept")
	if !headerValue(contentType) || !headerValue(accept) {
		return flow.BadRequest("Content-Type and Accept are printable ASCII, of at most %d bytes", maxPassed)
	}
	if refused := q.ReadBody(q.w, q.r, q.Deployment.BodyLimit()); refused != nil {
		return refused
	}
	q.Mirror("/score", contentType)
	return q.pass(&pool.Request{Method: http.MethodPost, Path: "/score", ContentType: contentType, Accept: accept})
}

// swagger passes on what the model says of itself.
func (q *request) swagger() *flow.Refusal {
	if q.r.Method != http.MethodGet {
		return flow.WrongMethod(http.MethodGet)
	}
	path := "/swagger.json"
	switch q.r.URL.Query().Get("version") {
	case "", "2":
	case "3":
		path += "?version=3"
	default:
		return flow.BadRequest("version is 2 or 3")
	}
	if refused := q.Choose(); refused != nil {
		return refused
	}
	return q.pass(&pool.Request{Method: http.MethodGet, Path: path})
}

// health tells whether a deployment that traffic goes to has a worker.
func (q *request) health() *flow.Refusal {
	if refused := q.readable(); refused != nil {
		return refused
	}
	if !q.Ready() {
		return flow.NoReplica()
	}
	q.answer(http.StatusOK, "text/plain; charset=utf-8", []byte("Healthy"))
	return nil
}

// readable refuses all methods but those that read.
func (q *request) readable() *flow.Refusal {
	if q.r.Method != http.MethodGet && q.r.Method != http.MethodHead {
		return flow.WrongMethod("GET, HEAD")
	}
	return nil
}

// pass forwards a request and gives its answer to the client as it comes.
func (q *request) pass(req *pool.Request) *flow.Refusal {
	resp, refused := q.Forward(q.r.Context(), req)
	if refused != nil {
		return refused
	}
	if resp.Streamed() || resp.ContentLength > flow.CopySize {
		return q.stream(resp)
	}
	buf := q.Way.Buffer()
	defer q.Way.Return(buf)
	body := (*buf)[:resp.ContentLength]
	if _, err := io.ReadFull(resp, body); err != nil {
		return flow.ExchangeFailed(err)
	}
	if refused := q.MayAnswer(); refused != nil {
		return refused
	}
	q.head(resp)
	q.w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	q.Log(resp.Status, int64(len(body)), modelRefusal(resp))
	status := resp.Status
	q.Release()
	q.w.WriteHeader(status)
	_, _ = q.w.Write(body) // a client that is gone is net/http's to notice
	return nil
}

// stream copies an answer. The record goes out before the last piece does.
func (q *request) stream(resp *pool.Response) *flow.Refusal {
	if refused := q.MayAnswer(); refused != nil {
		q.Abandon()
		return refused
	}
	buf := q.Way.Buffer()
	defer q.Way.Return(buf)
	q.head(resp)
	if !resp.Streamed() {
		q.w.Header()["Content-Length"] = []string{strconv.FormatInt(resp.ContentLength, 10)}
	}
	q.w.WriteHeader(resp.Status)
	flush := http.NewResponseController(q.w)
	var sent int64
	for {
		n, err := resp.Read(*buf)
		if err != nil && err != io.EOF { //nolint:errorlint // Response's own
			q.Log(resp.Status, sent, flow.ExchangeFailed(err))
			panic(http.ErrAbortHandler) // the client must not take it for the whole
		}
		if refused := q.MayAnswer(); refused != nil {
			q.Log(refused.Status, sent, refused)
			q.Abandon()
			panic(http.ErrAbortHandler) // the rest is not for this client any more
		}
		sent += int64(n)
		if err == io.EOF || sent == resp.ContentLength { //nolint:errorlint // the same
			q.Log(resp.Status, sent, modelRefusal(resp))
		}
		if n > 0 {
			_, werr := q.w.Write((*buf)[:n])
			if werr == nil && resp.Streamed() {
				werr = flush.Flush()
			}
			if werr != nil || q.r.Context().Err() != nil && err == nil {
				q.Log(flow.ClientGone, sent, flow.Gone())
				panic(http.ErrAbortHandler)
			}
		}
		if err == io.EOF { //nolint:errorlint // the same
			return nil
		}
	}
}

// modelRefusal is what the log says of an answer in which the model's host reports a fault of user code.
func modelRefusal(resp *pool.Response) *flow.Refusal {
	if resp.ModelError == "" {
		return nil
	}
	return flow.ModelFailed(resp.Status, "%s", resp.ModelError)
}

// head sets the headers of a worker's answer.
func (q *request) head(resp *pool.Response) {
	h := q.w.Header()
	for _, f := range resp.Fields {
		if passes(f.Name) {
			h.Add(f.Name, f.Value)
		}
	}
	if resp.ContentType != "" {
		h["Content-Type"] = []string{resp.ContentType}
	} else {
		h["Content-Type"] = nil // net/http would guess one
	}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	h[headerDeployment] = []string{q.Deployment.ID}
}

// passes tells whether a header of user code's reaches the client. Those of the connection, cookies and what rules a whole origin do not:
// all endpoints stand on one.
func passes(name string) bool {
	switch name = strings.ToLower(name); name {
	case "cache-control", "content-disposition", "content-encoding", "content-language", "etag", "expires", "last-modified", "retry-after", "vary":
		return true
	case "x-request-id", "x-content-type-options", "x-frame-options", "x-xss-protection", "x-dns-prefetch-control", "x-permitted-cross-domain-policies", "x-robots-tag":
		return false
	}
	return strings.HasPrefix(name, "x-") && !strings.HasPrefix(name, "x-redoubt-") && !strings.HasPrefix(name, "x-accel-") && !strings.HasPrefix(name, "x-forwarded-")
}

// answer writes an answer of our own, if the caller may still have it.
func (q *request) answer(status int, contentType string, body []byte) {
	if refused := q.MayAnswer(); refused != nil {
		q.refuse(refused)
		return
	}
	h := q.w.Header()
	h["Content-Type"], h["X-Content-Type-Options"] = []string{contentType}, []string{"nosniff"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if q.Deployment != nil {
		h[headerDeployment] = []string{q.Deployment.ID}
	}
	q.Log(status, int64(len(body)), nil)
	q.w.WriteHeader(status)
	_, _ = q.w.Write(body) //nolint:gosec // JSON or plain text, and said to be that: no browser takes it for a page
}

// refuse writes a refusal in the words of the protocol.
func (q *request) refuse(r *flow.Refusal) {
	q.Release()
	body := q.dialect(r)
	if r.Status == flow.ClientGone {
		q.Log(r.Status, 0, r)
		panic(http.ErrAbortHandler)
	}
	h := q.w.Header()
	h["Content-Type"], h["X-Content-Type-Options"] = []string{"application/json"}, []string{"nosniff"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if r.Header != "" {
		h.Set(r.Header, r.Value)
	}
	if r.Status == http.StatusUnauthorized {
		h["Www-Authenticate"] = []string{`Bearer realm="redoubt"`}
	}
	if after := r.RetryAfter(); after > 0 {
		h["Retry-After"] = []string{strconv.Itoa(int(after / time.Second))}
	}
	if q.Deployment != nil {
		h[headerDeployment] = []string{q.Deployment.ID}
	}
	if !q.Whole && q.r.ContentLength != 0 && q.r.ProtoMajor == 1 { // what is left of the body is not worth waiting for
		h["Connection"] = []string{"close"}
	}
	q.Log(r.Status, int64(len(body)), r)
	q.w.WriteHeader(r.Status)
	_, _ = q.w.Write(body)
}

// selectors reads the headers with which a caller chooses.
func (q *request) selectors() *flow.Refusal {
	for _, name := range []string{headerDeployment, "Content-Type", "Content-Length"} {
		if n := len(q.r.Header[name]); n > 1 {
			return flow.BadRequest("%s was sent %d times; send it once", name, n)
		}
	}
	// net/http overlooks the Transfer-Encoding of HTTP/1.0, and takes what is not framed for nothing.
	if q.r.ProtoMajor == 1 && q.r.ProtoMinor == 0 && q.r.Method == http.MethodPost && q.r.Header["Content-Length"] == nil {
		return flow.Refuse(http.StatusLengthRequired, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "say the Content-Length of the request: in this version of HTTP nothing else frames it")
	}
	q.Wanted = one(q.r.Header, headerDeployment)
	return nil
}

// one is the value of a header that was sent once, or "".
func one(h http.Header, name string) string {
	if v := h[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// healthy is for probes of the listener itself.
func (s *Server) healthy(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Content-Type"], h["X-Content-Type-Options"] = []string{"text/plain; charset=utf-8"}, []string{"nosniff"}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h["Allow"] = []string{"GET, HEAD"}
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	_, _ = io.WriteString(w, "Healthy")
}

// nowhere is for paths that are no endpoint's.
func (s *Server) nowhere(w http.ResponseWriter) {
	s.CountUnknown()
	h := w.Header()
	h["Content-Type"], h["X-Content-Type-Options"] = []string{"application/json"}, []string{"nosniff"}
	w.WriteHeader(http.StatusNotFound)
	_, _ = w.Write(errorBody(flow.NotFound("there is nothing at this path: requests go to /endpoints/{endpoint uid}/score")))
}
