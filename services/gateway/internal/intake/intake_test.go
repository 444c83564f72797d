package intake

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// at serves a handler whose bodies have this grace.
func at(t *testing.T, grace time.Duration, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(Paced(h, grace))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// A body that stops coming is cut; one that keeps pace is not, however long it takes, and neither is an answer.
func TestPace(t *testing.T) {
	t.Parallel()
	got := make(chan error, 2)
	addr := at(t, 200*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		got <- err
		if err == nil {
			<-time.After(400 * time.Millisecond) // longer than the grace
			got <- r.Context().Err()
		}
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
	if err := <-got; !errors.Is(err, ErrSlow) {
		t.Fatalf("a body that stopped read as %v", err)
	}
	// 4 MiB are worth 256 s.
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(make([]byte, 4<<20))
		<-time.After(600 * time.Millisecond) // longer than the grace
		_, _ = w.Write([]byte("x"))
		_ = w.Close()
	}()
	res, err := http.Post("http://"+addr, "text/plain", r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := <-got; err != nil {
		t.Fatalf("a body that kept pace read as %v", err)
	}
	if err := <-got; err != nil {
		t.Fatalf("while it answered, the request ended: %v", err)
	}
}

// A body that comes a byte at a time has no more time than one that does not come.
func TestDrip(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	addr := at(t, 300*time.Millisecond, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		got <- err
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	for range 400 {
		_, _ = c.Write([]byte("x"))
		select {
		case err := <-got:
			if !errors.Is(err, ErrSlow) {
				t.Fatal(err)
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Error("it goes on")
}

// Once all of a body is there, an answer may take as long as it has to: a deadline that was left would end the request.
func TestAnswersHaveTime(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	addr := at(t, time.Second, func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			got <- err
			return
		}
		<-time.After(1500 * time.Millisecond)
		got <- r.Context().Err()
	})
	res, err := http.Post("http://"+addr, "text/plain", strings.NewReader("abc"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// A handler that takes its time with a body costs the sender nothing.
func TestOnlyWaitingCounts(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	addr := at(t, time.Second, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadFull(r.Body, make([]byte, 1))
		if err == nil {
			<-time.After(1500 * time.Millisecond)
			_, err = io.Copy(io.Discard, r.Body)
		}
		got <- err
	})
	res, err := http.Post("http://"+addr, "text/plain", strings.NewReader("abc"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestHeld(t *testing.T) {
	var h Held
	post := func(size int64) (*http.Request, *httptest.ResponseRecorder) {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("abcdef"))
		r.ContentLength = size
		return r, httptest.NewRecorder()
	}
	take := func(size, most int64) (func(), error) {
		r, w := post(size)
		return h.Reserve(w, r, most)
	}
	var large *http.MaxBytesError
	if _, err := take(11, 10); !errors.As(err, &large) || large.Limit != 10 {
		t.Errorf("a body that says that it is too large: %v", err)
	}
	first, err := take(-1, MostHeld) // a size that is not said counts as the most
	if err != nil {
		t.Fatal(err)
	}
	if _, err := take(1, 10); !errors.Is(err, ErrFull) {
		t.Errorf("beyond what may be held: %v", err)
	}
	if _, err := take(0, 10); err != nil {
		t.Errorf("no body: %v", err)
	}
	first()
	if release, err := take(1, 10); err != nil {
		t.Errorf("after it was given back: %v", err)
	} else {
		release()
	}
	if n := h.n.Load(); n != 0 {
		t.Errorf("%d bytes are held at the end", n)
	}
	r, w := post(-1)
	release, err := h.Reserve(w, r, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := io.ReadAll(r.Body); !errors.As(err, &large) {
		t.Errorf("a body that does not say that it is too large: %v", err)
	}
}
