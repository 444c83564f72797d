package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Limits of a port. Zero fields take the defaults.
type Limits struct {
	// Connections that may stand at a time, in all and of one address. Defaults 8,192 and half of Connections.
	Connections, PerAddress int
	// PerSecond is how many connections may come in a second from one address, with twice that in a burst. Default 1,000: many clients may stand
	// behind one address, and not all keep their connections.
	PerSecond float64
	// Handshakes that may be under way at a time, in all and of one address: of more, the oldest goes. Defaults 1,024 and half of Handshakes.
	Handshakes, HandshakesPerAddress int
	// HandshakeTimeout is how long a connection may take until its TLS handshake is done, a PROXY header included. Default 10 s.
	HandshakeTimeout time.Duration
	// WriteTimeout is how long a client may leave a write unread. Default 30 s.
	WriteTimeout time.Duration
	// ProxyFrom are the networks whose connections begin with a header of the PROXY protocol, and end where they do not. Nobody else's
	// header is read.
	ProxyFrom []netip.Prefix
}

func (l Limits) withDefaults() Limits {
	if l.Connections == 0 {
		l.Connections = 8192
	}
	if l.PerAddress == 0 {
		l.PerAddress = max(l.Connections/2, 1)
	}
	if l.PerSecond == 0 {
		l.PerSecond = 1000
	}
	if l.Handshakes == 0 {
		l.Handshakes = 1024
	}
	if l.HandshakesPerAddress == 0 {
		l.HandshakesPerAddress = max(l.Handshakes/2, 1)
	}
	if l.HandshakeTimeout == 0 {
		l.HandshakeTimeout = 10 * time.Second
	}
	if l.WriteTimeout == 0 {
		l.WriteTimeout = 30 * time.Second
	}
	return l
}

// Refusal is why a connection got no further.
type Refusal string

// The reasons that Config.Refused is told.
const (
	RefusedConnections Refusal = "connections" // too many, or too fast
	RefusedHandshake   Refusal = "handshake"   // failed, or took too long
	RefusedOverrun     Refusal = "overrun"     // the oldest of too many handshakes
	RefusedProxy       Refusal = "proxy"       // no PROXY header where there has to be one
)

// Config of a Listener. TLS and Logger are required.
type Config struct {
	TLS    *tls.Config
	Limits Limits
	// Refused is told of each connection that got no further; nil tells nobody. It must not block.
	Refused func(Refusal)
	Logger  *slog.Logger
}

// Listener gives connections whose TLS handshake is done, as *tls.Conn.
type Listener struct {
	inner net.Listener
	cfg   Config
	lim   Limits
	open  *Open  // connections, by network
	rates *Rates // the same

	conns chan net.Conn
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	ended chan struct{} // the accepting is over
	err   error         // why, once ended is closed

	pending *Waiting // handshakes, by network
}

// Listen takes connections from l, which it closes when it is closed.
func Listen(l net.Listener, cfg Config) *Listener {
	e := &Listener{inner: l, cfg: cfg, lim: cfg.Limits.withDefaults(), conns: make(chan net.Conn), ended: make(chan struct{})}
	if e.cfg.Refused == nil {
		e.cfg.Refused = func(Refusal) {}
	}
	e.open = NewOpen(e.lim.Connections, e.lim.PerAddress)
	e.rates = NewRates(e.lim.PerSecond)
	e.pending = NewWaiting(e.lim.Handshakes, e.lim.HandshakesPerAddress)
	e.ctx, e.stop = context.WithCancel(context.Background())
	go e.accept()
	return e
}

// Accept implements net.Listener.
func (e *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-e.conns:
		return c, nil
	case <-e.ended:
		return nil, e.err
	}
}

// Close implements net.Listener. Connections that were given stay.
func (e *Listener) Close() error {
	e.stop()
	err := e.inner.Close()
	e.pending.Drop()
	return err
}

// Addr implements net.Listener.
func (e *Listener) Addr() net.Addr { return e.inner.Addr() }

// penalty is how many connections one is worth that had to be ended.
const penalty = 20

// Punish counts a connection that had to be ended for what was done on it: who makes such ones has fewer.
func (e *Listener) Punish(from string) { e.rates.Charge(from, penalty, time.Now()) }

// Connections is how many stand, those in their handshake included.
func (e *Listener) Connections() int { return e.open.Count() }

// accept takes connections until the listener is closed.
func (e *Listener) accept() {
	defer close(e.ended)
	wait := time.Duration(0)
	for {
		raw, err := e.inner.Accept()
		if err == nil {
			wait = 0
			e.begin(raw)
			continue
		}
		if e.ctx.Err() != nil {
			e.err = net.ErrClosed
			return
		}
		if !passing(err) {
			e.err = err
			return
		}
		e.pending.Oldest() // a file descriptor comes free
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		e.cfg.Logger.Warn("no connection can be taken for now", "error", err.Error(), "again_in", wait.String())
		select {
		case <-time.After(wait):
		case <-e.ctx.Done():
		}
	}
}

// passing tells whether accepting may work again later.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.ECONNRESET, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// begin starts the handshake of a connection. Where too many are under way, the oldest of them ends.
func (e *Listener) begin(raw net.Conn) {
	c := &conn{Conn: raw, each: e.lim.WriteTimeout, remote: raw.RemoteAddr()}
	peer := peerOf(c.remote).Addr()
	from, trusted := "", false
	for _, p := range e.lim.ProxyFrom {
		trusted = trusted || p.Contains(peer)
	}
	if !trusted {
		var entered bool
		if from, entered = e.enter(c, peer); !entered {
			return
		}
	}
	c.over = e.pending.Enter(from, c.drop)
	go e.handshake(c, trusted)
}

// enter counts a connection to its network, or closes it.
func (e *Listener) enter(c *conn, a netip.Addr) (from string, entered bool) {
	from = Network(a.String())
	if e.rates.Allow(from, time.Now()) > 0 || !e.open.Enter(from) {
		e.cfg.Refused(RefusedConnections)
		_ = c.Conn.Close()
		return "", false
	}
	c.leave = sync.OnceFunc(func() { e.open.Leave(from) })
	return from, true
}

// handshake takes a connection to where it can be given.
func (e *Listener) handshake(c *conn, trusted bool) {
	t, why, err := e.negotiate(c, trusted)
	c.over()
	dropped := c.dropped.Load()
	if err == nil && !dropped {
		select {
		case e.conns <- t:
			return
		case <-e.ctx.Done():
		}
	}
	_ = c.Close()
	if dropped {
		why = RefusedOverrun
	}
	if why != "" && e.ctx.Err() == nil {
		e.cfg.Refused(why)
		e.cfg.Logger.Debug("a connection got no further", "from", c.remote.String(), "why", string(why), "error", err)
	}
}

func (e *Listener) negotiate(c *conn, trusted bool) (*tls.Conn, Refusal, error) {
	end := time.Now().Add(e.lim.HandshakeTimeout) // a socket's deadline is on the system's clock
	ctx, cancel := context.WithDeadline(e.ctx, end)
	defer cancel()
	if trusted {
		if err := c.Conn.SetReadDeadline(end); err != nil {
			return nil, RefusedProxy, err
		}
		client, err := readProxy(c.Conn)
		if err != nil {
			return nil, RefusedProxy, err
		}
		if client.IsValid() {
			c.remote = net.TCPAddrFromAddrPort(client)
		}
		from, entered := e.enter(c, peerOf(c.remote).Addr())
		if !entered {
			return nil, "", errProxy
		}
		c.over() // now it is somebody's
		c.over = e.pending.Enter(from, c.drop)
		if err := c.Conn.SetReadDeadline(time.Time{}); err != nil {
			return nil, RefusedHandshake, err
		}
	}
	t := tls.Server(c, e.cfg.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, RefusedHandshake, err
	}
	return t, "", nil
}
