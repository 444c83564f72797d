package serving

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
	// bodyRate is how many bytes of a body have to come each second, beyond its grace.
	bodyRate = 256 << 10
	// copySize is that of the buffers through which long answers pass.
	copySize = 32 << 10
)

// readBody reads the whole body of a request into the call: at most limit bytes, unpacked, within its time and the memory of all.
func (c *call) readBody(w http.ResponseWriter, r *http.Request, limit int64) *refusal {
	if r.ContentLength > limit {
		return tooLarge(limit)
	}
	packed, refused := packing(r)
	if refused != nil {
		return refused
	}
	c.body, _ = c.s.bodies.Get().(*pool.Body)
	c.body.Reset()
	c.pooled = true
	if !c.reserve(smallBody) {
		return busy()
	}
	raw := &slowly{c: c, from: r.Body, w: w, limit: limit, granted: bodyRate}
	src := io.Reader(raw)
	if packed {
		z, _ := c.s.unzips.Get().(*gzip.Reader)
		defer c.s.unzips.Put(z)
		if err := z.Reset(raw); err != nil {
			return c.bodyFailed(err)
		}
		src = z
	}
	for {
		if c.body.Len() == c.body.Cap() {
			if refused := c.grow(r, packed, limit); refused != nil {
				return refused
			}
		}
		n, err := src.Read(c.body.Spare())
		c.body.Advance(n)
		switch {
		case int64(c.body.Len()) > limit:
			return tooLarge(limit)
		case errors.Is(err, io.EOF):
			c.size = int64(c.body.Len())
			raw.done()
			return nil
		case err != nil:
			return c.bodyFailed(err)
		}
	}
}

// grow doubles the body's buffer. What it holds twice while it is copied is not counted: that is over at once.
func (c *call) grow(r *http.Request, packed bool, limit int64) *refusal {
	want := min(2*int64(c.body.Cap()), limit+1) // one more, to see that there is more
	if !packed && r.ContentLength >= 0 {
		want = min(want, r.ContentLength+1)
	}
	if !c.reserve(want - c.reserved) {
		return busy()
	}
	old := c.body
	grown := pool.NewBody(int(want))
	grown.Append(old.Bytes())
	if old.Cap() <= smallBody {
		c.s.bodies.Put(old)
	}
	c.body, c.pooled = grown, false
	return nil
}

// reserve counts bytes of memory for the call, if there are any left.
func (c *call) reserve(n int64) bool {
	if n <= 0 {
		return true
	}
	if c.s.inFlight.Add(n) > c.s.cfg.MaxInFlightBytes {
		c.s.inFlight.Add(-n)
		return false
	}
	c.reserved += n
	return true
}

func busy() *refusal {
	return again(refuse(http.StatusServiceUnavailable, codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED,
		"as many bodies are in memory as may: come back later"), time.Second)
}

// packing tells whether the body is gzip; anything else but plain is refused.
func packing(r *http.Request) (bool, *refusal) {
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
	refused := refuse(http.StatusUnsupportedMediaType, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID,
		"the body's Content-Encoding is not known: send it plain, or gzip")
	refused.header, refused.value = "Accept-Encoding", "gzip"
	return false, refused
}

func (c *call) bodyFailed(err error) *refusal {
	var limit *errTooLarge
	var ne net.Error
	switch {
	case errors.As(err, &limit):
		return tooLarge(limit.limit)
	case errors.As(err, &ne) && ne.Timeout():
		return refuse(http.StatusRequestTimeout, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the body came too slowly: %d bytes of it", c.received)
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return badRequest("the body is not the gzip that its Content-Encoding says")
	}
	return badRequest("the body ended before it was complete, or is malformed")
}

// errTooLarge is a packed body that is too large by itself.
type errTooLarge struct{ limit int64 }

// Error implements error.
func (*errTooLarge) Error() string { return "the body is too large" }

// slowly reads a body, and gives it the more time the more of it has come.
type slowly struct {
	c       *call
	from    io.Reader
	w       http.ResponseWriter
	limit   int64
	granted int64 // bytes that the deadline allows for
}

// Read implements io.Reader.
func (s *slowly) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.c.received += int64(n)
	if s.c.received > s.limit {
		return n, &errTooLarge{s.limit}
	}
	if err == nil && s.c.received > s.granted {
		s.granted = s.c.received + bodyRate
		s.c.s.allow(s.w, s.c.begin.Add(s.c.s.cfg.BodyGrace+time.Duration(s.granted)*time.Second/bodyRate))
	}
	return n, err
}

// done lifts the deadline: net/http watches the connection while the answer is made, and would take it for the caller's end.
func (s *slowly) done() {
	s.c.whole = true
	s.c.s.allow(s.w, time.Time{})
}

// allow sets until when the client has to have sent what is awaited.
func (s *Server) allow(w http.ResponseWriter, until time.Time) {
	if err := http.NewResponseController(w).SetReadDeadline(until); err != nil {
		s.cfg.Logger.Debug("no deadline for a body", "error", err.Error())
	}
}
