package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protowire"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// raw sends bytes as they are, also such as are no message.
type raw struct{ encoding.CodecV2 }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.([]byte); ok {
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return encoding.GetCodecV2("proto").Marshal(v)
}
func (raw) Unmarshal(b mem.BufferSlice, v any) error {
	return encoding.GetCodecV2("proto").Unmarshal(b, v)
}
func (raw) Name() string { return "proto" }

// shape is one of the two ways in which a call comes: the same things have to hold for both.
type shape struct {
	method string
	send   func(ctx context.Context, c *grpc.ClientConn, msg any) error
}

// shapes both need an Owner at the run or workspace, data actions, and keep a record.
func shapes() map[string]shape {
	return map[string]shape{
		"unary": {keyvaultv1.SecretService_SetSecret_FullMethodName, func(ctx context.Context, c *grpc.ClientConn, msg any) error {
			return c.Invoke(ctx, keyvaultv1.SecretService_SetSecret_FullMethodName, msg, &keyvaultv1.SecretVersion{}, grpc.ForceCodecV2(raw{}))
		}},
		"stream": {telemetryv1.MetricService_LogRunData_FullMethodName, func(ctx context.Context, c *grpc.ClientConn, msg any) error {
			s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, telemetryv1.MetricService_LogRunData_FullMethodName, grpc.ForceCodecV2(raw{}))
			if err != nil {
				return err
			}
			if err := s.SendMsg(msg); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			_ = s.CloseSend()
			for {
				if err := s.RecvMsg(&telemetryv1.LogRunDataResponse{}); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		}},
	}
}

func message(kind, where string) any {
	switch {
	case where == "undecodable":
		return []byte{0xff, 0xff, 0xff}
	case kind == "unary" && where == "invalid":
		return &keyvaultv1.SetSecretRequest{Parent: ws, SecretId: "s"} // without a value
	case kind == "unary":
		return &keyvaultv1.SetSecretRequest{Parent: where, SecretId: "s", Value: []byte("v")}
	case where == "invalid":
		return &telemetryv1.LogRunDataRequest{Run: run, Metrics: []*telemetryv1.Metric{{}}}
	}
	return &telemetryv1.LogRunDataRequest{Run: where + "/runs/r1", BatchId: "b"}
}

func TestOrderOfLinks(t *testing.T) {
	c := newLab(t).chain
	var names []string
	for _, l := range c.links {
		names = append(names, l.name)
	}
	want := []string{"request id", "trace and metrics", "address limit", "deadline", "peer identity", "token", "principal limit"}
	if !slices.Equal(names, want) {
		t.Errorf("the links are %q, not %q", names, want)
	}
}

// TestFirstFaultWins sends calls with two faults each: the link that comes first names the reason (A3). Each holds for unary calls
// and for streams.
func TestFirstFaultWins(t *testing.T) {
	foreignPeer := "spiffe://elsewhere.test/service/gateway"
	for name, tc := range map[string]struct {
		peer    string
		limits  Limits
		token   func(*lab) string
		where   string
		warm    int // good calls before
		code    codes.Code
		reason  faultv1.Reason
		handled bool
	}{
		"nothing is wrong":                   {token: func(l *lab) string { return l.token(owner) }, where: ws, handled: true},
		"address limit before peer":          {peer: foreignPeer, limits: Limits{PerAddress: 0.5}, token: func(*lab) string { return "" }, where: ws, warm: 1, code: codes.ResourceExhausted, reason: faultv1.Reason_RATE_LIMITED},
		"peer before token":                  {peer: foreignPeer, token: func(l *lab) string { return l.token(owner, expired) }, where: ws, code: codes.Unauthenticated, reason: faultv1.Reason_PEER_UNKNOWN},
		"no peer before token":               {peer: "-", token: func(*lab) string { return "" }, where: ws, code: codes.Unauthenticated, reason: faultv1.Reason_PEER_UNKNOWN},
		"expired before undecodable":         {token: func(l *lab) string { return l.token(owner, expired) }, where: "undecodable", code: codes.Unauthenticated, reason: faultv1.Reason_TOKEN_EXPIRED},
		"missing before undecodable":         {token: func(*lab) string { return "" }, where: "undecodable", code: codes.Unauthenticated, reason: faultv1.Reason_TOKEN_MISSING},
		"forged before undecodable":          {token: func(l *lab) string { return l.token(owner) + "x" }, where: "undecodable", code: codes.Unauthenticated, reason: faultv1.Reason_TOKEN_INVALID},
		"principal limit before undecodable": {limits: Limits{PerPrincipal: 0.1}, token: func(l *lab) string { return l.token(owner) }, where: "undecodable", warm: 1, code: codes.ResourceExhausted, reason: faultv1.Reason_RATE_LIMITED},
		"undecodable":                        {token: func(l *lab) string { return l.token(owner) }, where: "undecodable", code: codes.InvalidArgument, reason: faultv1.Reason_REQUEST_INVALID},
		"validate before authorize":          {token: func(l *lab) string { return l.token(stranger) }, where: "invalid", code: codes.InvalidArgument, reason: faultv1.Reason_REQUEST_INVALID},
		"a right is missing":                 {token: func(l *lab) string { return l.token(reader) }, where: ws, code: codes.PermissionDenied, reason: faultv1.Reason_AUTHZ_ACTION_MISSING},
		"hidden":                             {token: func(l *lab) string { return l.token(stranger) }, where: ws, code: codes.NotFound, reason: faultv1.Reason_RESOURCE_NOT_FOUND},
		"absent":                             {token: func(l *lab) string { return l.token(owner) }, where: grp + "/workspaces/none", code: codes.NotFound, reason: faultv1.Reason_RESOURCE_NOT_FOUND},
	} {
		for kind, shape := range shapes() {
			t.Run(name+"/"+kind, func(t *testing.T) {
				l := newLab(t, func(c *Config) { c.Limits = tc.limits })
				conn := l.gateway()
				switch tc.peer {
				case "":
				case "-":
					conn = l.claiming("")
				default:
					conn = l.claiming(tc.peer)
				}
				token := tc.token(l)
				ctx := bearer(t, token)
				if token == "" {
					ctx = t.Context()
				}
				if tc.limits.PerAddress > 0 { // bufconn has no address
					l.chain.addresses.Allow("127.0.0.1", l.now())
					conn = l.as("agent/a1")
				}
				for range tc.warm {
					_ = shape.send(ctx, conn, message(kind, ws))
				}
				ran := l.h.ran.Load()
				err := shape.send(ctx, conn, message(kind, tc.where))
				if tc.handled {
					ok(t, err)
				} else {
					refusedAs(t, err, tc.code, tc.reason)
				}
				if got := l.h.ran.Load() - ran; (got == 1) != tc.handled {
					t.Errorf("the handler ran %d times", got)
				}
			})
		}
	}
}

// TestDeadlineBeforePeer walks the links by hand: a deadline this short does not survive a wire.
func TestDeadlineBeforePeer(t *testing.T) {
	l := newLab(t)
	m, err := l.chain.method("redoubt.telemetry.v1.MetricService", "GetRunData")
	ok(t, err)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(500*time.Microsecond))
	defer cancel()
	refusedAs(t, m.open(peer.NewContext(ctx, &peer.Peer{AuthInfo: &svid.PeerInfo{PeerID: "spiffe://elsewhere.test/service/x"}})).pass(),
		codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED)
}

// TestDeadlines holds what bounds a call: the caller's deadline, the rule's, the server's, whichever is shortest.
func TestDeadlines(t *testing.T) {
	for name, tc := range map[string]struct {
		callers time.Duration // 0: none
		limit   time.Duration
		atMost  time.Duration
	}{
		"none of the caller's": {limit: 20 * time.Second, atMost: 20 * time.Second},
		"caller's too long":    {callers: time.Hour, limit: 20 * time.Second, atMost: 20 * time.Second},
		"caller's is shorter":  {callers: 10 * time.Second, limit: 20 * time.Second, atMost: 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Limits.Timeout = tc.limit })
			var left time.Duration
			l.h.unary = func(ctx context.Context) error {
				d, has := ctx.Deadline()
				if !has {
					return errors.New("no deadline")
				}
				left = time.Until(d)
				return nil
			}
			ctx := bearer(t, l.token(owner))
			if tc.callers > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tc.callers)
				defer cancel()
			}
			_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: run})
			ok(t, err)
			if left > tc.atMost || left < tc.atMost-5*time.Second {
				t.Errorf("%v are left of %v", left, tc.atMost)
			}
		})
	}
	t.Run("a handler that outlives it", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.Timeout = 20 * time.Millisecond })
		l.h.unary = func(ctx context.Context) error { <-ctx.Done(); return errors.New("driver: interrupted") }
		_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(bearer(t, l.token(owner)), &telemetryv1.GetRunDataRequest{Run: run})
		refusedAs(t, err, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED)
	})
}

// TestNoRuleNoServer holds that a method without a rule, or with one that the chain cannot keep, is not registered (A3).
func TestNoRuleNoServer(t *testing.T) {
	rules := func(s ...string) *rule.Table {
		r, err := rule.Load(s...)
		ok(t, err)
		return r
	}
	for name, change := range map[string]func(*Config){
		"no rule":     func(c *Config) { c.Rules = rules("grpc.health.v1.Health") },
		"no recorder": func(c *Config) { c.Recorder = nil },
		"no verifier": func(c *Config) { c.Verifier = nil },
		"no engine":   func(c *Config) { c.Engine = nil },
		"no proofs":   func(c *Config) { c.Proofs = nil },
		"no issuer":   func(c *Config) { c.Issuer = "" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := newLab(t).cfg
			change(&cfg)
			c, err := NewChain(cfg)
			ok(t, err)
			if c.Check(&telemetryv1.MetricService_ServiceDesc) == nil {
				t.Error("Check found nothing")
			}
			s := grpc.NewServer()
			defer s.Stop()
			defer func() {
				if recover() == nil {
					t.Error("it was registered")
				}
				if len(s.GetServiceInfo()) != 0 {
					t.Error("a refused service is served")
				}
			}()
			telemetryv1.RegisterMetricServiceServer(c.Registrar(s), &handlers{})
		})
	}
	ok(t, newLab(t).chain.Check(&telemetryv1.MetricService_ServiceDesc))
}

func TestPanicsAreFaults(t *testing.T) {
	for kind, shape := range shapes() {
		t.Run(kind, func(t *testing.T) {
			l := newLab(t)
			l.h.unary = func(context.Context) error { panic("key 0xSECRET of /var/lib") }
			err := shape.send(bearer(t, l.token(owner), "x-request-id", "req-7"), l.gateway(), message(kind, ws))
			refusedAs(t, err, codes.Internal, faultv1.Reason_INTERNAL_FAULT)
			if strings.Contains(err.Error(), "SECRET") {
				t.Error("the panic's text reached the caller")
			}
			if id := fault.RequestID(err); id != "req-7" {
				t.Errorf("the request id is %q", id)
			}
			if s := l.logged.String(); !strings.Contains(s, "req-7") || !strings.Contains(s, "chain_test.go") {
				t.Errorf("the log does not lead to it: %s", s)
			}
			l.h.unary = nil
			ok(t, shape.send(bearer(t, l.token(owner)), l.gateway(), message(kind, ws)))
		})
	}
}

func TestRequestIDs(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	long := strings.Repeat("a", 65)
	for name, tc := range map[string]struct {
		send []string
		want string // "": some other
	}{
		"the caller's":            {[]string{"x-request-id", "Req_1.a-b"}, "Req_1.a-b"},
		"64 long":                 {[]string{"x-request-id", long[:64]}, long[:64]},
		"too long":                {[]string{"x-request-id", long}, ""},
		"given twice":             {[]string{"x-request-id", "a", "x-request-id", "b"}, ""},
		"not of the letters":      {[]string{"x-request-id", "a b"}, ""},
		"none":                    {nil, ""},
		"the trace's":             {[]string{"traceparent", parent}, "4bf92f3577b34da6a3ce929d0e0e4736"},
		"before the trace's":      {[]string{"traceparent", parent, "x-request-id", "mine"}, "mine"},
		"a malformed traceparent": {[]string{"traceparent", "00-zz"}, ""},
	} {
		for _, traced := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/traced %v", name, traced), func(t *testing.T) {
				l := newLab(t, func(c *Config) {
					if traced {
						var err error
						c.Tracing, err = observe.NewTracing(t.Context(), observe.TraceConfig{Service: "telemetry"})
						ok(t, err)
					}
				})
				_, err := access(bearer(t, l.token(reader), tc.send...), l.gateway())
				refusedAs(t, err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
				got, ev := fault.RequestID(err), l.rec.last(t)
				if tc.want != "" && got != tc.want {
					t.Errorf("it is %q, not %q", got, tc.want)
				}
				if tc.want == "" && (len(got) != 32 || strings.Contains(long, got) || got != ev.GetTraceId()) {
					t.Errorf("it is %q, in trace %q", got, ev.GetTraceId())
				}
				if ev.GetRequestId() != got || len(ev.GetTraceId()) != 32 {
					t.Errorf("the record has %q, trace %q", ev.GetRequestId(), ev.GetTraceId())
				}
			})
		}
	}
}

func TestSizes(t *testing.T) {
	l := newLab(t)
	ctx := bearer(t, l.token(owner))
	snapshots := workspacev1.NewSnapshotServiceClient(l.gateway())
	digests := func(n int) *workspacev1.FindMissingBlobsRequest {
		m := &workspacev1.FindMissingBlobsRequest{Parent: ws}
		for range n {
			m.Digests = append(m.Digests, make([]byte, 32))
		}
		return m
	}
	// 2 MB: above the default, below the 8 MiB of this method.
	_, err := snapshots.FindMissingBlobs(ctx, digests(60000))
	ok(t, err)
	// The same size where the rule says nothing.
	big := &telemetryv1.GetRunDataRequest{Run: run}
	big.ProtoReflect().SetUnknown(unknown(2 << 20))
	_, err = telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(ctx, big)
	refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE)
	m := &telemetryv1.LogRunDataRequest{Run: run}
	m.ProtoReflect().SetUnknown(unknown(2 << 20))
	refusedAs(t, shapes()["stream"].send(ctx, l.gateway(), m), codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE)
	// Above what the server reads at all, grpc answers by itself.
	m.ProtoReflect().SetUnknown(unknown(40 << 20))
	if err := shapes()["stream"].send(ctx, l.gateway(), m); fault.Code(fault.FromStatus(err)) != codes.ResourceExhausted {
		t.Errorf("40 MiB: %v", err)
	}
}

// unknown is a field that no message has, of n bytes.
func unknown(n int) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, 1023, protowire.BytesType), make([]byte, n))
}

func TestLimits(t *testing.T) {
	t.Run("a service of the mesh has none by address", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.PerAddress = 0.5 })
		for range 5 {
			_, err := telemetryv1.NewIngestServiceClient(l.as("service/compute")).Ingest(t.Context(), &telemetryv1.IngestRequest{Events: []*telemetryv1.ActivityEvent{{}}})
			ok(t, err)
		}
	})
	t.Run("by the client's address, behind the gateway", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.PerAddress = 0.5 })
		call := func(from string) error {
			_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(bearer(t, l.token(owner), AddressHeader, from), &telemetryv1.GetRunDataRequest{Run: run})
			return err
		}
		ok(t, call("192.0.2.1"))
		refusedAs(t, call("192.0.2.1"), codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
		ok(t, call("192.0.2.2"))
		l.advance(10 * time.Second)
		ok(t, call("192.0.2.1"))
		// Of IPv6 a client has a whole /64 to call from.
		ok(t, call("2001:db8::1"))
		refusedAs(t, call("2001:db8::ffff:2"), codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
		ok(t, call("2001:db8:0:1::1"))
		ok(t, call("::ffff:192.0.2.3"))
		ok(t, call("::ffff:192.0.2.4"))
	})
	t.Run("a rule's own, of a public method", func(t *testing.T) {
		l := newLab(t)
		call := func(from string) error {
			_, err := identityv1.NewSignInServiceClient(l.gateway()).SignIn(metadata.AppendToOutgoingContext(t.Context(), AddressHeader, from), &identityv1.SignInRequest{User: "u", Password: "p"})
			return err
		}
		for range 10 { // twice the rate of 5
			ok(t, call("192.0.2.1"))
		}
		err := call("192.0.2.1")
		refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
		if fault.Describe(fault.FromStatus(err)).RetryAfter() <= 0 {
			t.Error("it does not say when to come back")
		}
		ok(t, call("192.0.2.2"))
	})
	t.Run("by principal", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.PerPrincipal = 0.5 })
		call := func(who string) error {
			_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(bearer(t, l.token(who)), &telemetryv1.GetRunDataRequest{Run: run})
			return err
		}
		ok(t, call(owner))
		refusedAs(t, call(owner), codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
		ok(t, call(reader))
	})
	t.Run("open ones of a principal", func(t *testing.T) {
		l := newLab(t, func(c *Config) { c.Limits.OpenPerPrincipal = 1 })
		began, goOn := make(chan struct{}), make(chan struct{})
		l.h.unary = func(context.Context) error {
			began <- struct{}{}
			<-goOn
			return nil
		}
		call := func(who string) error {
			_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(bearer(t, l.token(who)), &telemetryv1.GetRunDataRequest{Run: run})
			return err
		}
		first, other := make(chan error, 1), make(chan error, 1)
		go func() { first <- call(owner) }()
		<-began
		err := call(owner)
		refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
		if fault.Describe(fault.FromStatus(err)).RetryAfter() <= 0 {
			t.Error("it does not say when to come back")
		}
		go func() { other <- call(reader) }()
		<-began
		close(goOn)
		ok(t, <-first)
		ok(t, <-other)
		go func() { <-began }()
		ok(t, call(owner))
	})
}

// TestAddressHeader holds that only the gateway is believed about addresses.
func TestAddressHeader(t *testing.T) {
	for name, tc := range map[string]struct{ peer, sent, want string }{
		"the gateway":                  {"spiffe://" + domain + "/service/gateway", "192.0.2.1", "192.0.2.1"},
		"the gateway, no address":      {"spiffe://" + domain + "/service/gateway", "nonsense", ""},
		"another service":              {"spiffe://" + domain + "/service/compute", "192.0.2.1", ""},
		"an operator":                  {"spiffe://" + domain + "/operator/" + owner, "192.0.2.1", ""},
		"a gateway of another mesh":    {"spiffe://elsewhere.test/service/gateway", "192.0.2.1", ""},
		"a path that ends like one":    {"spiffe://" + domain + "/workspace/service/gateway", "192.0.2.1", ""},
		"a run with the name of a one": {"spiffe://" + domain + "/agent/x/service/gateway", "192.0.2.1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := &Call{Context: metadata.NewIncomingContext(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: &svid.PeerInfo{PeerID: tc.peer}}),
				metadata.Pairs(AddressHeader, tc.sent)), m: &method{chain: newLab(t).chain}}
			ok(t, c.identify())
			if c.Address != tc.want {
				t.Errorf("the address is %q, not %q", c.Address, tc.want)
			}
		})
	}
}

// TestStaleStateRefuses holds that nothing is decided on a state that may be behind (A3).
func TestStaleStateRefuses(t *testing.T) {
	at := time.Now().Add(-time.Minute)
	stale := authz.New(authz.Config{Now: func() time.Time { return at }})
	ok(t, stale.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: 1, Reset_: true, Complete: true, Roles: authz.BuiltinRoles(),
		Assignments: []*workspacev1.AssignmentRecord{{Uid: "asg", Role: authz.Owner, PrincipalUid: owner}}}))
	ok(t, stale.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}))
	l := newLab(t, func(c *Config) { c.Engine = stale })
	for kind, shape := range shapes() {
		refusedAs(t, shape.send(bearer(t, l.token(owner)), l.gateway(), message(kind, ws)), codes.Unavailable, faultv1.Reason_AUTHZ_STATE_STALE)
	}
	if l.h.ran.Load() != 0 {
		t.Error("a handler ran")
	}
}

func TestUnknownMethodsAndForeignOnes(t *testing.T) {
	l := newLab(t)
	err := l.gateway().Invoke(t.Context(), "/redoubt.telemetry.v1.MetricService/Nothing", &telemetryv1.GetRunDataRequest{}, &telemetryv1.RunData{})
	refusedAs(t, err, codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN)
	if fault.RequestID(err) == "" {
		t.Error("it has no request id")
	}
	_, err = healthpb.NewHealthClient(l.as("service/compute")).Check(t.Context(), &healthpb.HealthCheckRequest{})
	ok(t, err)
	if n := l.rec.counts(); n != [3]int{} {
		t.Errorf("health was recorded: %v", n)
	}
}
