package serving

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/gen/inference"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/flow"
)

const (
	// maxMessage is the largest message of a caller who was admitted before it came; maxUnknown is that of others, whose endpoint stands in
	// the message.
	maxMessage = 65 << 20
	maxUnknown = 4 << 20
	// mostOpen bounds the calls of services that take no credential, and openTimeout how long one goes on.
	mostOpen    = 256
	openTimeout = time.Minute

	headerEndpoint = "Redoubt-Endpoint"
	inferPrefix    = "/" + "inference.GRPCInferenceService" + "/"
)

// oipServers are the gRPC servers behind the listener. They differ in the largest message only.
type oipServers struct {
	admitted, unknown *grpc.Server
	open              chan struct{}
}

func newOIPServers(s *Server) *oipServers {
	one := func(most int) *grpc.Server {
		g := grpc.NewServer(grpc.MaxRecvMsgSize(most), grpc.MaxSendMsgSize(flow.MaxAnswer+1<<20), grpc.ChainUnaryInterceptor(guard), grpc.WaitForHandlers(true))
		inference.RegisterGRPCInferenceServiceServer(g, &oipService{s: s})
		return g
	}
	o := &oipServers{admitted: one(maxMessage), unknown: one(maxUnknown), open: make(chan struct{}, mostOpen)}
	healthpb.RegisterHealthServer(o.unknown, health.NewServer())
	reflection.Register(o.unknown)
	return o
}

func (o *oipServers) stop() {
	o.admitted.Stop()
	o.unknown.Stop()
}

// grpcCall is a call by gRPC. The handler runs in a goroutine of gRPC's, which may go on when ServeHTTP has returned.
type grpcCall struct {
	*flow.Call
	server  *Server
	refused *flow.Refusal

	mu      sync.Mutex
	over    bool
	running chan struct{} // closed when the handler has returned; nil before it has begun
}

type grpcCallKey struct{}

// enter lets the handler begin, unless the call is over.
func (g *grpcCall) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over || g.running != nil {
		return false
	}
	g.running = make(chan struct{})
	return true
}

// wait lets no handler begin any more and waits for the one that has.
func (g *grpcCall) wait() {
	g.mu.Lock()
	g.over = true
	running := g.running
	g.mu.Unlock()
	if running != nil {
		<-running
	}
}

// serveGRPC serves a request of gRPC's. Whose endpoint it names in its metadata is admitted before his message is read.
func (s *Server) serveGRPC(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, inferPrefix) {
		s.serveOpen(w, r)
		return
	}
	g := &grpcCall{server: s, Call: s.NewCall("oip-grpc", one(r.Header, headerRequestID), one(r.Header, "Traceparent"))}
	defer g.End()
	g.Describe(r)
	w.Header()[headerRequestID] = []string{g.ID}
	p, refused := flow.Present(r.Header["Authorization"])
	named := r.Header[headerEndpoint]
	server := s.grpc.unknown
	switch {
	case len(named) > 1:
		refused = flow.BadRequest("redoubt-endpoint was sent %d times; send it once", len(named))
	case len(named) == 1:
		if g.Endpoint, _ = s.Endpoint(named[0]); g.Endpoint == nil {
			g.Endpoint, _ = s.EndpointNamed(named[0])
		}
		server = s.grpc.admitted
	}
	g.Who = func(e *flow.State) (flow.Caller, *flow.Refusal) { return flow.Admit(e, &p, s.cfg.Now()) }
	if refused == nil && len(named) == 1 {
		g.Caller, refused = g.Who(g.Endpoint)
	}
	if refused == nil && len(r.Header[headerDeployment]) > 1 {
		refused = flow.BadRequest("azureml-model-deployment was sent %d times; send it once", len(r.Header[headerDeployment]))
	}
	g.Wanted = one(r.Header, headerDeployment)
	if refused != nil {
		g.refuseGRPC(w, refused)
		return
	}
	body := &counted{s: s, from: r.Body, w: w, begin: g.Begin}
	defer body.release()
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), grpcCallKey{}, g))
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = body
	server.ServeHTTP(w, r)
	g.wait()
	g.Received = body.read.Load()
	if g.Logged {
		return
	}
	// The handler was not reached: a message that is too large, malformed or too slow, or a method that is not there.
	code := codes.Canceled
	if v, err := strconv.ParseUint(w.Header().Get("Grpc-Status"), 10, 8); err == nil {
		code = codes.Code(v)
	}
	r2 := &flow.Refusal{Error: fault.New(code, fault.ReasonOf(status.Error(code, "")), "refused by gRPC"), Status: httpOf(code)}
	g.Record.GrpcCode = fault.CodeName(code)
	g.Log(r2.Status, 0, r2)
}

// serveOpen serves health and reflection, which take no credential: few at a time, and not for long.
func (s *Server) serveOpen(w http.ResponseWriter, r *http.Request) {
	select {
	case s.grpc.open <- struct{}{}:
		defer func() { <-s.grpc.open }()
	default:
		s.trailersOnly(w, "", flow.Again(flow.Refuse(http.StatusServiceUnavailable, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED,
			"as many calls without a credential are open as may: come back later"), time.Second))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), openTimeout)
	defer cancel()
	s.grpc.unknown.ServeHTTP(w, r.WithContext(ctx))
}

// refuseGRPC answers before gRPC has the call.
func (g *grpcCall) refuseGRPC(w http.ResponseWriter, r *flow.Refusal) {
	g.Record.GrpcCode = fault.CodeName(fault.Code(r.Error))
	g.Log(r.Status, 0, r)
	g.server.trailersOnly(w, g.ID, r)
}

// trailersOnly writes a status as gRPC's servers do where there is no message.
func (s *Server) trailersOnly(w http.ResponseWriter, id string, r *flow.Refusal) {
	st := fault.ToStatus(r.Error, s.cfg.Installation, id)
	h := w.Header()
	h["Content-Type"] = []string{"application/grpc"}
	h["Grpc-Status"] = []string{strconv.Itoa(int(st.Code()))}
	h["Grpc-Message"] = []string{percent(st.Message())}
	if b, err := proto.Marshal(st.Proto()); err == nil {
		h["Grpc-Status-Details-Bin"] = []string{base64.RawStdEncoding.EncodeToString(b)}
	}
	w.WriteHeader(http.StatusOK)
}

// percent encodes a message for a header of gRPC's.
func percent(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// httpOf is the status that a code of gRPC's stands for.
func httpOf(c codes.Code) int {
	switch c {
	case codes.OK:
		return http.StatusOK
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition:
		return http.StatusBadRequest
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.NotFound:
		return http.StatusNotFound
	case codes.ResourceExhausted:
		return http.StatusRequestEntityTooLarge
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case codes.Canceled:
		return flow.ClientGone
	}
	return http.StatusInternalServerError
}

// counted is the body of a gRPC request: counted against the memory of all, and given time by what has come of it.
type counted struct {
	s       *Server
	from    io.ReadCloser
	w       http.ResponseWriter
	begin   time.Time
	granted int64
	read    atomic.Int64
	over    atomic.Bool
}

// Read implements io.Reader.
func (b *counted) Read(p []byte) (int, error) {
	if b.over.Load() {
		return 0, io.ErrUnexpectedEOF
	}
	if have := b.read.Load(); have >= b.granted {
		b.granted = have + flow.BodyRate
		b.s.Allow(b.w, b.s.BodyTime(b.begin, b.granted))
	}
	n, err := b.from.Read(p)
	if n > 0 {
		if !b.s.Hold(int64(n)) {
			b.over.Store(true)
			return 0, io.ErrUnexpectedEOF
		}
		b.read.Add(int64(n))
	}
	return n, err
}

// Close implements io.Closer.
func (b *counted) Close() error { return b.from.Close() }

func (b *counted) release() {
	b.over.Store(true)
	b.s.Free(b.read.Load())
}

// guard lets a handler run while the call stands, and logs before the answer leaves.
func guard(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	g, ok := ctx.Value(grpcCallKey{}).(*grpcCall)
	if !ok { // health: of no endpoint
		return handle(ctx, in)
	}
	if !g.enter() {
		return nil, status.FromContextError(context.Canceled).Err()
	}
	defer close(g.running)
	if m, ok := in.(proto.Message); ok {
		g.Size = int64(proto.Size(m))
		g.Received = g.Size
	}
	out, err := handle(ctx, in)
	if refused := g.MayAnswer(); refused != nil && err == nil {
		out, err = nil, g.fail(refused)
	}
	r := g.refused
	st, bytes := http.StatusOK, int64(0)
	if err == nil {
		if m, ok := out.(proto.Message); ok {
			bytes = int64(proto.Size(m))
		}
	} else if r != nil {
		st = r.Status
	} else {
		st = http.StatusInternalServerError
	}
	g.Record.GrpcCode = fault.CodeName(status.Code(err))
	g.Log(st, bytes, r)
	return out, err
}
