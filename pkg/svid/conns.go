package svid

import (
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// conns are the connections that stand, with what their peers have shown. A handshake judges by the bundle of its moment; when a root leaves
// the bundle, what hangs on it is closed (D10).
type conns struct {
	mu   sync.Mutex
	open map[*conn][]*x509.Certificate // nil before the handshake has ended
}

// conn is a connection that tells when it is closed.
type conn struct {
	net.Conn
	of *conns
}

func (c *conns) add(raw net.Conn) *conn {
	t := &conn{Conn: raw, of: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[*conn][]*x509.Certificate)
	}
	c.open[t] = nil
	return t
}

// shown notes the chain that the peer has proved.
func (c *conns) shown(t *conn, chain []*x509.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[t]; ok {
		c.open[t] = chain
	}
}

// sweep closes each connection whose peer would not be believed by verify, were it to connect when its leaf still held: a leaf that has run
// out since its handshake is no reason.
func (c *conns) sweep(now time.Time, verify func([]*x509.Certificate, x509.ExtKeyUsage, time.Time) (spiffeid.ID, error)) (closed int) {
	c.mu.Lock()
	var gone []*conn
	for t, chain := range c.open {
		if len(chain) == 0 {
			continue // it is judged at the end of its handshake
		}
		at := now
		if end := chain[0].NotAfter.Add(-time.Second); at.After(end) {
			at = end
		}
		if _, err := verify(chain, x509.ExtKeyUsageAny, at); err != nil {
			gone = append(gone, t)
		}
	}
	c.mu.Unlock()
	for _, t := range gone {
		_ = t.Close()
	}
	return len(gone)
}

// Listen has the connections that l accepts closed when the root of their peer leaves the bundle. It is for servers that are no gRPC servers and
// use ServerTLS on what they accept, as it is or in wrappers that have NetConn.
func (s *Source) Listen(l net.Listener) net.Listener { return &listener{Listener: l, of: &s.stand} }

type listener struct {
	net.Listener
	of *conns
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.of.add(raw), nil
}

// kept finds the connection of a handshake, nil if nobody keeps it.
func (c *conns) kept(raw net.Conn) *conn {
	for {
		if t, ok := raw.(*conn); ok && t.of == c {
			return t
		}
		w, ok := raw.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		raw = w.NetConn()
	}
}

// Close implements net.Conn.
func (t *conn) Close() error {
	t.of.mu.Lock()
	delete(t.of.open, t)
	t.of.mu.Unlock()
	return t.Conn.Close()
}

// SyscallConn gives the socket, which gRPC sets options on.
func (t *conn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := t.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
