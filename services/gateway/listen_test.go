package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// TestProtocols holds who gets HTTP and who gets gRPC.
func TestProtocols(t *testing.T) {
	l := newLab(t)
	for name, tc := range map[string]struct {
		offer []string
		want  string // "refused"
	}{
		"a gRPC client":           {[]string{"h2"}, "h2"},
		"Go's HTTP client":        {[]string{"h2", "http/1.1"}, "http/1.1"},
		"a browser":               {[]string{"http/1.1", "h2"}, "http/1.1"},
		"an old one":              {[]string{"http/1.1"}, "http/1.1"},
		"none":                    {nil, ""},
		"another":                 {[]string{"smtp"}, "refused"},
		"h2 beside something odd": {[]string{"odd", "h2"}, "h2"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := (&tls.Dialer{Config: l.tls(tc.offer...)}).DialContext(t.Context(), "tcp", l.addr)
			if tc.want == "refused" {
				if err == nil {
					t.Error("it was taken")
				}
				return
			}
			ok(t, err)
			defer c.Close()
			state := c.(*tls.Conn).ConnectionState()
			if state.NegotiatedProtocol != tc.want || state.Version != tls.VersionTLS13 {
				t.Errorf("it is %q, TLS %x", state.NegotiatedProtocol, state.Version)
			}
		})
	}
	t.Run("TLS 1.1", func(t *testing.T) {
		conf := l.tls("h2")
		conf.MinVersion, conf.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
		if c, err := (&tls.Dialer{Config: conf}).DialContext(t.Context(), "tcp", l.addr); err == nil {
			c.Close()
			t.Error("it was taken")
		}
	})
	res, body := l.http(http.MethodGet, "/nothing", "")
	if res.StatusCode != http.StatusNotFound || !strings.Contains(body, "not_found") || res.ProtoMajor != 1 {
		t.Errorf("%d %s over %s", res.StatusCode, body, res.Proto)
	}
}

// TestSlowHandshake holds that who never ends his handshake holds nobody up, and is put out.
func TestSlowHandshake(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Edge.HandshakeTimeout = 300 * time.Millisecond })
	var slow []net.Conn
	for range 30 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.addr)
		ok(t, err)
		defer c.Close()
		_, err = c.Write([]byte{22, 3, 1}) // a record begins
		ok(t, err)
		slow = append(slow, c)
	}
	begin := time.Now()
	_, err := l.metrics().GetRunData(t.Context(), &telemetryv1.GetRunDataRequest{Run: "r"})
	ok(t, err)
	t.Logf("a call beside them took %v", time.Since(begin))
	for _, c := range slow {
		ok(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
		if _, err := bufio.NewReader(c).ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Fatalf("it is still open: %v", err)
		}
	}
}

// TestSlowReader holds that a client who does not read what he asked for is cut, and with it the work for him.
func TestSlowReader(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Edge.WriteTimeout = 300 * time.Millisecond })
	over := make(chan struct{})
	l.b.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
		defer close(over)
		m := &telemetryv1.WatchMetricsResponse{}
		for range 1000 {
			m.Metrics = append(m.Metrics, &telemetryv1.Metric{Key: strings.Repeat("k", 250)})
		}
		for {
			if err := s.Send(m); err != nil {
				return err
			}
		}
	}
	// A window as wide as may be, over a socket that nobody reads.
	stuck := make(chan struct{})
	defer close(stuck)
	conn := l.dial(grpc.WithInitialWindowSize(1<<30), grpc.WithInitialConnWindowSize(1<<30), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return &lazy{Conn: c, left: 64 << 10, stuck: stuck}, err
	}))
	_, err := telemetryv1.NewMetricServiceClient(conn).WatchMetrics(t.Context(), &telemetryv1.WatchMetricsRequest{Run: "r"})
	ok(t, err)
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatal("it is still being written to")
	}
}

// lazy stops reading after some bytes.
type lazy struct {
	net.Conn
	left  int
	stuck chan struct{}
}

// Read implements net.Conn.
func (l *lazy) Read(b []byte) (int, error) {
	if l.left <= 0 {
		<-l.stuck
		return 0, net.ErrClosed
	}
	n, err := l.Conn.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}

// TestGatewayIsWhole holds what a gateway is not made without.
func TestGatewayIsWhole(t *testing.T) {
	good := newLab(t).s.cfg
	for name, change := range map[string]func(*Config){
		"rules": func(c *Config) { c.Rules = nil }, "certificate": func(c *Config) { c.Certificate = nil }, "installation": func(c *Config) { c.Installation = "" },
		"logger": func(c *Config) { c.Logger = nil }, "a peer": func(c *Config) { c.Peers = map[string]grpc.ClientConnInterface{"identity": nil} },
	} {
		cfg := good
		cfg.Logger = slog.New(slog.DiscardHandler)
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("made without %s", name)
		}
	}
}
