package onward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// unaryTime is how long a unary call may take whose rule says nothing: as long as the services give it.
const unaryTime = 30 * time.Second

// slack is how much longer than the service itself the gateway waits for it, so that the service's own refusal is read.
const slack = 5 * time.Second

// Inward is the metadata that passes from a caller to a service. Everything else stays outside.
func Inward() []string {
	return []string{"authorization", "dpop", "x-request-id", "traceparent", "tracestate"}
}

// Readable is v, or nothing if one of it has bytes that gRPC's metadata cannot have: such a call would fail here, as if the service were
// away. The service refuses what is missing then.
func Readable(v []string) []string {
	for _, s := range v {
		if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
			return nil
		}
	}
	return v
}

// Open tells whether strangers may reach a method. What services call among themselves, and enrolment, do not exist for them.
func Open(m *rule.Method) bool {
	return m != nil && len(m.Rule.GetCallers()) == 0 && !strings.HasPrefix(m.FullName, "/"+identityv1.EnrolmentService_ServiceDesc.ServiceName+"/")
}

// passing is the key of the metadata that go with the calls of a request.
type passing struct{}

// Context is the context of the RPCs that an HTTP request becomes.
func Context(r *http.Request) context.Context {
	md := make(metadata.MD, 6)
	for _, k := range Inward() {
		if v := Readable(r.Header.Values(k)); len(v) > 0 {
			md[k] = v
		}
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		md[rpc.AddressHeader] = []string{host}
	}
	return context.WithValue(r.Context(), passing{}, md)
}

// WithToken replaces what the request said of its caller by a bearer token. The token may be "", or not Readable: then nobody calls.
func WithToken(ctx context.Context, token string) context.Context {
	md := metadata.MD{}
	if had, ok := ctx.Value(passing{}).(metadata.MD); ok {
		md = had.Copy()
	}
	delete(md, "authorization")
	if token != "" && len(Readable([]string{token})) > 0 {
		md["authorization"] = []string{"Bearer " + token}
	}
	return context.WithValue(ctx, passing{}, md)
}

// Outgoing is ctx with what passes as its outgoing metadata, for calls that are not made through a Conn.
func Outgoing(ctx context.Context) context.Context {
	md, _ := ctx.Value(passing{}).(metadata.MD)
	return metadata.NewOutgoingContext(ctx, md.Copy())
}

// RequestID is the id that the caller gave the request, or "".
func RequestID(r *http.Request) string {
	if v := r.Header.Values("X-Request-Id"); len(v) == 1 && len(v[0]) <= 64 {
		return v[0]
	}
	return ""
}

// Conn is the connection to one service, for the calls that HTTP requests become. All fields are required.
type Conn struct {
	Peer    grpc.ClientConnInterface
	Service string
	Rules   *rule.Table
	// MaxMessageBytes bounds a message in either direction.
	MaxMessageBytes int
	// PublicTimeout is how long a call of a public method may take.
	PublicTimeout time.Duration
	Logger        *slog.Logger
}

// begin gives the context of a call.
func (c *Conn) begin(ctx context.Context, method string, stream bool) (context.Context, context.CancelFunc, error) {
	m, _ := c.Rules.Lookup(method)
	if !Open(m) {
		return nil, nil, fault.New(codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "there is no method %q here; `redoubt permissions` lists what there is", method)
	}
	md, ok := ctx.Value(passing{}).(metadata.MD)
	if !ok {
		return nil, nil, fault.Internal(errors.New("a call without a request"), "internal fault")
	}
	out := metadata.NewOutgoingContext(ctx, md)
	limit := time.Duration(m.Rule.GetMaxSeconds()) * time.Second
	switch {
	case m.Rule.GetPublic():
		limit = c.PublicTimeout
	case limit > 0:
		limit += slack
	case !stream:
		limit = unaryTime + slack
	default:
		out, cancel := context.WithCancel(out)
		return out, cancel, nil
	}
	out, cancel := context.WithTimeout(out, limit)
	return out, cancel, nil
}

func (c *Conn) options(opts []grpc.CallOption) []grpc.CallOption {
	return append(opts, grpc.MaxCallRecvMsgSize(c.MaxMessageBytes), grpc.MaxCallSendMsgSize(c.MaxMessageBytes))
}

// Invoke implements grpc.ClientConnInterface.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	out, cancel, err := c.begin(ctx, method, false)
	if err != nil {
		return err
	}
	defer cancel()
	return c.fault(ctx, c.Peer.Invoke(out, method, args, reply, c.options(opts)...))
}

// NewStream implements grpc.ClientConnInterface. The call ends with its last message, or with the context.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	out, cancel, err := c.begin(ctx, method, true)
	if err != nil {
		return nil, err
	}
	s, err := c.Peer.NewStream(out, desc, method, c.options(opts)...)
	if err != nil {
		cancel()
		return nil, c.fault(ctx, err)
	}
	return &stream{s, c, ctx, cancel}, nil
}

type stream struct {
	grpc.ClientStream
	conn   *Conn
	ctx    context.Context // of the call
	cancel context.CancelFunc
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		return nil
	}
	s.cancel()
	if errors.Is(err, io.EOF) {
		return err
	}
	return s.conn.fault(s.ctx, err)
}

func (c *Conn) fault(ctx context.Context, err error) error {
	return Fault(ctx, err, c.Service, c.MaxMessageBytes, c.Logger)
}

// Fault passes a service's own status on as it is. A status without a reason is the transport's: the caller reads ours instead.
func Fault(ctx context.Context, err error, service string, most int, logger *slog.Logger) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if ok && len(st.Details()) > 0 {
		return st.Err()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch st.Code() {
	case codes.ResourceExhausted:
		return fault.New(codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE, "a message is larger than the %d bytes that pass here; send less at once", most)
	case codes.Canceled, codes.DeadlineExceeded, codes.Unimplemented, codes.InvalidArgument:
		return fault.FromStatus(err)
	}
	logger.Warn("a service did not answer", "service", service, "error", err.Error())
	return fault.Wrap(fmt.Errorf("%s: %w", service, err), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the service %s does not answer; repeat the call, and if it stays so see `redoubt doctor`", service)
}
