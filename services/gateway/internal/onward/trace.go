package onward

import (
	"context"

	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// Traced begins the trace of each call that goes on to peer, as the gateway decides and not as the caller says: his own traceparent is passed on
// beside it, and linked to. Where t records nothing, it is peer itself.
func Traced(peer grpc.ClientConnInterface, t *observe.Tracing) grpc.ClientConnInterface {
	if !t.Records() {
		return peer
	}
	return traced{peer, t}
}

type traced struct {
	peer grpc.ClientConnInterface
	t    *observe.Tracing
}

// begin decides about a call, and says so to the service. The span is nil where the call is not recorded.
func (c traced) begin(ctx context.Context, method string) (context.Context, trace.Span) {
	theirs := ""
	if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md["traceparent"]) == 1 {
		theirs = md["traceparent"][0]
	}
	in := c.t.Accept(theirs, false)
	if !in.Sampled() {
		return metadata.AppendToOutgoingContext(ctx, rpc.TraceHeader, observe.FormatTraceparent(in.Parent)), nil
	}
	// The span stays out of the context, whose traceparent the connection would add to the caller's.
	_, span := c.t.Start(ctx, in, method, trace.SpanKindServer)
	return metadata.AppendToOutgoingContext(ctx, rpc.TraceHeader, observe.FormatTraceparent(span.SpanContext())), span
}

func end(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(otelcodes.Error, status.Code(err).String())
	}
	span.End()
}

// Invoke implements grpc.ClientConnInterface.
func (c traced) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	ctx, span := c.begin(ctx, method)
	err := c.peer.Invoke(ctx, method, args, reply, opts...)
	if span != nil {
		end(span, err)
	}
	return err
}

// NewStream implements grpc.ClientConnInterface. The span ends with the call, however that ends.
func (c traced) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, span := c.begin(ctx, method)
	if span != nil {
		opts = append(opts, grpc.OnFinish(func(err error) { end(span, err) }))
	}
	s, err := c.peer.NewStream(ctx, desc, method, opts...)
	if err != nil && span != nil {
		end(span, err)
	}
	return s, err
}
