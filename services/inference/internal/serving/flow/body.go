package flow

import (
	"compress/gzip"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

const (
	// smallBody is what a body's first buffer holds; buffers of that size are used again.
	smallBody = 16 << 10
	// BodyRate is how many bytes of a body have to come each second, beyond its grace.
	BodyRate = 256 << 10
	// CopySize is that of the buffers through which long answers pass.
	CopySize = 32 << 10
)

// ReadBody reads the whole body of a request into the call: at most limit bytes, unpacked, within its time and the memory of all.
func (c *Call) ReadBody(w http.ResponseWriter, r *http.Request, limit int64) *Refusal {
	if r.ContentLength > limit {
		return TooLarge(limit)
	}
	packed, refused := packing(r)
	if refused != nil {
		return refused
	}
	c.Body, _ = c.Way.bodies.Get().(*pool.Body)
	c.Body.Reset()
	c.pooled = true
	if !c.Reserve(smallBody) {
		return Busy()
	}
	raw := &slowly{c: c, from: r.Body, w: w, limit: limit, granted: BodyRate}
	src := io.Reader(raw)
	if packed {
		z, _ := c.Way.unzips.Get().(*gzip.Reader)
		defer c.Way.unzips.Put(z)
		if err := z.Reset(raw); err != nil {
			return c.bodyFailed(err)
		}
		src = z
	}
	for {
		if c.Body.Len() == c.Body.Cap() {
			if refused := c.grow(r, packed, limit); refused != nil {
				return refused
			}
		}
		n, err := src.Read(c.Body.Spare())
		c.Body.Advance(n)
		switch {
		case int64(c.Body.Len()) > limit:
			return TooLarge(limit)
		case errors.Is(err, io.EOF):
			c.Size = int64(c.Body.Len())
			raw.done()
			return nil
		case err != nil:
			return c.bodyFailed(err)
		}
	}
}

// grow doubles the body's buffer. What it holds twice while it is copied is not counted: that is over at once.
func (c *Call) grow(r *http.Request, packed bool, limit int64) *Refusal {
	want := min(2*int64(c.Body.Cap()), limit+1) // one more, to see that there is more
	if !packed && r.ContentLength >= 0 {
		want = min(want, r.ContentLength+1)
	}
	if !c.Reserve(want - c.reserved) {
		return Busy()
	}
	old := c.Body
	grown := pool.NewBody(int(want))
	grown.Append(old.Bytes())
	if old.Cap() <= smallBody {
		c.Way.bodies.Put(old)
	}
	c.Body, c.pooled = grown, false
	return nil
}

// Reserve counts bytes of memory for the call, if there are any left.
func (c *Call) Reserve(n int64) bool {
	if n <= 0 {
		return true
	}
	if !c.Way.Hold(n) {
		return false
	}
	c.reserved += n
	return true
}

// Busy says that there is no memory left for bodies.
func Busy() *Refusal {
	return Again(Refuse(http.StatusServiceUnavailable, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED,
		"as many bodies are in memory as may: come back later"), time.Second)
}

// packing tells whether the body is gzip; anything else but plain is refused.
func packing(r *http.Request) (bool, *Refusal) {
	values := r.Header["Content-Encoding"]
	if len(values) == 0 {
		return false, nil
	}
	if len(values) == 1 {
		switch strings.ToLower(strings.TrimSpace(values[0])) {
		case "", "identity":
			return false, nil
		case "gzip", "x-gzip":
			return true, nil
		}
	}
	refused := Refuse(http.StatusUnsupportedMediaType, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID,
		"the body's Content-Encoding is not known: send it plain, or gzip")
	refused.Header, refused.Value = "Accept-Encoding", "gzip"
	return false, refused
}

func (c *Call) bodyFailed(err error) *Refusal {
	var limit *errTooLarge
	var ne net.Error
	switch {
	case errors.As(err, &limit):
		return TooLarge(limit.limit)
	case errors.As(err, &ne) && ne.Timeout():
		return Refuse(http.StatusRequestTimeout, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the body came too slowly: %d bytes of it", c.Received)
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return BadRequest("the body is not the gzip that its Content-Encoding says")
	}
	return BadRequest("the body ended before it was complete, or is malformed")
}

// errTooLarge is a packed body that is too large by itself.
type errTooLarge struct{ limit int64 }

// Error implements error.
func (*errTooLarge) Error() string { return "the body is too large" }

// slowly reads a body, and gives it the more time the more of it has come.
type slowly struct {
	c       *Call
	from    io.Reader
	w       http.ResponseWriter
	limit   int64
	granted int64 // bytes that the deadline allows for
}

// Read implements io.Reader.
func (s *slowly) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.c.Received += int64(n)
	if s.c.Received > s.limit {
		return n, &errTooLarge{s.limit}
	}
	if err == nil && s.c.Received > s.granted {
		s.granted = s.c.Received + BodyRate
		s.c.Way.Allow(s.w, s.c.Way.BodyTime(s.c.Begin, s.granted))
	}
	return n, err
}

// done lifts the deadline: net/http watches the connection while the answer is made, and would take it for the caller's end.
func (s *slowly) done() {
	s.c.Whole = true
	s.c.Way.Allow(s.w, time.Time{})
}

// Allow sets until when the client has to have sent what is awaited.
func (s *Way) Allow(w http.ResponseWriter, until time.Time) {
	if err := http.NewResponseController(w).SetReadDeadline(until); err != nil {
		s.cfg.Logger.Debug("no deadline for a body", "error", err.Error())
	}
}
