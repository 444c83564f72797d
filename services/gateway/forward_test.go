package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
)

// TestWhatHasNoRoute holds that strangers reach only what a rule opens to them (A3).
func TestWhatHasNoRoute(t *testing.T) {
	l := newLab(t)
	for name, method := range map[string]string{
		"unknown service":          "/redoubt.nothing.v1.X/Y",
		"unknown method":           "/redoubt.telemetry.v1.MetricService/Nothing",
		"for services":             telemetryv1.IngestService_Ingest_FullMethodName,
		"for one service":          telemetryv1.IngestService_PurgeWorkspace_FullMethodName,
		"exchange":                 identityv1.TokenService_ExchangeToken_FullMethodName,
		"enrolment, though public": identityv1.EnrolmentService_Issue_FullMethodName,
		"another case":             "/redoubt.telemetry.v1.metricservice/GetRunData",
		"channelz":                 "/grpc.channelz.v1.Channelz/GetServers",
		"very long":                "/" + strings.Repeat("a", 4000) + "/b",
	} {
		t.Run(name, func(t *testing.T) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "req-1")
			err := l.dial().Invoke(ctx, method, &telemetryv1.IngestRequest{}, &telemetryv1.IngestResponse{})
			refusedAs(t, err, codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN)
			if fault.RequestID(err) != "req-1" {
				t.Errorf("the request id is %q", fault.RequestID(err))
			}
			if l.b.seen() != nil {
				t.Error("a service was called")
			}
		})
	}
}

// TestHeaders holds the lists of what passes, in either direction.
func TestHeaders(t *testing.T) {
	l := newLab(t)
	l.b.get = func(ctx context.Context, _ *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
		_ = grpc.SetHeader(ctx, metadata.Pairs("retry", "h", rpc.AddressHeader, "10.0.0.1", "server", "inner/1"))
		_ = grpc.SetTrailer(ctx, metadata.Pairs("cost", "t", rpc.AddressHeader, "10.0.0.1"))
		return &telemetryv1.RunData{}, nil
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer a", "dpop", "p", "x-request-id", "r", "traceparent", "tp", "tracestate", "ts",
		rpc.AddressHeader, "192.0.2.66", "x-forwarded-for", "192.0.2.66", "cookie", "c", "x-secret", "s", "dpop", "second", "thing-bin", "\x00")
	var head, trail metadata.MD
	_, err := l.metrics().GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: "r"}, grpc.Header(&head), grpc.Trailer(&trail))
	ok(t, err)
	got := l.b.seen()
	for k, want := range map[string][]string{
		"authorization": {"Bearer a"}, "dpop": {"p", "second"}, "x-request-id": {"r"}, "traceparent": {"tp"}, "tracestate": {"ts"}, rpc.AddressHeader: {"127.0.0.1"},
		"x-forwarded-for": nil, "cookie": nil, "x-secret": nil, "thing-bin": nil,
	} {
		if !slices.Equal(got.Get(k), want) {
			t.Errorf("%s arrived as %q, not %q", k, got.Get(k), want)
		}
	}
	if !slices.Equal(head.Get("retry"), []string{"h"}) || !slices.Equal(trail.Get("cost"), []string{"t"}) {
		t.Errorf("the answer's metadata is %v and %v", head, trail)
	}
	if len(head.Get(rpc.AddressHeader))+len(trail.Get(rpc.AddressHeader))+len(head.Get("server")) != 0 {
		t.Errorf("what belongs behind came out: %v %v", head, trail)
	}
}

// TestStatusesPassUnchanged holds that a service's refusal is the one that the caller reads, detail by detail.
func TestStatusesPassUnchanged(t *testing.T) {
	l := newLab(t)
	sent := fault.ToStatus(fault.InvalidArgument("mend it").Field("run", "too short").With("k", "v").Retry(3*time.Second), "redoubt."+domain, "req-9")
	l.b.get = func(ctx context.Context, _ *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("cost", "7"))
		return nil, sent.Err()
	}
	var trail metadata.MD
	_, err := l.metrics().GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: "r"}, grpc.Trailer(&trail))
	if got := status.Convert(err); !proto.Equal(got.Proto(), sent.Proto()) {
		t.Errorf("got  %v\nsent %v", got.Proto(), sent.Proto())
	}
	if !slices.Equal(trail.Get("cost"), []string{"7"}) {
		t.Errorf("the trailer is %v", trail)
	}
	var bad bool
	for _, d := range status.Convert(err).Details() {
		_, is := d.(*errdetails.BadRequest)
		bad = bad || is
	}
	if !bad {
		t.Error("the violations are gone")
	}
}

// TestStreamsPassMessageByMessage holds that nothing is held back: each message is answered before the next is sent, and neither the
// end of the requests nor that of the answers is lost.
func TestStreamsPassMessageByMessage(t *testing.T) {
	l := newLab(t)
	l.b.log = func(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
		n := 0
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return s.Send(&telemetryv1.LogRunDataResponse{BatchId: fmt.Sprintf("%d in all", n)})
			}
			if err != nil {
				return err
			}
			n++
			if err := s.Send(&telemetryv1.LogRunDataResponse{BatchId: m.GetBatchId()}); err != nil {
				return err
			}
		}
	}
	s, err := l.metrics().LogRunData(t.Context())
	ok(t, err)
	for i := range 50 {
		id := fmt.Sprint(i)
		ok(t, s.Send(&telemetryv1.LogRunDataRequest{BatchId: id, Tags: []*telemetryv1.Tag{{Key: "k", Value: strings.Repeat("x", i*1000)}}}))
		m, err := s.Recv()
		ok(t, err)
		if m.GetBatchId() != id {
			t.Fatalf("answer %q to message %q", m.GetBatchId(), id)
		}
	}
	ok(t, s.CloseSend())
	m, err := s.Recv()
	ok(t, err)
	if m.GetBatchId() != "50 in all" {
		t.Errorf("the last is %q", m.GetBatchId())
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("it ended with %v", err)
	}
}

// TestWhoLeavesIsMissed holds that a caller's going away and his deadline reach the service.
func TestWhoLeavesIsMissed(t *testing.T) {
	for name, leave := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"cancel": context.WithCancel,
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 200*time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			began, ended := make(chan bool, 1), make(chan error, 1)
			l.b.get = func(ctx context.Context, _ *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
				_, has := ctx.Deadline()
				began <- has
				<-ctx.Done()
				ended <- ctx.Err()
				return nil, ctx.Err()
			}
			ctx, cancel := leave(t.Context())
			defer cancel()
			got := make(chan error, 1)
			go func() {
				_, err := l.metrics().GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: "r"})
				got <- err
			}()
			if has := <-began; has != (name == "deadline") {
				t.Errorf("the service saw a deadline: %v", has)
			}
			if name == "cancel" {
				cancel()
			}
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Fatal("the service goes on")
			}
			if err := <-got; status.Code(err) != codes.Canceled && status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("the caller reads %v", err)
			}
		})
	}
}

// TestTooLarge holds that a message which may not pass is refused with a reason, in either direction.
func TestTooLarge(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MaxMessageBytes = 1 << 20 })
	large := []*telemetryv1.Param{{Key: "k", Value: strings.Repeat("x", 2<<20)}}
	unlimited := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32))
	l.b.get = func(context.Context, *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
		return &telemetryv1.RunData{Params: large}, nil
	}
	l.b.log = echo
	c := telemetryv1.NewMetricServiceClient(l.dial(unlimited))
	_, err := c.GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: "r"})
	refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE)
	s, err := c.LogRunData(t.Context())
	ok(t, err)
	_ = s.Send(&telemetryv1.LogRunDataRequest{Params: large})
	_, err = s.Recv()
	refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE)
	// As a message that is not the first, and one that is not read at all.
	for n, want := range map[int]faultv1.Reason{2 << 20: faultv1.Reason_MESSAGE_TOO_LARGE, 20 << 20: faultv1.Reason_LIMIT_EXCEEDED} {
		s, err = c.LogRunData(t.Context())
		ok(t, err)
		ok(t, s.Send(&telemetryv1.LogRunDataRequest{BatchId: "1"}))
		_, err = s.Recv()
		ok(t, err)
		_ = s.Send(&telemetryv1.LogRunDataRequest{BatchId: strings.Repeat("x", n)})
		_, err = s.Recv()
		refusedAs(t, err, codes.ResourceExhausted, want)
	}
}

func echo(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if err := s.Send(&telemetryv1.LogRunDataResponse{BatchId: m.GetBatchId()}); err != nil {
			return err
		}
	}
}

// TestServiceEndsFirst holds that a service may end a stream while its caller goes on sending, or keeps still.
func TestServiceEndsFirst(t *testing.T) {
	for name, end := range map[string]error{"well": nil, "with an error": fault.ToStatus(fault.Aborted("enough"), "redoubt."+domain, "r").Err()} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.b.log = func(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
				_, err := s.Recv()
				ok(t, err)
				return end
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			s, err := l.metrics().LogRunData(ctx)
			ok(t, err)
			ok(t, s.Send(&telemetryv1.LogRunDataRequest{BatchId: "1"}))
			_, err = s.Recv()
			if end == nil && !errors.Is(err, io.EOF) {
				t.Errorf("it ended with %v", err)
			} else if end != nil {
				refusedAs(t, err, codes.Aborted, faultv1.Reason_CONFLICT)
			}
		})
	}
}

// TestServiceAway holds what a caller reads when nobody is behind: a reason, and no address.
func TestServiceAway(t *testing.T) {
	t.Run("before the call", func(t *testing.T) {
		l := newLab(t)
		l.stop()
		_, err := l.metrics().GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: "r"})
		refusedAs(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
		if strings.Contains(err.Error(), "closed") || strings.Contains(err.Error(), "dial") {
			t.Errorf("the transport's words came out: %v", err)
		}
		res, body := l.post("grant_type=client_credentials&client_id=a&client_secret=b")
		if res.StatusCode != 503 || !strings.Contains(body, `"temporarily_unavailable"`) || strings.Contains(body, "dial") {
			t.Errorf("the token endpoint says %d %s", res.StatusCode, body)
		}
	})
	t.Run("within it", func(t *testing.T) {
		l := newLab(t)
		l.b.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
			ok(t, s.Send(&telemetryv1.WatchMetricsResponse{}))
			<-s.Context().Done()
			return nil
		}
		s, err := l.metrics().WatchMetrics(t.Context(), &telemetryv1.WatchMetricsRequest{Run: "r"})
		ok(t, err)
		_, err = s.Recv()
		ok(t, err)
		l.stop()
		_, err = s.Recv()
		refusedAs(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
	})
	t.Run("a status of no service of ours", func(t *testing.T) {
		l := newLab(t)
		l.b.get = func(context.Context, *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
			return nil, status.Error(codes.Unknown, "open /var/lib/key: denied")
		}
		_, err := l.metrics().GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: "r"})
		refusedAs(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
		if strings.Contains(err.Error(), "/var") {
			t.Errorf("%v", err)
		}
	})
}

func TestHealthAndReflection(t *testing.T) {
	l := newLab(t)
	h, err := healthpb.NewHealthClient(l.dial()).Check(t.Context(), &healthpb.HealthCheckRequest{})
	ok(t, err)
	if h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health is %v", h)
	}
	s, err := grpc_reflection_v1.NewServerReflectionClient(l.dial()).ServerReflectionInfo(t.Context())
	ok(t, err)
	ok(t, s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}))
	r, err := s.Recv()
	ok(t, err)
	var names []string
	for _, n := range r.GetListServicesResponse().GetService() {
		names = append(names, n.GetName())
	}
	for _, want := range []string{"redoubt.telemetry.v1.MetricService", "redoubt.identity.v1.TokenService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not listed in %v", want, names)
		}
	}
	for _, hidden := range []string{"redoubt.telemetry.v1.IngestService", "redoubt.identity.v1.EnrolmentService"} {
		if slices.Contains(names, hidden) {
			t.Errorf("%s is listed", hidden)
		}
	}
}

// D10: a stranger cannot keep the gateway waiting for the rest of a message.
func TestUnfinishedMessageIsCut(t *testing.T) {
	l := newLab(t, func(c *Config) { c.PublicTimeout = 300 * time.Millisecond })
	lasts := func(method string) time.Duration {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s, err := l.dial().NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		ok(t, err)
		_ = s.RecvMsg(&identityv1.TokenResponse{}) // nothing is sent
		return time.Since(began)
	}
	if d := lasts(identityv1.TokenService_IssueToken_FullMethodName); d > 1500*time.Millisecond {
		t.Errorf("a call of a public method was open for %v", d)
	}
	if d := lasts(telemetryv1.MetricService_GetRunData_FullMethodName); d < 1500*time.Millisecond {
		t.Errorf("a call of somebody who may be known was cut after %v", d)
	}
}
