package serving

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// aeadOnly are the ciphers of TLS 1.2, as the gateway has them: with forward secrecy, and none in CBC mode (D10).
var aeadOnly = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 32 << 10
	// maxStreams is how many requests one HTTP/2 connection may have under way. net/http ends a connection that resets them faster than
	// they end.
	maxStreams = 128
	// stopTimeout is how long requests may go on when the server stops.
	stopTimeout = 5 * time.Second
)

// Serve takes requests from scoring and workers' connections from replicas until ctx ends. Requests that are under way then have 5 s, and
// their workers as long. It closes both listeners.
func (s *Server) Serve(ctx context.Context, scoring, replicas net.Listener) error {
	both, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	pooled := make(chan error, 1)
	go func() { pooled <- s.pool.Serve(both, replicas) }()
	srv := &http.Server{
		Handler: s, TLSConfig: s.tlsConfig(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 64 << 10, MaxReceiveBufferPerConnection: 4 << 20, MaxReceiveBufferPerStream: 1 << 20,
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: s.cfg.WriteTimeout,
		},
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(newBounded(scoring, s.cfg), "", "") }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-served:
		served <- err
	case err = <-pooled:
		pooled <- err
	}
	stop, cut := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cut()
	if srv.Shutdown(stop) != nil {
		_ = srv.Close()
	}
	<-served
	s.grpc.stop()
	cancel()
	<-pooled
	s.mirrors.Wait()
	return err
}

func (s *Server) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, CipherSuites: aeadOnly, Time: s.cfg.Now, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cfg.Certificate() },
	}
}

// bounded is a listener that closes connections beyond a number, of all and of one address, and cuts those that do not read.
type bounded struct {
	net.Listener
	most, mostOfOne int
	each            time.Duration

	mu  sync.Mutex
	all int
	of  map[string]int
}

func newBounded(l net.Listener, cfg Config) *bounded {
	return &bounded{Listener: l, most: cfg.MaxConnections, mostOfOne: cfg.MaxConnectionsPerAddress, each: cfg.WriteTimeout, of: make(map[string]int)}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := address(c.RemoteAddr().String())
		if !b.enter(from) {
			_ = c.Close()
			continue
		}
		return &boundedConn{Conn: c, each: b.each, leave: sync.OnceFunc(func() { b.leave(from) })}, nil
	}
}

func (b *bounded) enter(from string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all >= b.most || b.of[from] >= b.mostOfOne {
		return false
	}
	b.all++
	b.of[from]++
	return true
}

func (b *bounded) leave(from string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.of[from]--; b.of[from] == 0 {
		delete(b.of, from)
	}
}

// boundedConn is a connection whose every write has to be taken within a time.
type boundedConn struct {
	net.Conn
	each  time.Duration
	leave func()
}

// Write implements net.Conn.
func (c *boundedConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.each)); err != nil { // a socket's deadline is on the system's clock
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
