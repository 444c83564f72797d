package edge

import (
	"net"
	"sync/atomic"
	"time"
)

// conn is a connection from outside. Its every write has to be taken within a time; it is closed when one is not: who serves it may
// leave a connection that cannot be written to for its reader to end, and that reads on.
type conn struct {
	net.Conn
	remote net.Addr // the client's, where a proxy has said it
	each   time.Duration
	sooner atomic.Int64 // the write deadline that was asked for, in Unix nanoseconds; 0: none

	leave   func() // gives its place back; nil as long as it has none
	over    func() // says that its handshake has ended
	dropped atomic.Bool
}

// drop ends the handshake: others press from behind.
func (c *conn) drop() {
	c.dropped.Store(true)
	_ = c.Conn.Close()
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.ask(t)
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.ask(t)
	return c.Conn.SetWriteDeadline(t)
}

func (c *conn) ask(t time.Time) {
	if t.IsZero() {
		c.sooner.Store(0)
		return
	}
	c.sooner.Store(t.UnixNano())
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	end := time.Now().Add(c.each) // a socket's deadline is on the system's clock
	if s := c.sooner.Load(); s != 0 && s < end.UnixNano() {
		end = time.Unix(0, s)
	}
	if err := c.Conn.SetWriteDeadline(end); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if c.leave != nil {
		c.leave()
	}
	return c.Conn.Close()
}
