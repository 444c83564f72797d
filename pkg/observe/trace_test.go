package observe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// spans keeps what was exported.
type spans struct {
	mu  sync.Mutex
	all []sdktrace.ReadOnlySpan
	err error
}

func (s *spans) ExportSpans(_ context.Context, got []sdktrace.ReadOnlySpan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, got...)
	return s.err
}

func (s *spans) Shutdown(context.Context) error { return nil }

func newTracing(t testing.TB, cfg TraceConfig) *Tracing {
	t.Helper()
	cfg.Service = "compute"
	tr, err := NewTracing(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return tr
}

const (
	sampledParent   = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	unsampledParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

// A stranger cannot force a span, neither by his flag nor by his choice of an id; a service of the mesh can.
func TestAccept(t *testing.T) {
	theirs := "0af7651916cd43dd8448eb211c80319c"
	for _, tc := range []struct {
		name    string
		ratio   float64
		parent  string
		trusted bool
		sampled bool
		taken   bool // over their trace
		linked  bool
	}{
		{"stranger asks, ratio 0", 0, sampledParent, false, false, false, true},
		{"stranger declines, ratio 1", 1, unsampledParent, false, true, false, true},
		{"stranger asks, ratio 1", 1, sampledParent, false, true, false, true},
		{"stranger sends rubbish", 0, "rubbish", false, false, false, false},
		{"nobody asks, ratio 0", 0, "", true, false, false, false},
		{"nobody asks, ratio 1", 1, "", true, true, false, false},
		{"peer asks, ratio 0", 0, sampledParent, true, true, true, false},
		{"peer declines, ratio 1", 1, unsampledParent, true, false, true, false},
		{"peer sends rubbish, ratio 0", 0, "rubbish", true, false, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s spans
			tr := newTracing(t, TraceConfig{Ratio: tc.ratio, Exporter: &s})
			in := tr.Accept(tc.parent, tc.trusted)
			if !in.Parent.IsValid() || in.Sampled() != tc.sampled || (in.Parent.TraceID().String() == theirs) != tc.taken || in.Link.IsValid() != tc.linked {
				t.Fatalf("got %+v", in)
			}
			// Even if it is started without asking, the span follows the decision.
			ctx, span := tr.Start(t.Context(), in, "call", trace.SpanKindServer)
			if span.IsRecording() != tc.sampled || span.SpanContext().TraceID() != in.Parent.TraceID() {
				t.Errorf("the span records: %v", span.IsRecording())
			}
			_, inner := tr.Child(ctx, "inner", trace.SpanKindInternal)
			if inner.IsRecording() != tc.sampled {
				t.Errorf("the inner span records: %v", inner.IsRecording())
			}
			inner.End()
			span.End()
			if err := tr.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := len(s.all); (n == 2) != tc.sampled || (n == 0) == tc.sampled {
				t.Fatalf("%d spans exported", n)
			}
			if tc.sampled && tc.linked {
				if l := s.all[1].Links(); len(l) != 1 || l[0].SpanContext.TraceID().String() != theirs {
					t.Errorf("links: %v", l)
				}
			}
		})
	}
}

// A library that takes the remote context over by itself gains nothing by it.
func TestSamplerIgnoresRemoteParents(t *testing.T) {
	var s spans
	tr := newTracing(t, TraceConfig{Ratio: 0, Exporter: &s})
	sc, _ := ParseTraceparent(sampledParent)
	_, span := tr.Provider().Tracer("x").Start(trace.ContextWithRemoteSpanContext(t.Context(), sc), "y")
	if span.IsRecording() {
		t.Error("a remote parent forced a span")
	}
	// Nor is one accepted parent a pass for another.
	ctx := context.WithValue(t.Context(), accepted{}, tr.Accept(unsampledParent, true).Parent)
	_, span = tr.Provider().Tracer("x").Start(trace.ContextWithRemoteSpanContext(ctx, sc), "y")
	if span.IsRecording() {
		t.Error("another's acceptance forced a span")
	}
}

func TestSamplingRatio(t *testing.T) {
	var s spans
	tr := newTracing(t, TraceConfig{Ratio: 0.25, Exporter: &s})
	const n = 20_000
	yes := 0
	ids := map[trace.TraceID]bool{}
	for range n {
		in := tr.Accept(sampledParent, false)
		ids[in.Parent.TraceID()] = true
		if in.Sampled() {
			yes++
		}
	}
	if yes < n/4-n/40 || yes > n/4+n/40 {
		t.Errorf("%d of %d sampled at 0.25", yes, n)
	}
	if len(ids) != n {
		t.Errorf("%d trace ids of %d", len(ids), n)
	}
}

func TestTracingResource(t *testing.T) {
	var s spans
	tr := newTracing(t, TraceConfig{Ratio: 1, Exporter: &s, Version: "1.2.3", Instance: "i-1", Attributes: map[string]string{"redoubt.installation": "example"}})
	_, span := tr.Start(t.Context(), tr.Accept("", false), "call", trace.SpanKindServer)
	span.End()
	if err := tr.Flush(t.Context()); err != nil || len(s.all) != 1 {
		t.Fatalf("%v, %d spans", err, len(s.all))
	}
	got := fmt.Sprint(s.all[0].Resource().Attributes())
	for _, want := range []string{"service.name", "compute", "service.version", "1.2.3", "service.instance.id", "i-1", "redoubt.installation", "example"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in %s", want, got)
		}
	}
}

// Without a collector nothing is recorded, and trace ids are passed on.
func TestTracingOff(t *testing.T) {
	tr := newTracing(t, TraceConfig{Ratio: 1})
	in := tr.Accept("", false)
	if !in.Parent.IsValid() || in.Sampled() {
		t.Fatalf("got %+v", in)
	}
	in = tr.Accept(sampledParent, true)
	ctx, span := tr.Start(t.Context(), in, "call", trace.SpanKindServer)
	if span.IsRecording() {
		t.Error("it records")
	}
	if got := FormatTraceparent(trace.SpanContextFromContext(ctx)); got != sampledParent {
		t.Errorf("passed on %q", got)
	}
	if err := tr.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNewTracingRefuses(t *testing.T) {
	nan := 0.0
	nan /= nan
	for name, cfg := range map[string]TraceConfig{
		"no service": {}, "negative": {Service: "x", Ratio: -0.1}, "over 1": {Service: "x", Ratio: 1.1}, "NaN": {Service: "x", Ratio: nan},
	} {
		if _, err := NewTracing(t.Context(), cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}

// A collector that is away costs one line a minute and nothing else.
func TestExportErrors(t *testing.T) {
	var out sink
	log := NewLogger(LogConfig{Writer: &out})
	now := time.Unix(1_790_000_000, 0)
	e := &quietExporter{SpanExporter: &spans{err: errors.New("collector away")}, log: log.Logger, now: func() time.Time { return now }}
	for range 3 {
		if err := e.ExportSpans(t.Context(), make([]sdktrace.ReadOnlySpan, 5)); err != nil {
			t.Error(err)
		}
	}
	now = now.Add(time.Minute)
	_ = e.ExportSpans(t.Context(), make([]sdktrace.ReadOnlySpan, 5))
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	got := out.String()
	if strings.Count(got, "could not be exported") != 2 || !strings.Contains(got, "spans=5") || !strings.Contains(got, "spans=15") {
		t.Errorf("got %s", got)
	}
}

// An endpoint that nobody listens on neither fails the start nor blocks the end.
func TestEndpointAway(t *testing.T) {
	tr, err := NewTracing(t.Context(), TraceConfig{Service: "x", Endpoint: "127.0.0.1:1", Ratio: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tr.Start(t.Context(), tr.Accept("", false), "call", trace.SpanKindServer)
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_ = tr.Shutdown(ctx)
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Shutdown took %v", d)
	}
}

func TestParseTraceparent(t *testing.T) {
	const id, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, tc := range []struct {
		in          string
		ok, sampled bool
	}{
		{sampledParent, true, true},
		{unsampledParent, true, false},
		{"00-" + id + "-" + span + "-03", true, true},
		{"00-" + id + "-" + span + "-02", true, false},
		{"00-" + id + "-" + span + "-ff", true, true},
		{"01-" + id + "-" + span + "-01", true, true},
		{"01-" + id + "-" + span + "-01-more", true, true},
		{"cc-" + id + "-" + span + "-01-", true, true},
		{"01-" + id + "-" + span + "-01more", false, false},
		{"00-" + id + "-" + span + "-01-more", false, false},
		{"00-" + id + "-" + span + "-01 ", false, false},
		{"ff-" + id + "-" + span + "-01", false, false},
		{"0-" + id + "-" + span + "-01", false, false},
		{"00-" + strings.ToUpper(id) + "-" + span + "-01", false, false},
		{"00-" + id + "-" + strings.ToUpper(span) + "-01", false, false},
		{"00-" + strings.Repeat("0", 32) + "-" + span + "-01", false, false},
		{"00-" + id + "-" + strings.Repeat("0", 16) + "-01", false, false},
		{"00-" + id[1:] + "-" + span + "-01", false, false},
		{"00-" + id + "-" + span + "-1", false, false},
		{"00-" + id + "-" + span, false, false},
		{"00_" + id + "_" + span + "_01", false, false},
		{"00-" + id[:31] + "g-" + span + "-01", false, false},
		{" " + sampledParent, false, false},
		{"", false, false},
		{strings.Repeat("-", 55), false, false},
	} {
		sc, ok := ParseTraceparent(tc.in)
		if ok != tc.ok || sc.IsSampled() != tc.sampled || ok && (sc.TraceID().String() != id || sc.SpanID().String() != span || !sc.IsRemote()) {
			t.Errorf("%q: %v %+v", tc.in, ok, sc)
		}
		if ok && tc.in[:2] == "00" && (tc.in[54] == '0' || tc.in[54] == '1') && FormatTraceparent(sc) != tc.in {
			t.Errorf("%q comes back as %q", tc.in, FormatTraceparent(sc))
		}
	}
	if FormatTraceparent(trace.SpanContext{}) != "" {
		t.Error("no context has a traceparent")
	}
	if n := testing.AllocsPerRun(100, func() { ParseTraceparent(sampledParent) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParseTraceparent(f *testing.F) {
	f.Add(sampledParent)
	f.Add("01" + unsampledParent[2:] + "-x")
	f.Fuzz(func(t *testing.T, s string) {
		sc, ok := ParseTraceparent(s)
		if ok != sc.IsValid() {
			t.Fatalf("%q: %v but valid is %v", s, ok, sc.IsValid())
		}
		if ok {
			if again, ok := ParseTraceparent(FormatTraceparent(sc)); !ok || !again.Equal(sc) {
				t.Fatalf("%q does not come back", s)
			}
		}
	})
}

func BenchmarkAccept(b *testing.B) {
	tr := newTracing(b, TraceConfig{Ratio: 0.01})
	b.Run("peer", func(b *testing.B) {
		for b.Loop() {
			tr.Accept(unsampledParent, true)
		}
	})
	b.Run("stranger", func(b *testing.B) {
		for b.Loop() {
			tr.Accept("", false)
		}
	})
}
