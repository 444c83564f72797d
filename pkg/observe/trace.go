package observe

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc/credentials"
)

// TraceConfig of a Tracing. Service is required.
type TraceConfig struct {
	// Service, Version and Instance name this process in what is exported.
	Service, Version, Instance string
	// Attributes are added to the resource, for example the installation.
	Attributes map[string]string
	// Endpoint is the host:port of an OTLP collector that takes gRPC. "" means that nothing is recorded or exported;
	// trace ids are still made and passed on.
	Endpoint string
	// TLS secures the connection to the collector. nil means in clear, which is for loopback.
	TLS *tls.Config
	// Ratio of the calls that begin here to be recorded, 0 to 1.
	Ratio float64
	// Log gets a line, at most once a minute, while exporting fails. nil means no line.
	Log *slog.Logger
	// Exporter is used in place of OTLP, by tests.
	Exporter sdktrace.SpanExporter
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Tracing makes spans. It is not registered globally.
type Tracing struct {
	provider trace.TracerProvider
	sdk      *sdktrace.TracerProvider // nil if nothing is recorded
	exporter sdktrace.SpanExporter    // likewise
	tracer   trace.Tracer
	ratio    float64
}

// NewTracing starts tracing. It does not wait for the collector.
func NewTracing(ctx context.Context, cfg TraceConfig) (*Tracing, error) {
	if cfg.Service == "" {
		return nil, fmt.Errorf("observe: tracing needs the name of the service")
	}
	if !(cfg.Ratio >= 0 && cfg.Ratio <= 1) {
		return nil, fmt.Errorf("observe: the sampling ratio is outside 0 to 1")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	exporter := cfg.Exporter
	if exporter == nil && cfg.Endpoint != "" {
		security := otlptracegrpc.WithInsecure()
		if cfg.TLS != nil {
			security = otlptracegrpc.WithTLSCredentials(credentials.NewTLS(cfg.TLS.Clone()))
		}
		var err error
		exporter, err = otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(cfg.Endpoint), security,
			otlptracegrpc.WithTimeout(5*time.Second), otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
				Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: 15 * time.Second,
			}))
		if err != nil {
			return nil, fmt.Errorf("observe: trace exporter: %w", err)
		}
	}
	t := &Tracing{exporter: exporter}
	if exporter == nil {
		t.provider = noop.NewTracerProvider()
	} else {
		t.ratio = cfg.Ratio
		attrs := []attribute.KeyValue{attribute.String("service.name", cfg.Service)}
		for k, v := range map[string]string{"service.version": cfg.Version, "service.instance.id": cfg.Instance} {
			if v != "" {
				attrs = append(attrs, attribute.String(k, v))
			}
		}
		for k, v := range cfg.Attributes {
			attrs = append(attrs, attribute.String(k, v))
		}
		t.sdk = sdktrace.NewTracerProvider(
			sdktrace.WithSampler(sampler{cfg.Ratio}),
			sdktrace.WithResource(resource.NewSchemaless(attrs...)),
			sdktrace.WithBatcher(&quietExporter{SpanExporter: exporter, log: cfg.Log, now: cfg.Now}),
		)
		t.provider = t.sdk
	}
	t.tracer = t.provider.Tracer("github.com/redoubt-ml/redoubt")
	return t, nil
}

// Provider is for libraries that want one. What they start is sampled by Ratio, whatever a remote parent asks for.
func (t *Tracing) Provider() trace.TracerProvider { return t.provider }

// Records reports whether anything is recorded at all. A nil Tracing records nothing.
func (t *Tracing) Records() bool { return t != nil && t.sdk != nil }

// Flush exports what was recorded so far.
func (t *Tracing) Flush(ctx context.Context) error {
	if t.sdk == nil {
		return nil
	}
	return t.sdk.ForceFlush(ctx)
}

// Shutdown exports what is left and ends, at the latest when ctx does.
func (t *Tracing) Shutdown(ctx context.Context) error {
	if t.sdk == nil {
		return nil
	}
	err := t.sdk.Shutdown(ctx)
	if err != nil {
		// The SDK leaves an export under way to itself when ctx ends. Without its connection that ends too.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = t.exporter.Shutdown(stop)
	}
	return err
}

// Incoming is where a call that arrived stands in a trace.
type Incoming struct {
	// Parent is always valid. Its trace id is also the id of a request that has no other.
	Parent trace.SpanContext
	// Link is the caller's own context where it was not taken over; else it is not valid.
	Link trace.SpanContext
}

// Sampled reports whether the call is to be recorded. Only then is Start worth calling.
func (in Incoming) Sampled() bool { return in.Parent.IsSampled() }

// Context is ctx with the trace of the call in it, so that calls onward belong to it. It records nothing.
func (in Incoming) Context(ctx context.Context) context.Context {
	return trace.ContextWithRemoteSpanContext(ctx, in.Parent)
}

// Accept decides about a call that arrived with this traceparent, "" if it had none. trusted says that it came from a
// service of the mesh, whose decision is then followed. From anybody else the trace begins anew, with an id and a
// decision made here, and his is only linked to: neither his flag nor his choice of an id makes the call recorded.
func (t *Tracing) Accept(traceparent string, trusted bool) Incoming {
	theirs, ok := ParseTraceparent(traceparent)
	if ok && trusted {
		return Incoming{Parent: theirs.WithRemote(true)}
	}
	var id trace.TraceID
	var span trace.SpanID
	for !id.IsValid() {
		binary.LittleEndian.PutUint64(id[:8], rand.Uint64())
		binary.LittleEndian.PutUint64(id[8:], rand.Uint64())
	}
	for !span.IsValid() {
		binary.LittleEndian.PutUint64(span[:], rand.Uint64())
	}
	in := Incoming{Parent: trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(0).WithSampled(draw(t.ratio)), Remote: true,
	})}
	if ok {
		in.Link = theirs
	}
	return in
}

// Start begins the span of a call that Accept found sampled.
func (t *Tracing) Start(ctx context.Context, in Incoming, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	opts := []trace.SpanStartOption{trace.WithSpanKind(kind), trace.WithAttributes(attrs...)}
	if in.Link.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: in.Link}))
	}
	ctx = context.WithValue(in.Context(ctx), accepted{}, in.Parent)
	return t.tracer.Start(ctx, name, opts...)
}

// Child begins a span inside the one that ctx holds, if that is recorded.
func (t *Tracing) Child(ctx context.Context, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	if parent := trace.SpanFromContext(ctx); !parent.IsRecording() {
		return ctx, parent
	}
	return t.tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
}

// accepted marks the remote parent whose decision Accept made.
type accepted struct{}

// sampler follows the parent if it is of this process or was accepted. All else is decided by the ratio: unlike
// ParentBased, which lets any remote parent force sampling, and unlike TraceIDRatioBased, which lets him choose the id.
type sampler struct{ ratio float64 }

func (s sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	follow := parent.IsValid() && !parent.IsRemote()
	if !follow && parent.IsValid() {
		a, ok := p.ParentContext.Value(accepted{}).(trace.SpanContext)
		follow = ok && a.Equal(parent)
	}
	yes := follow && parent.IsSampled() || !follow && draw(s.ratio)
	result := sdktrace.SamplingResult{Decision: sdktrace.Drop, Tracestate: parent.TraceState()}
	if yes {
		result.Decision = sdktrace.RecordAndSample
	}
	return result
}

func (s sampler) Description() string { return fmt.Sprintf("Redoubt{%g}", s.ratio) }

func draw(ratio float64) bool { return ratio > 0 && rand.Float64() < ratio }

// quietExporter keeps export errors out of OpenTelemetry's global handler, which prints them to standard error.
type quietExporter struct {
	sdktrace.SpanExporter
	log *slog.Logger
	now func() time.Time

	mu   sync.Mutex
	last time.Time
	lost int
}

func (e *quietExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil || e.log == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += len(spans)
	if now := e.now(); e.last.IsZero() || now.Sub(e.last) >= time.Minute {
		e.log.Warn("spans could not be exported", "error", err, "spans", e.lost)
		e.last, e.lost = now, 0
	}
	return nil
}

// ParseTraceparent reads a W3C traceparent (level 2). Versions above 00 are read by their first four fields, ff and
// ids of zeros are refused. It does not allocate.
func ParseTraceparent(s string) (trace.SpanContext, bool) {
	const size = 55 // 00-<32>-<16>-<2>
	if len(s) < size || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return trace.SpanContext{}, false
	}
	var version, flags [1]byte
	var id trace.TraceID
	var span trace.SpanID
	if !unhex(version[:], s[:2]) || !unhex(id[:], s[3:35]) || !unhex(span[:], s[36:52]) || !unhex(flags[:], s[53:55]) {
		return trace.SpanContext{}, false
	}
	if version[0] == 0xff || version[0] == 0 && len(s) != size || len(s) > size && s[size] != '-' {
		return trace.SpanContext{}, false
	}
	if !id.IsValid() || !span.IsValid() {
		return trace.SpanContext{}, false
	}
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true,
	}), true
}

// unhex decodes lower-case hexadecimal only.
func unhex(dst []byte, s string) bool {
	for i := range dst {
		hi, lo := digit(s[2*i]), digit(s[2*i+1])
		if hi > 15 || lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func digit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// FormatTraceparent writes a traceparent of version 00, "" if sc is not valid.
func FormatTraceparent(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	id, span := sc.TraceID(), sc.SpanID()
	b := make([]byte, 0, 55)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, id[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, span[:])
	if sc.IsSampled() {
		return string(append(b, "-01"...))
	}
	return string(append(b, "-00"...))
}
