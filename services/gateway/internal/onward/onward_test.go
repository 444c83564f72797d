package onward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// peer notes what is called.
type peer struct {
	ctx context.Context
	err error
}

func (p *peer) Invoke(ctx context.Context, _ string, _, _ any, _ ...grpc.CallOption) error {
	p.ctx = ctx
	return p.err
}

func (p *peer) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	p.ctx = ctx
	return silent{ctx: ctx, err: p.err}, nil
}

type silent struct {
	grpc.ClientStream
	ctx context.Context
	err error
}

func (s silent) RecvMsg(any) error { return s.err }

func conn(t *testing.T, p *peer) *Conn {
	t.Helper()
	rules, err := rule.Load(rule.Registered("redoubt")...)
	if err != nil {
		t.Fatal(err)
	}
	return &Conn{Peer: p, Service: "compute", Rules: rules, MaxMessageBytes: 1 << 20, PublicTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)}
}

func request(header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// TestToken holds that a token replaces whatever the request said of its caller, also by none.
func TestToken(t *testing.T) {
	ctx := Context(request("Authorization", "Basic x", "Dpop", "p", "Cookie", "c"))
	for token, want := range map[string][]string{"t": {"Bearer t"}, "": nil, "t\xff": nil} {
		p := &peer{}
		if err := conn(t, p).Invoke(metadata.AppendToOutgoingContext(WithToken(ctx, token), "authorization", "Bearer smuggled", "x", "y"), computev1.RunService_GetRun_FullMethodName, nil, nil); err != nil {
			t.Fatal(err)
		}
		md, _ := metadata.FromOutgoingContext(p.ctx)
		if !slices.Equal(md["authorization"], want) || !slices.Equal(md["dpop"], []string{"p"}) || !slices.Equal(md[rpc.AddressHeader], []string{"192.0.2.1"}) || len(md["x"])+len(md["cookie"]) > 0 {
			t.Errorf("with %q: %v", token, md)
		}
		if out, _ := metadata.FromOutgoingContext(Outgoing(WithToken(ctx, token))); !slices.Equal(out["authorization"], want) {
			t.Errorf("outgoing with %q: %v", token, out)
		}
	}
	if md, _ := metadata.FromOutgoingContext(Outgoing(ctx)); !slices.Equal(md["authorization"], []string{"Basic x"}) {
		t.Errorf("the first context was changed: %v", md)
	}
}

// TestClosed holds that no route leads to what is not for strangers, and that nothing is called without a request.
func TestClosed(t *testing.T) {
	p := &peer{}
	c := conn(t, p)
	for _, method := range []string{
		telemetryv1.IngestService_Ingest_FullMethodName, identityv1.TokenService_ExchangeToken_FullMethodName, identityv1.EnrolmentService_Issue_FullMethodName,
		computev1.ReplicaService_StartReplica_FullMethodName, "/redoubt.compute.v1.RunService/Nothing", "",
	} {
		if err := c.Invoke(Context(request()), method, nil, nil); fault.ReasonOf(err) != faultv1.Reason_METHOD_UNKNOWN {
			t.Errorf("%q: %v", method, err)
		}
		if _, err := c.NewStream(Context(request()), &grpc.StreamDesc{}, method); fault.ReasonOf(err) != faultv1.Reason_METHOD_UNKNOWN {
			t.Errorf("%q as a stream: %v", method, err)
		}
	}
	if err := c.Invoke(t.Context(), computev1.RunService_GetRun_FullMethodName, nil, nil); fault.Code(err) != codes.Internal {
		t.Errorf("without a request: %v", err)
	}
	if p.ctx != nil {
		t.Error("something was called")
	}
}

// TestDeadlines holds how long calls may take.
func TestDeadlines(t *testing.T) {
	p := &peer{err: io.EOF}
	c := conn(t, p)
	for method, most := range map[string]time.Duration{
		identityv1.SignInService_SignIn_FullMethodName: time.Second, computev1.RunService_GetRun_FullMethodName: 36 * time.Second, computev1.ComputeService_ClaimRun_FullMethodName: 66 * time.Second,
	} {
		_ = c.Invoke(Context(request()), method, nil, nil)
		d, ok := p.ctx.Deadline()
		if left := time.Until(d); !ok || left > most {
			t.Errorf("%s has %v", method, left)
		}
	}
	s, err := c.NewStream(Context(request()), &grpc.StreamDesc{ServerStreams: true}, computev1.RunService_WatchRun_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if _, limited := p.ctx.Deadline(); limited {
		t.Error("a watch ends by itself")
	}
	if err := s.RecvMsg(nil); !errors.Is(err, io.EOF) || p.ctx.Err() == nil {
		t.Errorf("at its end a stream gives %v, and its context is %v", err, p.ctx.Err())
	}
}

// TestFaults holds that the transport's words stay inside.
func TestFaults(t *testing.T) {
	theirs := fault.ToStatus(fault.PermissionDenied("no"), "redoubt.test", "r").Err()
	for name, c := range map[string]struct {
		err    error
		code   codes.Code
		reason faultv1.Reason
	}{
		"a service's":   {theirs, codes.PermissionDenied, faultv1.Reason_ACCESS_DENIED},
		"a transport's": {status.Error(codes.Unavailable, "dial 10.0.0.7"), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE},
		"too large":     {status.Error(codes.ResourceExhausted, "larger than max"), codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE},
		"any error":     {errors.New("x"), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE},
	} {
		err := conn(t, &peer{err: c.err}).Invoke(Context(request()), computev1.RunService_GetRun_FullMethodName, nil, nil)
		if fault.Code(err) != c.code || fault.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(Context(request()))
	cancel()
	if err := conn(t, &peer{err: status.Error(codes.Unavailable, "x")}).Invoke(ctx, computev1.RunService_GetRun_FullMethodName, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who went away: %v", err)
	}
}
