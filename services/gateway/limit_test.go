package gateway

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// from makes a client's connections come from an address of loopback.
func from(ip string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext(ctx, "tcp", addr)
	})
}

// A3, D10: an address has its rate, whatever it asks for and in which protocol.
func TestRateOfAnAddress(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Calls.PerSecond = 2 })
	c := telemetryv1.NewMetricServiceClient(l.dial(from("127.0.0.2")))
	call := func(c telemetryv1.MetricServiceClient) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "req-7")
		_, err := c.GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: "r"})
		return err
	}
	for range 4 {
		ok(t, call(c))
	}
	err := call(c)
	refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
	if fault.RequestID(err) != "req-7" || fault.Describe(fault.FromStatus(err)).RetryAfter() <= 0 {
		t.Errorf("it says %v", err)
	}
	_, err = healthpb.NewHealthClient(l.dial(from("127.0.0.2"))).Check(t.Context(), &healthpb.HealthCheckRequest{})
	refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
	ok(t, call(telemetryv1.NewMetricServiceClient(l.dial(from("127.0.0.3")))))

	for range 3 { // one was the last of its burst's
		res, _ := l.http(http.MethodGet, "/openapi.json", "")
		if res.StatusCode == http.StatusTooManyRequests {
			t.Fatal("another address pays")
		}
	}
	var body struct {
		Error struct {
			Status  string
			Details []struct{ Reason string }
		}
	}
	for range 3 {
		res, text := l.http(http.MethodGet, "/openapi.json", "", "X-Request-Id", "req-8")
		if res.StatusCode == http.StatusOK {
			continue
		}
		ok(t, json.Unmarshal([]byte(text), &body))
		if res.StatusCode != 429 || res.Header.Get("Retry-After") == "" || body.Error.Status != "RESOURCE_EXHAUSTED" || body.Error.Details[0].Reason != "RATE_LIMITED" {
			t.Errorf("HTTP says %d %v %s", res.StatusCode, res.Header, text)
		}
		return
	}
	t.Error("HTTP has no rate")
}

// D10: a connection that goes on asking for far more than it may have is cut.
func TestFloodIsCut(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Calls.PerSecond = 2 })
	dialled := make(chan struct{}, 100)
	conn := l.dial(grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		dialled <- struct{}{}
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}))
	c := telemetryv1.NewMetricServiceClient(conn)
	for range 60 {
		_, _ = c.GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: "r"}, grpc.WaitForReady(true))
	}
	if n := len(dialled); n < 2 {
		t.Errorf("the client had to connect %d times", n)
	}
}

// D10: who is cut and comes back on another connection has no new patience; another address has its own.
func TestFloodIsOfAnAddress(t *testing.T) {
	now := time.Now()
	s := newLab(t, func(c *Config) { c.Calls.PerSecond, c.Now = 2, func() time.Time { return now } }).s
	call := func(from string) (refused, cut bool) {
		c := connection{from: from, cut: func() error { cut = true; return nil }}
		_, err := s.tap(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: c}), &tap.Info{Header: metadata.MD{}})
		return err != nil, cut
	}
	for i := range 8 { // a burst of four that pass, and of four that are refused
		if refused, cut := call("a"); refused != (i >= 4) || cut {
			t.Errorf("call %d: refused %v, cut %v", i, refused, cut)
		}
	}
	for range 2 {
		if refused, cut := call("a"); !refused || !cut {
			t.Errorf("refused %v, cut %v", refused, cut)
		}
	}
	if refused, cut := call("b"); refused || cut {
		t.Errorf("another address: refused %v, cut %v", refused, cut)
	}
	now = now.Add(10 * time.Second)
	if refused, cut := call("a"); refused || cut {
		t.Errorf("after a while: refused %v, cut %v", refused, cut)
	}
}

// D10: an address has a number of calls that it may have under way, and the others have theirs.
func TestOpenCallsOfAnAddress(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Calls.Open, c.Calls.OpenPerAddress = 5, 2 })
	began := make(chan struct{}, 10)
	l.b.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
		began <- struct{}{}
		<-s.Context().Done()
		return nil
	}
	open := func(ip string) (grpc.ServerStreamingClient[telemetryv1.WatchMetricsResponse], context.CancelFunc) {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		s, err := telemetryv1.NewMetricServiceClient(l.dial(from(ip))).WatchMetrics(ctx, &telemetryv1.WatchMetricsRequest{Run: "r"})
		ok(t, err)
		return s, cancel
	}
	var last context.CancelFunc
	for range 2 {
		_, last = open("127.0.0.2")
		<-began
	}
	third, _ := open("127.0.0.2")
	_, err := third.Recv()
	refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
	for _, ip := range []string{"127.0.0.3", "127.0.0.3", "127.0.0.4"} {
		open(ip)
		<-began
	}
	sixth, _ := open("127.0.0.5")
	_, err = sixth.Recv()
	refusedAs(t, err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
	last()
	for end := time.Now().Add(5 * time.Second); ; { // its place comes free
		s, _ := open("127.0.0.5")
		got := make(chan error, 1)
		go func() { _, err := s.Recv(); got <- err }()
		select {
		case <-began:
			return
		case err := <-got:
			if time.Now().After(end) {
				t.Fatalf("it did not come free: %v", err)
			}
		}
	}
}

// D10: calls that never send their message reach no service, and hold nobody up.
func TestUnsentMessagesGiveWay(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Calls.Unfinished, c.Calls.UnfinishedPerAddress = 8, 4 })
	l.b.issue = func(context.Context, *identityv1.IssueTokenRequest) (*identityv1.TokenResponse, error) {
		return &identityv1.TokenResponse{}, nil
	}
	slow := l.dial(from("127.0.0.2"))
	var streams []grpc.ClientStream
	for range 20 {
		s, err := slow.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, identityv1.TokenService_IssueToken_FullMethodName)
		ok(t, err)
		streams = append(streams, s)
	}
	ended := make(chan error, len(streams))
	for _, s := range streams {
		go func() { ended <- s.RecvMsg(&identityv1.TokenResponse{}) }()
	}
	for range len(streams) - 4 { // four of this address may wait
		refusedAs(t, <-ended, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
	}
	if l.b.seen() != nil {
		t.Error("the service heard of a call without a message")
	}
	for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
		_, err := identityv1.NewTokenServiceClient(l.dial(from(ip))).IssueToken(t.Context(), &identityv1.IssueTokenRequest{})
		ok(t, err)
	}
}

// D10: what is not HTTP/2 after the handshake has its time too.
func TestNoPreface(t *testing.T) {
	l := newLab(t)
	for name, first := range map[string]string{"HTTP/1.1": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "garbage": "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"} {
		c, err := (&tls.Dialer{Config: l.tls("h2")}).DialContext(t.Context(), "tcp", l.addr)
		ok(t, err)
		_, err = c.Write([]byte(first))
		ok(t, err)
		ok(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
		for err == nil {
			_, err = c.Read(make([]byte, 1024))
		}
		if ne, is := err.(net.Error); is && ne.Timeout() { //nolint:errorlint // the connection's own
			t.Errorf("%s: it is kept open", name)
		}
		_ = c.Close()
	}
}
