package serving

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestRawRequests sends what no client of ours would. Each is refused, or read in one way only: the worker sees whole requests.
func TestRawRequests(t *testing.T) {
	l, a := serving(t, echo)
	const head = "POST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer primary\r\n"
	for _, c := range []struct {
		name, send string
		status     string // of the first answer; "" for a connection that is closed without one
		answers    int
		served     int64
	}{
		{"plain", head + "Connection: close\r\nContent-Length: 2\r\n\r\n{}", "200", 1, 1},
		{"truncated", head + "Content-Length: 10\r\n\r\n{}", "400", 1, 0},
		{"truncated in a chunk", head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{}", "400", 1, 0},
		{"no last chunk", head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "400", 1, 0},
		{"a chunk's size is no number", head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "400", 1, 0},
		{"a chunk is longer than it says", head + "Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n", "400", 1, 0},
		{"two lengths", head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", "400", 1, 0},
		{"two lengths in one", head + "Content-Length: 2, 3\r\n\r\n{}x", "400", 1, 0},
		{"a length that is no number", head + "Content-Length: +2\r\n\r\n{}", "400", 1, 0},
		{"a negative length", head + "Content-Length: -2\r\n\r\n{}", "400", 1, 0},
		{"unknown transfer encoding", head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501", 1, 0},
		{"transfer encoding twice", head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", "501", 1, 0},
		{"a folded header", head + "X-A: 1\r\n folded\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "", -1, -1},
		{"a space before the colon", head + "Content-Length : 2\r\n\r\n{}", "400", 1, 0},
		{"a control character", head + "X-A: a\x01b\r\nContent-Length: 2\r\n\r\n{}", "400", 1, 0},
		{"no host", "POST /endpoints/ep_1/score HTTP/1.1\r\nAuthorization: Bearer primary\r\nContent-Length: 2\r\n\r\n{}", "400", 1, 0},
		{"two hosts", head + "Host: y\r\nContent-Length: 2\r\n\r\n{}", "400", 1, 0},
		{"a long header", head + "X-A: " + strings.Repeat("a", 100<<10) + "\r\n\r\n", "431", 1, 0},
		{"a method of letters it must not have", "PO ST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\n\r\n", "400", 1, 0},
		{"CONNECT", "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n", "404", 1, 0},
		{"a proxy's request", "GET http://elsewhere/ HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n", "200", 1, 0}, // "Healthy": the host decides nothing
		{"the star", "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404", 1, 0},
		{"two Authorizations", head + "Authorization: Bearer primary\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "400", 1, 0},
		{"two content types", head + "Content-Type: a/b\r\nContent-Type: c/d\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "400", 1, 0},
		{"a long content type", head + "Content-Type: " + strings.Repeat("a", 300) + "\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", "400", 1, 0},
		{"two at once", head + "Content-Length: 2\r\n\r\n{}" + head + "Connection: close\r\nContent-Length: 2\r\n\r\n{}", "200", 2, 2},
		// RFC 9112 6.3: chunked wins. What looks like a second request is then one, and the front has no other reading of it: TLS ends here.
		{"a length and chunked", head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "", -1, -1},
		{"HTTP/1.0 chunked", "POST /endpoints/ep_1/score HTTP/1.0\r\nAuthorization: Bearer primary\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "411", 1, 0},
		{"HTTP/1.0", "POST /endpoints/ep_1/score HTTP/1.0\r\nAuthorization: Bearer primary\r\nContent-Length: 2\r\n\r\n{}", "200", 1, 1},
		{"HTTP/0.9", "GET /\r\n\r\n", "400", 1, 0},
		{"no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00", "400", 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := a.served.Load()
			got := l.raw(c.send, true)
			status := ""
			if rest, ok := strings.CutPrefix(got, "HTTP/1."); ok && len(rest) > 5 {
				status = rest[2:5]
			}
			if c.answers < 0 { // refused, or answered as one request: not as two, and not with half of a body
				if n := strings.Count(got, "HTTP/1."); n > 1 || status == "200" && !strings.HasSuffix(got, "\r\n\r\n{}") {
					t.Errorf("%d answers: %q", n, got)
				}
				return
			}
			if status != c.status || strings.Count(got, "HTTP/1.") != c.answers {
				t.Errorf("got %q", got)
			}
			if n := a.served.Load() - before; n != c.served {
				t.Errorf("the worker saw %d requests, want %d", n, c.served)
			}
		})
	}
	eventually(t, func() bool { return l.InFlight() == 0 }) // what was answered is let go a moment later
}

// TestExpect has a client that waits for the go-ahead: who is refused never sends his body.
func TestExpect(t *testing.T) {
	l, _ := serving(t, echo)
	for key, want := range map[string]string{"primary": "HTTP/1.1 100 Continue", "wrong": "HTTP/1.1 401 "} {
		c, err := tls.Dial("tcp", l.addr, l.tls("http/1.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(longTime))
		fmt.Fprintf(c, "POST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", key)
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			t.Errorf("%s: %q %v", key, line, err)
		}
	}
}

// TestRapidReset opens and resets streams until the server has enough of it.
func TestRapidReset(t *testing.T) {
	hold := make(chan struct{})
	l, a := serving(t, waiting(hold))
	c, err := tls.Dial("tcp", l.addr, l.tls("h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(longTime))
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				ended <- err
				return
			}
			if g, ok := frame.(*http2.GoAwayFrame); ok {
				ended <- fmt.Errorf("goaway %v", g.ErrCode)
				return
			}
		}
	}()
	var head strings.Builder
	enc := hpack.NewEncoder(&head)
	const most = 20_000
	n := 0
	for ; n < most; n++ {
		head.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/endpoints/ep_1/score"}, {"authorization", "Bearer primary"}} {
			_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
		}
		id := uint32(2*n + 1)
		if f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(head.String()), EndHeaders: true, EndStream: true}) != nil ||
			f.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	select {
	case err := <-ended:
		t.Logf("after %d: %v", n, err)
	case <-time.After(longTime):
		t.Fatal("the server takes any number of streams that are reset")
	}
	if a.served.Load() > 1 {
		t.Errorf("the worker got %d requests", a.served.Load())
	}
	close(hold)
	if got := l.score(); got.status != 200 {
		t.Errorf("others are not served: %v", got)
	}
}

// TestMostStreams holds as many streams as a connection may have.
func TestMostStreams(t *testing.T) {
	l := newLab(t)
	c, err := tls.Dial("tcp", l.addr, l.tls("h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(longTime))
	_, _ = io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	_ = f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := frame.(*http2.SettingsFrame); ok {
			if v, ok := s.Value(http2.SettingMaxConcurrentStreams); !ok || v != maxStreams {
				t.Errorf("%d streams are allowed", v)
			}
			return
		}
	}
}

func TestMostConnections(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Edge.Connections, c.Edge.PerAddress = 3, 2 })
	var held []net.Conn
	dial := func(from string) error {
		d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, Config: l.tls("http/1.1")}
		ctx, cancel := context.WithTimeout(context.Background(), longTime)
		defer cancel()
		c, err := d.DialContext(ctx, "tcp", l.addr)
		if err == nil {
			held = append(held, c)
		}
		return err
	}
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	for i, c := range []struct {
		from string
		ok   bool
	}{{"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", false}, {"127.0.0.2", true}, {"127.0.0.2", false}, {"127.0.0.3", false}} {
		if err := dial(c.from); (err == nil) != c.ok {
			t.Errorf("%d: from %s: %v", i, c.from, err)
		}
	}
	_ = held[0].Close()
	eventually(t, func() bool { return dial("127.0.0.3") == nil })
}

func TestTLS(t *testing.T) {
	l := newLab(t)
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 },
		"CBC": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		},
		"no ALPN in common": func(c *tls.Config) { c.NextProtos = []string{"spdy/3"} },
	} {
		conf := l.tls("http/1.1")
		change(conf)
		if c, err := tls.Dial("tcp", l.addr, conf); err == nil {
			_ = c.Close()
			t.Errorf("%s is taken", name)
		}
	}
	for proto, version := range map[string]uint16{"h2": tls.VersionTLS12, "http/1.1": tls.VersionTLS13, "": tls.VersionTLS13} {
		conf := l.tls()
		if proto != "" {
			conf.NextProtos = []string{proto}
		}
		conf.MaxVersion = version
		c, err := tls.Dial("tcp", l.addr, conf)
		if err != nil {
			t.Errorf("%q: %v", proto, err)
			continue
		}
		if got := c.ConnectionState(); got.NegotiatedProtocol != proto || got.Version != version {
			t.Errorf("%q: %v", proto, got)
		}
		_ = c.Close()
	}
}

// TestClientThatDoesNotRead is cut, and its worker is free again.
func TestClientThatDoesNotRead(t *testing.T) {
	var big atomic.Bool
	big.Store(true)
	l, _ := serving(t, func(w *bufio.Writer, r *http.Request, b []byte) {
		if !big.Load() {
			echo(w, r, b)
			return
		}
		n := 64 << 20
		io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(n)+"\r\n\r\n")
		for piece := make([]byte, 64<<10); n > 0; n -= len(piece) {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}, func(c *Config) { c.Edge.WriteTimeout = 100 * time.Millisecond })
	c, err := tls.Dial("tcp", l.addr, l.tls("http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST /endpoints/ep_1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer primary\r\nContent-Length: 2\r\n\r\n{}")
	eventually(t, func() bool { return l.Ready("run_1") == 0 }) // what it had not sent is of no use
	rec := l.log.last(t)
	if rec.GetReason() != "CALL_CANCELED" {
		t.Errorf("%v", rec)
	}
	big.Store(false)
	l.newAgent("run_1").work(0, echo)
	l.ready("run_1", 1)
	if got := l.score(); got.status != 200 {
		t.Errorf("%v", got)
	}
}
