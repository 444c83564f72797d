package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/redoubt-ml/redoubt/pkg/edge"
)

// tlsConfig answers http/1.1 to every client that offers it, for Go's HTTP clients offer h2 as well and our HTTP/2 server speaks only
// gRPC; a client that offers h2 alone is a gRPC client.
func (s *Service) tlsConfig(shown edge.Certificate) *tls.Config {
	base := edge.TLS(shown, s.cfg.Now)
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

// sort gives connections to the server that speaks their protocol, until l is closed.
func sort(l net.Listener, grpcConns, httpConns *queue) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if t, ok := c.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
			grpcConns.put(c)
		} else {
			httpConns.put(c)
		}
	}
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
type handshaken struct {
	guard func(net.Conn) net.Conn
}

// ServerHandshake implements credentials.TransportCredentials.
func (h handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil, net.ErrClosed
	}
	return h.guard(c), connection{
		TLSInfo: credentials.TLSInfo{State: t.ConnectionState(), CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}},
		from:    edge.Network(edge.Host(c.RemoteAddr().String())), cut: t.NetConn().Close,
	}, nil
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
