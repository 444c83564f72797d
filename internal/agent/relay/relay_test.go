package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 60 * time.Second

var td = spiffeid.RequireTrustDomainFromString("mesh.test")

// lab is a relay behind a real server, and a listener in inference's place.
type lab struct {
	t     *testing.T
	ca    *svid.Authority
	addr  string // of the run's endpoint
	relay *Relay
	up    chan *tls.Conn // taken by inference
	hello chan string

	mu     sync.Mutex
	told   []string
	answer string // what inference says to a worker
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// own makes an SVID of the lab's authority.
func own(t *testing.T, ca *svid.Authority, path string) *svid.SVID {
	t.Helper()
	key, err := svid.NewKey()
	must(t, err)
	id, err := spiffeid.FromPath(td, path)
	must(t, err)
	chain, err := ca.Sign(key.Public(), id, time.Hour, time.Now())
	must(t, err)
	s, err := svid.Held(key, chain, [][]byte{ca.Root().Raw}, time.Now())
	must(t, err)
	return s
}

type option struct {
	server  string // path of the ID that the listener shows
	ca      *svid.Authority
	protos  []string
	workers int
	answer  string
	expired bool
}

func newLab(t *testing.T, o option) *lab {
	t.Helper()
	ca, err := svid.NewAuthority(td, time.Now(), time.Hour)
	must(t, err)
	l := &lab{t: t, ca: ca, up: make(chan *tls.Conn, 16), hello: make(chan string, 16), answer: "ok\n"}
	if o.server == "" {
		o.server = "/service/inference"
	}
	if o.ca == nil {
		o.ca = ca
	}
	if o.protos == nil {
		o.protos = []string{Protocol}
	}
	if o.workers == 0 {
		o.workers = 2
	}
	if o.answer != "" {
		l.answer = o.answer
	}
	server, run := own(t, o.ca, o.server), own(t, ca, "/workspace/ws_1/run/run_1")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	listener := tls.NewListener(inner, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: o.protos, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.Chain[0].Raw}, PrivateKey: server.Key}},
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := svid.Verify(cs.PeerCertificates, td, x509bundle.FromX509Authorities(td, ca.Bundle()), x509.ExtKeyUsageClientAuth, time.Now())
			if err == nil && id != run.ID {
				err = errors.New("another run")
			}
			return err
		},
	})
	var taking sync.WaitGroup
	taking.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			taking.Go(func() { l.take(c.(*tls.Conn)) })
		}
	})
	now := time.Now
	if o.expired {
		now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	}
	l.relay, err = New(Config{
		Address: inner.Addr().String(), Workers: o.workers, Identity: func() (*svid.SVID, error) { return run, nil }, Now: now,
		Changed: func(problem string) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.told = append(l.told, problem)
		},
	})
	must(t, err)
	s := httptest.NewServer(l.relay)
	l.addr = s.Listener.Addr().String()
	t.Cleanup(func() {
		l.relay.Close()
		s.Close()
		_ = listener.Close()
		taking.Wait()
		close(l.up)
		for c := range l.up {
			_ = c.Close()
		}
	})
	return l
}

// take is what inference does with a connection.
func (l *lab) take(c *tls.Conn) {
	line, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	if err != nil {
		_ = c.Close()
		return
	}
	l.hello <- line
	if _, err := io.WriteString(c, l.answer); err != nil {
		_ = c.Close()
		return
	}
	l.up <- c
}

// worker is a worker's connection.
type client struct {
	net.Conn
	r *bufio.Reader
}

// ask sends the request for an upgrade and gives the answer.
func (l *lab) ask(number string, change ...string) (*client, *http.Response) {
	l.t.Helper()
	c, err := net.Dial("tcp", l.addr)
	must(l.t, err)
	l.t.Cleanup(func() { _ = c.Close() })
	must(l.t, c.SetDeadline(time.Now().Add(patience)))
	text := "GET /redoubt/worker HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: redoubt-worker/1\r\nX-Redoubt-Worker: " + number + "\r\n\r\n"
	if len(change) == 2 {
		text = strings.Replace(text, change[0], change[1], 1)
	}
	_, err = io.WriteString(c, text)
	must(l.t, err)
	w := &client{c, bufio.NewReader(c)}
	res, err := http.ReadResponse(w.r, nil)
	must(l.t, err)
	return w, res
}

// joined is a worker that inference has taken.
func (l *lab) joined(number string) (*client, *tls.Conn) {
	l.t.Helper()
	w, res := l.ask(number)
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != Upgrade {
		l.t.Fatalf("worker %s: %s", number, res.Status)
	}
	up := <-l.up
	must(l.t, up.SetDeadline(time.Now().Add(patience)))
	l.t.Cleanup(func() { _ = up.Close() })
	return w, up
}

func TestBytesGoThrough(t *testing.T) {
	l := newLab(t, option{})
	w, up := l.joined("1")
	if got := <-l.hello; got != "{\"worker\":1}\n" {
		t.Errorf("the worker was announced as %q", got)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	for name, way := range map[string][2]io.ReadWriter{"down": {up, struct {
		io.Reader
		io.Writer
	}{w.r, w}}, "up": {struct {
		io.Reader
		io.Writer
	}{w.r, w}, up}} {
		go func() { _, _ = io.WriteString(way[0], big) }()
		got := make([]byte, len(big))
		if _, err := io.ReadFull(way[1], got); err != nil || string(got) != big {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The end of one side is the end of the other.
	_ = w.Close()
	if _, err := up.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the worker's end: %v", err)
	}
	w, up = l.joined("0")
	_ = up.Close()
	if _, err := w.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after inference's end: %v", err)
	}
	if len(l.told) != 0 {
		t.Errorf("told %q", l.told)
	}
}

// Whoever is not inference gets no byte of a worker, and the worker asks again.
func TestOnlyInference(t *testing.T) {
	stranger, err := svid.NewAuthority(td, time.Now(), time.Hour)
	must(t, err)
	for name, o := range map[string]option{
		"another service":            {server: "/service/compute"},
		"another run":                {server: "/workspace/ws_1/run/run_1"},
		"of another authority":       {ca: stranger},
		"another protocol":           {protos: []string{"h2"}},
		"an answer of another kind":  {answer: "no\n"},
		"an answer without end":      {answer: strings.Repeat("o", 1000)},
		"a certificate that is over": {expired: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, o)
			for range 2 {
				_, res := l.ask("0")
				if res.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s", res.Status)
				}
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.told) != 1 || l.told[0] == "" {
				t.Errorf("told %q", l.told)
			}
		})
	}
}

// User code can ask as a worker does. It gets what the replica's workers may have, and no more.
func TestBounds(t *testing.T) {
	l := newLab(t, option{workers: 2})
	for name, c := range map[string]struct {
		number string
		change [2]string
		status int
	}{
		"no upgrade":         {"0", [2]string{"Upgrade: redoubt-worker/1\r\n", ""}, 426},
		"another upgrade":    {"0", [2]string{"redoubt-worker/1", "websocket"}, 426},
		"another method":     {"0", [2]string{"GET", "POST"}, 426},
		"a body":             {"0", [2]string{"\r\n\r\n", "\r\nContent-Length: 1\r\n\r\nx"}, 400},
		"a number too high":  {"2", [2]string{"", ""}, 400},
		"a number below":     {"-1", [2]string{"", ""}, 400},
		"no number":          {"x", [2]string{"", ""}, 400},
		"a very long number": {strings.Repeat("9", 100), [2]string{"", ""}, 400},
	} {
		if _, res := l.ask(c.number, c.change[0], c.change[1]); res.StatusCode != c.status {
			t.Errorf("%s: %s", name, res.Status)
		}
	}
	first, _ := l.joined("0")
	second, _ := l.joined("0")
	if _, res := l.ask("0"); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a third connection: %s", res.Status)
	}
	// One that waits gets the place of one that has just ended.
	got := make(chan int, 1)
	go func() {
		_, res := l.ask("1")
		got <- res.StatusCode
	}()
	_ = first.Close()
	if status := <-got; status != http.StatusSwitchingProtocols {
		t.Errorf("after an end: %d", status)
	}
	_ = second
}

func TestCloseEndsAll(t *testing.T) {
	l := newLab(t, option{})
	w, up := l.joined("0")
	l.relay.Close()
	if _, err := w.r.ReadByte(); err == nil {
		t.Error("the worker's side is open")
	}
	if _, err := up.Read(make([]byte, 1)); err == nil {
		t.Error("inference's side is open")
	}
	if _, res := l.ask("0"); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("after the end: %s", res.Status)
	}
}

// Where inference is away, the worker reads so; the log hears of the change alone.
func TestInferenceComesBack(t *testing.T) {
	l := newLab(t, option{})
	l.relay.cfg.Address = "127.0.0.1:1"
	for range 3 {
		if _, res := l.ask("0"); res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("away: %s", res.Status)
		}
	}
	other := newLab(t, option{})
	l.relay.cfg.Address = other.relay.cfg.Address
	l.relay.cfg.Identity = other.relay.cfg.Identity
	l.relay.dialer.Config = other.relay.dialer.Config
	if _, res := l.ask("0"); res.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("back: %s", res.Status)
	}
	if got := fmt.Sprintf("%q", l.told); len(l.told) != 2 || l.told[0] == "" || l.told[1] != "" {
		t.Errorf("told %s", got)
	}
}

func TestNewRefuses(t *testing.T) {
	identity := func() (*svid.SVID, error) { return nil, errors.New("none") }
	for name, cfg := range map[string]Config{
		"no address": {Workers: 1, Identity: identity}, "no workers": {Address: "x:1", Identity: identity}, "no identity": {Address: "x:1", Workers: 1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	r, err := New(Config{Address: "127.0.0.1:1", Workers: 1, Identity: identity})
	must(t, err)
	defer r.Close()
	if _, err := r.dial(context.Background(), 0); err == nil {
		t.Error("it dials without an identity")
	}
}
