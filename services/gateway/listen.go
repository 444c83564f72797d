package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// mostHandshakes is how many handshakes may be under way.
const mostHandshakes = 1024

// aeadOnly are the ciphers of TLS 1.2: with forward secrecy, and none in CBC mode, which Go's defaults still hold (D10). Those of
// TLS 1.3 cannot be chosen.
var aeadOnly = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// tlsConfig answers http/1.1 to every client that offers it, for Go's HTTP clients offer h2 as well and our HTTP/2 server speaks only
// gRPC; a client that offers h2 alone is a gRPC client.
func (s *Service) tlsConfig() *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS12, CipherSuites: aeadOnly, Time: s.cfg.Now, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cfg.Certificate() },
	}
	plain, h2 := base.Clone(), base.Clone()
	plain.NextProtos, h2.NextProtos = []string{"http/1.1"}, []string{"h2"}
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, "h2") && !slices.Contains(hello.SupportedProtos, "http/1.1") {
			return h2, nil
		}
		return plain, nil
	}
	return base
}

// accept finishes handshakes and sorts the connections.
func (s *Service) accept(ctx context.Context, l net.Listener, grpcConns, httpConns *queue) error {
	cfg := s.tlsConfig()
	slots := make(chan struct{}, mostHandshakes)
	for {
		raw, err := l.Accept()
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // what Accept returns is not wrapped
				continue
			}
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			_ = raw.Close()
			return nil
		}
		go func() {
			defer func() { <-slots }()
			conn := tls.Server(deadlined{raw, s.cfg.WriteTimeout}, cfg)
			hctx, cancel := context.WithTimeout(ctx, s.cfg.HandshakeTimeout)
			defer cancel()
			if err := conn.HandshakeContext(hctx); err != nil {
				s.cfg.Logger.Debug("handshake", "from", raw.RemoteAddr().String(), "error", err.Error())
				_ = raw.Close()
				return
			}
			to := httpConns
			if conn.ConnectionState().NegotiatedProtocol == "h2" {
				to = grpcConns
			}
			to.put(conn)
		}()
	}
}

// deadlined is a connection whose every write has to be taken within a time. It is closed when one is not: gRPC leaves a connection
// that it cannot write to for its reader to end, and that reads on.
type deadlined struct {
	net.Conn
	each time.Duration
}

// Write implements net.Conn.
func (d deadlined) Write(b []byte) (int, error) {
	if err := d.SetWriteDeadline(time.Now().Add(d.each)); err != nil { // a socket's deadline is on the system's clock
		return 0, err
	}
	n, err := d.Conn.Write(b)
	if err != nil {
		_ = d.Close()
	}
	return n, err
}

// queue is a listener that is fed with connections.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *queue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *queue) Addr() net.Addr { return q.addr }

// handshaken are the credentials of connections whose TLS handshake is done already.
type handshaken struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, net.ErrClosed
	}
	return c, credentials.TLSInfo{State: t.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// ClientHandshake implements credentials.TransportCredentials; these credentials are a server's.
func (handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, net.ErrClosed
}

// Info implements credentials.TransportCredentials.
func (handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (h handshaken) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handshaken) OverrideServerName(string) error { return nil }
