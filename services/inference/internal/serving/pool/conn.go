package pool

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How an exchange fails.
var (
	// ErrUnsent says that the connection broke before a byte of the request had left: another one may take it.
	ErrUnsent = errors.New("pool: the connection had ended before the request was sent")
	// ErrBroken says that the connection broke afterwards. What became of the request is not known.
	ErrBroken = errors.New("pool: the worker went away")
	// ErrMalformed says that what came is no answer.
	ErrMalformed = errors.New("pool: the worker's answer cannot be read")
	// ErrDeadline says that the answer was late.
	ErrDeadline = errors.New("pool: the worker's answer was late")
)

// Conn is the connection of one worker.
type Conn struct {
	pool    *Pool
	replica *replica
	tls     *tls.Conn
	sent    *counting
	r       *bufio.Reader
	ended   atomic.Bool
	until   time.Time // after that it is closed when it has no request

	raw      syscall.RawConn
	look     func(fd uintptr)
	standing bool // what look saw

	head [room]byte
	resp Response
}

// counting counts the bytes that leave.
type counting struct {
	net.Conn
	n int
}

// Write implements net.Conn.
func (c *counting) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n += n
	return n, err
}

func newConn(p *Pool, t *tls.Conn, sent *counting, raw net.Conn) (*Conn, error) {
	c := &Conn{pool: p, tls: t, sent: sent, r: bufio.NewReaderSize(t, 8<<10)}
	sc, ok := raw.(syscall.Conn)
	if !ok {
		return nil, errors.New("pool: the connection is no socket")
	}
	var err error
	if c.raw, err = sc.SyscallConn(); err != nil {
		return nil, err
	}
	c.resp.done = true // nothing is under way
	c.look = func(fd uintptr) {
		var b [1]byte
		for {
			_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if err != unix.EINTR {
				c.standing = err == unix.EAGAIN
				return
			}
		}
	}
	return c, nil
}

// Run is the uid of the replica's run.
func (c *Conn) Run() string { return c.replica.run }

// alive looks whether the other end still stands and has said nothing unasked. Whoever calls it owns c, or holds the lock of the pool
// while c is idle.
func (c *Conn) alive() bool {
	if c.ended.Load() || c.r.Buffered() > 0 {
		return false
	}
	return c.raw.Control(c.look) == nil && c.standing
}

// old tells whether the connection has stood for as long as one may.
func (c *Conn) old() bool { return !c.pool.cfg.Now().Before(c.until) }

// reusable tells whether the exchange has left the connection as it found it.
func (c *Conn) reusable() bool {
	return !c.ended.Load() && c.resp.done && !c.resp.close && c.r.Buffered() == 0
}

// Close ends the connection: its worker is lost. It still has to be released.
func (c *Conn) Close() { c.closeNow() }

// closeNow closes the socket. TLS is not asked to say goodbye: that would be a write beside another.
func (c *Conn) closeNow() {
	if !c.ended.Swap(true) {
		_ = c.sent.Conn.Close()
	}
}

// Release gives the connection back. One whose exchange was not finished, or went wrong, is closed.
func (c *Conn) Release() { c.pool.release(c) }

// Request is what a worker is asked.
type Request struct {
	Method, Path string
	// ContentType and Accept are the client's, "" for none.
	ContentType, Accept string
	// ID and Traceparent name the request.
	ID, Traceparent string
	// Body may be nil.
	Body *Body
}

// Exchange sends a request and reads the head of the answer, whose body is read from the Response. It belongs to c and is over with
// the next Exchange. All of it, the body included, has to come before the deadline.
func (c *Conn) Exchange(req *Request, deadline time.Time) (*Response, error) {
	c.resp.reset(c)
	if err := c.tls.SetDeadline(deadline); err != nil {
		return nil, ErrUnsent
	}
	head := c.appendHead(c.head[:0], req, deadline)
	before := c.sent.n
	var err error
	switch {
	case len(head) > room: // the caller bounds what it passes on
		return nil, ErrMalformed
	case req.Body == nil:
		_, err = c.tls.Write(head)
	default:
		start := room - len(head)
		copy(req.Body.buf[start:], head)
		_, err = c.tls.Write(req.Body.buf[start:])
	}
	if err != nil {
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, ErrDeadline
		case c.sent.n == before:
			return nil, ErrUnsent
		}
		return nil, ErrBroken
	}
	if err := c.resp.readHead(req.Method); err != nil {
		return nil, c.failed(err)
	}
	return &c.resp, nil
}

// failed says what a fault while reading means.
func (c *Conn) failed(err error) error {
	switch {
	case errors.Is(err, ErrMalformed):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrDeadline
	}
	return ErrBroken
}

func (c *Conn) appendHead(b []byte, req *Request, deadline time.Time) []byte {
	b = append(b, req.Method...)
	b = append(b, ' ')
	b = append(b, req.Path...)
	b = append(b, " HTTP/1.1\r\nHost: worker\r\n"...)
	b = appendField(b, "Content-Type: ", req.ContentType)
	b = appendField(b, "Accept: ", req.Accept)
	b = appendField(b, "X-Request-Id: ", req.ID)
	b = appendField(b, "Traceparent: ", req.Traceparent)
	b = append(b, "X-Redoubt-Deadline-Ms: "...)
	b = strconv.AppendInt(b, max(time.Until(deadline).Milliseconds(), 1), 10)
	if req.Body != nil {
		b = append(b, "\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(len(req.Body.buf)-room), 10)
	}
	return append(b, "\r\n\r\n"...)
}

func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, name...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// NetConn is what it counts for.
func (c *counting) NetConn() net.Conn { return c.Conn }
