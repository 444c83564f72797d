package rpc

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/timeout"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// DialConfig of a client to another service of the mesh. Service, Target, Creds and Rules are required.
type DialConfig struct {
	// Service is the peer's name, "workspace": the audience of exchanged tokens.
	Service string
	// Target is what the resolver understands, "etcd:///workspace".
	Target    string
	Creds     credentials.TransportCredentials
	Rules     *rule.Table
	Exchanges *Exchanges // nil: the peer is only asked for what needs no caller
	// Options are discovery's: how the peer is found, balanced, and asked again when it is away.
	Options []grpc.DialOption
	// Timeout bounds a unary call whose context has no deadline. Default 10 s.
	Timeout time.Duration
	// MaxResponseBytes bounds an answer. Default 40 MiB.
	MaxResponseBytes int
	Logger           *slog.Logger
}

// Dial makes a client connection whose calls carry the request id and trace of the call that they are made for, and, where the
// method needs a caller, that caller's token exchanged for this peer. It does not wait for the peer: calls wait for it, within
// their deadline.
func Dial(cfg DialConfig) (*grpc.ClientConn, error) {
	if cfg.Service == "" || cfg.Target == "" || cfg.Creds == nil || cfg.Rules == nil || cfg.Logger == nil {
		return nil, errors.New("rpc: Service, Target, Creds, Rules and Logger are required")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.MaxResponseBytes == 0 {
		cfg.MaxResponseBytes = 40 << 20
	}
	o := outgoing{cfg}
	log := clientLogger(cfg.Logger.With("peer_service", cfg.Service))
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(cfg.Creds),
		grpc.WithChainUnaryInterceptor(
			logging.UnaryClientInterceptor(log, logging.WithLogOnEvents(logging.FinishCall), logging.WithDisableLoggingFields("protocol", "grpc.component"), logging.WithErrorFields(errorFields)),
			timeoutUnlessSet(cfg.Timeout),
			o.unary,
		),
		grpc.WithChainStreamInterceptor(o.stream),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(cfg.MaxResponseBytes), grpc.MaxCallSendMsgSize(64<<20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
	}
	return grpc.NewClient(cfg.Target, append(opts, cfg.Options...)...)
}

// errorFields says of a failed call what may stand in a log: a peer's reason, since its words may name what a tenant wrote, and the words of the
// transport, which has seen none of it.
func errorFields(err error) logging.Fields {
	if st, ok := status.FromError(err); ok && len(st.Details()) == 0 && st.Code() == codes.Unavailable {
		return logging.Fields{"error", st.Message()}
	}
	return logging.Fields{"reason", fault.ReasonOf(fault.FromStatus(err)).String()}
}

// clientLogger shows failed calls, and the others only where debugging is on. Its fields hold no metadata, no messages, and no words of a peer.
func clientLogger(l *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(ctx context.Context, level logging.Level, msg string, fields ...any) {
		at := slog.LevelDebug
		if level >= logging.LevelError {
			at = slog.LevelWarn
		}
		for i := 0; i+1 < len(fields); i += 2 {
			if fields[i] == "grpc.error" {
				fields = slices.Delete(slices.Clone(fields), i, i+2)
				break
			}
		}
		l.Log(ctx, at, msg, fields...)
	})
}

func timeoutUnlessSet(d time.Duration) grpc.UnaryClientInterceptor {
	bounded := timeout.UnaryClientInterceptor(d)
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, ok := ctx.Deadline(); ok {
			return invoke(ctx, method, req, reply, cc, opts...)
		}
		return bounded(ctx, method, req, reply, cc, invoke, opts...)
	}
}

type outgoing struct{ DialConfig }

func (o outgoing) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, err := o.annotate(ctx, method)
	if err != nil {
		return err
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

func (o outgoing) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, err := o.annotate(ctx, method)
	if err != nil {
		return nil, err
	}
	return open(ctx, desc, cc, method, opts...)
}

// annotate adds what the next service needs: who asks, and under which id.
func (o outgoing) annotate(ctx context.Context, method string) (context.Context, error) {
	c := From(ctx)
	pairs := make([]string, 0, 6)
	if c.RequestID != "" {
		pairs = append(pairs, "x-request-id", c.RequestID)
	}
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		pairs = append(pairs, "traceparent", observe.FormatTraceparent(sc))
	}
	subject, own := c.token, false
	if t, ok := ctx.Value(tokenKey{}).(string); ok {
		subject, own = t, true
	}
	if m, ok := o.Rules.Lookup(method); ok && subject != "" && len(m.Rule.GetCallers()) == 0 && !m.Rule.GetPublic() {
		token := subject
		if !own {
			if o.Exchanges == nil {
				return nil, errors.New("rpc: " + method + " needs a caller, and this client exchanges no tokens")
			}
			var err error
			if token, err = o.Exchanges.Token(ctx, subject, o.Service); err != nil {
				return nil, err
			}
		}
		pairs = append(pairs, "authorization", "Bearer "+token)
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...), nil
}

type tokenKey struct{}

// WithToken makes calls under ctx carry this token, which was made for the peer that is called: background work that goes on
// for its submitter. Without it a call carries the token of the call that ctx belongs to.
func WithToken(ctx context.Context, token string) context.Context {
	return context.WithValue(ctx, tokenKey{}, token)
}
