package front

import (
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// aeadOnly are the ciphers of TLS 1.2, as the gateway has them: with forward secrecy, and none in CBC mode (D10).
var aeadOnly = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// TLS is the configuration of the port: HTTP/2 and HTTP/1.1, a certificate that is asked for at each handshake, no session that outlives
// it.
func TLS(certificate func() (*tls.Certificate, error), now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, CipherSuites: aeadOnly, Time: now, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
	}
}

// Address is the host of a remote address.
func Address(remote string) string {
	if host, _, err := net.SplitHostPort(remote); err == nil {
		return host
	}
	return remote
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

// Bound gives a listener that takes at most most connections at a time, of one address at most mostOfOne, and closes those whose other end
// leaves a write unread for longer than each.
func Bound(l net.Listener, most, mostOfOne int, each time.Duration) net.Listener {
	return &bounded{Listener: l, most: most, mostOfOne: mostOfOne, each: each, of: make(map[string]int)}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := Address(c.RemoteAddr().String())
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
