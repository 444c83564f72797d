package intake

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

const (
	// Grace is how long a body may take whatever its pace.
	Grace = 30 * time.Second
	// LeastPace is how many bytes a second have to come in the mean, after the grace.
	LeastPace = 16 << 10
	// MostHeld is how many bytes of bodies are held in memory at once.
	MostHeld = 512 << 20
)

var (
	// ErrSlow is what a body reads as that comes too slowly.
	ErrSlow = errors.New("the body comes too slowly")
	// ErrFull says that as many bytes are held as may be.
	ErrFull = errors.New("too many bodies at once")
)

// Paced gives every request a body that has to keep pace. grace 0 is Grace.
func Paced(next http.Handler, grace time.Duration) http.Handler {
	if grace == 0 {
		grace = Grace
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			b := &paced{ReadCloser: r.Body, to: http.NewResponseController(w), left: grace}
			b.deadline(grace) // for what the server itself drops of a body that nobody reads
			r.Body = b
		}
		next.ServeHTTP(w, r)
	})
}

// paced is a body whose sender has some time left, which every byte adds to. Only the time that it is waited for counts.
type paced struct {
	io.ReadCloser
	to   *http.ResponseController
	left time.Duration
}

// deadline bounds what is read next. A socket's deadline is on the system's clock.
func (p *paced) deadline(in time.Duration) { _ = p.to.SetReadDeadline(time.Now().Add(in)) }

// Read implements io.Reader.
func (p *paced) Read(b []byte) (int, error) {
	begun := time.Now()
	p.deadline(p.left)
	n, err := p.ReadCloser.Read(b)
	p.left += time.Duration(n)*time.Second/LeastPace - time.Since(begun)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, ErrSlow
	}
	return n, err // at its end net/http takes the deadline away
}

// Held counts the bytes of bodies that are held at once. The zero value is ready.
type Held struct{ n atomic.Int64 }

// Reserve takes room for the body of a request, of at most so many bytes, until the returned function is called. It bounds the body
// too: more than that reads as *http.MaxBytesError.
func (h *Held) Reserve(w http.ResponseWriter, r *http.Request, most int64) (release func(), err error) {
	size := r.ContentLength
	switch {
	case size > most:
		return nil, &http.MaxBytesError{Limit: most}
	case size == 0:
		return func() {}, nil
	case size < 0:
		size = most
	}
	if h.n.Add(size) > MostHeld {
		h.n.Add(-size)
		return nil, ErrFull
	}
	r.Body = http.MaxBytesReader(w, r.Body, most)
	return func() { h.n.Add(-size) }, nil
}
