package serving

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"
	"time"
)

// smallBody is the size of a body's first buffer.
const smallBody = 16 << 10

func packed(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestBodies(t *testing.T) {
	l, a := serving(t, echo)
	const limit = 100_000
	e := simple("ep_1", "run_1")
	e.Deployments["blue"].MaxBodyBytes = limit
	l.Set(e)
	text := func(n int) []byte { return bytes.Repeat([]byte("0123456789"), n/10+1)[:n] }
	bomb := packed(t, make([]byte, 64<<20))
	whole := packed(t, text(50_000))
	for _, c := range []struct {
		name     string
		body     []byte
		encoding string
		chunked  bool
		status   int
		want     []byte
	}{
		{"empty", nil, "", false, 200, nil},
		{"one buffer", text(smallBody), "", false, 200, text(smallBody)},
		{"one more than a buffer", text(smallBody + 1), "", false, 200, text(smallBody + 1)},
		{"at the limit", text(limit), "", false, 200, text(limit)},
		{"past the limit", text(limit + 1), "", false, 413, nil},
		{"chunked, empty", nil, "", true, 200, nil},
		{"chunked, one buffer", text(smallBody), "", true, 200, text(smallBody)},
		{"chunked, at the limit", text(limit), "", true, 200, text(limit)},
		{"chunked, past the limit", text(limit + 1), "", true, 413, nil},
		{"gzip", whole, "gzip", false, 200, text(50_000)},
		{"gzip by its old name, chunked", whole, "X-GZIP", true, 200, text(50_000)},
		{"gzip in two members", append(packed(t, text(30)), packed(t, text(20))...), "gzip", false, 200, append(text(30), text(20)...)},
		{"gzip at the limit", packed(t, text(limit)), "gzip", false, 200, text(limit)},
		{"gzip past the limit", packed(t, text(limit+1)), "gzip", false, 413, nil},
		{"a bomb", bomb, "gzip", false, 413, nil},
		{"half of a gzip", whole[:len(whole)/2], "gzip", false, 400, nil},
		{"gzip with a wrong checksum", append(append([]byte(nil), whole[:len(whole)-8]...), make([]byte, 8)...), "gzip", false, 400, nil},
		{"no gzip", text(50), "gzip", false, 400, nil},
		{"nothing as gzip", nil, "gzip", true, 400, nil},
		{"identity", text(50), "identity", false, 200, text(50)},
		{"br", text(50), "br", false, 415, nil},
		{"gzip of gzip", text(50), "gzip, gzip", false, 415, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := io.Reader(bytes.NewReader(c.body))
			if c.chunked {
				body = struct{ io.Reader }{body}
			}
			headers := []string{bearer, "Bearer primary"}
			if c.encoding != "" {
				headers = append(headers, "Content-Encoding", c.encoding)
			}
			before := a.served.Load()
			got, err := l.try(l.client, "POST", "/endpoints/ep_1/score", body, headers...)
			if err != nil {
				t.Fatal(err)
			}
			if got.status != c.status || c.status == 200 && got.body != string(c.want) {
				t.Fatalf("%d with %d bytes, want %d with %d", got.status, len(got.body), c.status, len(c.want))
			}
			if served := a.served.Load() - before; served > 0 != (c.status == 200) {
				t.Errorf("the worker saw %d requests", served)
			}
			if c.status == 415 && got.header.Get("Accept-Encoding") != "gzip" {
				t.Errorf("%v", got.header)
			}
			if r := l.log.last(t); r.GetStatusCode() != int32(c.status) {
				t.Errorf("recorded %v", r)
			}
		})
	}
	eventually(t, func() bool { return l.InFlight() == 0 }) // what was answered is let go a moment later
}

// TestMemoryOfAll has bodies that wait for a worker take up what there is.
func TestMemoryOfAll(t *testing.T) {
	hold := make(chan struct{})
	l, _ := serving(t, waiting(hold), func(c *Config) { c.MaxInFlightBytes = 3 * smallBody })
	results := make(chan answer, 3)
	for range 3 {
		go func() {
			a, _ := l.try(l.client, "POST", "/endpoints/ep_1/score", strings.NewReader("{}"), bearer, "Bearer primary")
			results <- a
		}()
	}
	eventually(t, func() bool { return l.InFlight() == 3*smallBody })
	got := l.call(l.client, "POST", "/endpoints/ep_1/score", "{}", bearer, "Bearer primary")
	if got.status != 503 || got.reason(t) != "LIMIT_EXCEEDED" || got.header.Get("Retry-After") == "" {
		t.Errorf("%v", got)
	}
	close(hold)
	for range 3 {
		if a := <-results; a.status != 200 {
			t.Errorf("%v", a)
		}
	}
	if got := l.call(l.client, "POST", "/endpoints/ep_1/score", "{}", bearer, "Bearer primary"); got.status != 200 {
		t.Errorf("afterwards: %v", got)
	}
}

func TestSlowBody(t *testing.T) {
	l, a := serving(t, echo, func(c *Config) { c.BodyGrace = -time.Second + 50*time.Millisecond })
	for name, half := range map[string]string{
		"right key": "POST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer primary\r\nContent-Length: 10\r\n\r\n12345",
		"wrong key": "POST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\nContent-Length: 10\r\n\r\n12345",
		"chunked":   "POST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer primary\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			got := l.raw(half, false)
			want := "HTTP/1.1 408 "
			if name == "wrong key" {
				want = "HTTP/1.1 401 "
			}
			if !strings.HasPrefix(got, want) { // and the connection has ended, or raw would wait on
				t.Errorf("got %q", got)
			}
		})
	}
	if a.served.Load() > 0 {
		t.Error("the worker saw half of a request")
	}
}
