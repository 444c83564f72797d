package edge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const long = 10 * time.Second

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// port is a listener that answers what comes with the address that it came from.
type port struct {
	*Listener
	t     *testing.T
	roots *x509.CertPool

	mu      sync.Mutex
	refused map[Refusal]int
}

func certificate(t *testing.T, dns []string, ips ...net.IP) (*tls.Certificate, *x509.Certificate) {
	t.Helper()
	ca, err := svid.NewAuthority(td, time.Now(), time.Hour)
	ok(t, err)
	key, err := svid.NewKey()
	ok(t, err)
	chain, err := ca.SignServer(key.Public(), dns, ips, time.Hour, time.Now())
	ok(t, err)
	return &tls.Certificate{Certificate: chain, PrivateKey: key}, ca.Root()
}

func open(t *testing.T, lim Limits, change ...func(net.Listener) net.Listener) *port {
	t.Helper()
	cert, root := certificate(t, []string{"localhost"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	for _, f := range change {
		l = f(l)
	}
	p := &port{t: t, roots: x509.NewCertPool(), refused: make(map[Refusal]int)}
	p.roots.AddCert(root)
	p.Listener = Listen(l, Config{
		TLS: TLS(Mesh(func() (*tls.Certificate, error) { return cert, nil }), time.Now, "echo"), Limits: lim, Logger: slog.New(slog.DiscardHandler),
		Refused: func(r Refusal) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.refused[r]++
		},
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := p.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, c.RemoteAddr().String()+"\n")
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	t.Cleanup(func() { _ = p.Close(); <-done })
	return p
}

func (p *port) count(r Refusal) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused[r]
}

func (p *port) dial(from string) net.Conn {
	p.t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(p.t.Context(), "tcp", p.Addr().String())
	ok(p.t, err)
	p.t.Cleanup(func() { _ = c.Close() })
	ok(p.t, c.SetDeadline(time.Now().Add(long)))
	return c
}

// ask sends some bytes first, then makes the handshake; it returns the address that the port saw.
func (p *port) ask(from, first string) (string, error) {
	p.t.Helper()
	c := p.dial(from)
	if _, err := io.WriteString(c, first); err != nil {
		return "", err
	}
	t := tls.Client(c, &tls.Config{RootCAs: p.roots, ServerName: "localhost", MinVersion: tls.VersionTLS13, NextProtos: []string{"echo"}})
	var line [64]byte
	n, err := t.Read(line[:])
	return strings.TrimSpace(string(line[:n])), err
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(long); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "2001:db8:1:2::1": "2001:db8:1:2::/64",
		"2001:db8:1:3::1": "2001:db8:1:3::/64", "fe80::1%eth0": "fe80::/64", "pipe": "pipe", "": "",
	} {
		if got := Network(in); got != want {
			t.Errorf("Network(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRatesAreBounded(t *testing.T) {
	r := NewRates(0.001)
	now := time.Now()
	for i := range 20 * shardSize {
		r.Allow("k"+string(rune(i)), now)
	}
	for i := range r.shards {
		if n := len(r.shards[i].m); n > shardSize {
			t.Fatalf("a shard has %d keys", n)
		}
	}
	if r.Allow("x", now) != 0 || r.Allow("x", now) == 0 || r.Allow("y", now) != 0 {
		t.Error("a key's rate is not its own")
	}
}

func v2(command, family byte, body string) string {
	return proxyV2 + string([]byte{command, family, byte(len(body) >> 8), byte(len(body))}) + body
}

// TestProxyHeaders holds what of a load balancer's header is believed.
func TestProxyHeaders(t *testing.T) {
	const four, six = "\xc0\x00\x02\x07\x0a\x00\x00\x01\x30\x39\x01\xbb", "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
	for name, tc := range map[string]struct {
		in, want string
		left     string
	}{
		"v1":                        {"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n\x16\x03", "192.0.2.7:12345", "\x16\x03"},
		"v1, IPv6":                  {"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\nx", "[2001:db8::1]:1", "x"},
		"v1, mapped":                {"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", "192.0.2.7:1", ""},
		"v1, unknown":               {"PROXY UNKNOWN\r\nx", "own", "x"},
		"v1, unknown and more":      {"PROXY UNKNOWN ff ff 1 2\r\nx", "own", "x"},
		"v1, as long as may be":     {"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", ""},
		"v1, longer":                {"PROXY UNKNOWN " + strings.Repeat("x", 100) + "\r\n", "", ""},
		"v1, without an end":        {"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443", "", ""},
		"v1, a line feed alone":     {"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\n", "", ""},
		"v1, the wrong family":      {"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", "", ""},
		"v1, a port too large":      {"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n", "", ""},
		"v1, a port with a zero":    {"PROXY TCP4 192.0.2.7 10.0.0.1 01 443\r\n", "", ""},
		"v1, two spaces":            {"PROXY TCP4  192.0.2.7 10.0.0.1 1 443\r\n", "", ""},
		"v1, a zone":                {"PROXY TCP6 fe80::1%lo fe80::2 1 443\r\n", "", ""},
		"v1, UDP":                   {"PROXY UDP4 192.0.2.7 10.0.0.1 1 443\r\n", "", ""},
		"v1, small letters":         {"proxy TCP4 192.0.2.7 10.0.0.1 1 443\r\n", "", ""},
		"v2":                        {v2(0x21, 0x11, four) + "x", "192.0.2.7:12345", "x"},
		"v2, IPv6":                  {v2(0x21, 0x21, six+six+"\x30\x39\x01\xbb") + "x", "[2001:db8::1]:12345", "x"},
		"v2, more said":             {v2(0x21, 0x11, four+"\x04\x00\x03abc") + "x", "192.0.2.7:12345", "x"},
		"v2, for itself":            {v2(0x20, 0x00, "") + "x", "own", "x"},
		"v2, for itself, addresses": {v2(0x20, 0x11, four) + "x", "own", "x"},
		"v2, no family":             {v2(0x21, 0x00, "") + "x", "own", "x"},
		"v2, too short":             {v2(0x21, 0x11, four[:11]) + "x", "", ""},
		"v2, cut off":               {v2(0x21, 0x11, four)[:20], "", ""},
		"v2, UDP":                   {v2(0x21, 0x12, four), "", ""},
		"v2, a Unix socket":         {v2(0x21, 0x31, strings.Repeat("x", 216)), "", ""},
		"v2, another version":       {v2(0x31, 0x11, four), "", ""},
		"v2, another command":       {v2(0x22, 0x11, four), "", ""},
		"v2, too much":              {v2(0x21, 0x11, four+strings.Repeat("x", 5000)), "", ""},
		"TLS":                       {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaa", "", ""},
		"nothing":                   {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := strings.NewReader(tc.in)
			got, err := readProxy(r)
			if tc.want == "" {
				if !errors.Is(err, errProxy) {
					t.Fatalf("it is taken as %v, %v", got, err)
				}
				return
			}
			ok(t, err)
			if s := got.String(); s != tc.want && (tc.want != "own" || got.IsValid()) {
				t.Errorf("it says %s", s)
			}
			if rest, _ := io.ReadAll(r); string(rest) != tc.left {
				t.Errorf("%q is left", rest)
			}
		})
	}
}

func FuzzProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n"))
	f.Add([]byte(v2(0x21, 0x11, "\xc0\x00\x02\x07\x0a\x00\x00\x01\x30\x39\x01\xbb")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := strings.NewReader(string(b))
		a, err := readProxy(r)
		if err != nil && a.IsValid() {
			t.Error("an address beside an error")
		}
		if used := len(b) - r.Len(); used > 16+mostV2 {
			t.Errorf("%d bytes were read", used)
		}
	})
}

// TestProxyIsBelievedFromWhom holds that only the configured networks may say where a connection comes from, and have to.
func TestProxyIsBelievedFromWhom(t *testing.T) {
	p := open(t, Limits{ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.8/29")}, HandshakeTimeout: 300 * time.Millisecond})
	const header = "PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n"
	if got, err := p.ask("127.0.0.9", header); err != nil || got != "192.0.2.7:12345" {
		t.Errorf("from the proxy: %q, %v", got, err)
	}
	if got, err := p.ask("127.0.0.9", "PROXY UNKNOWN\r\n"); err != nil || !strings.HasPrefix(got, "127.0.0.9:") {
		t.Errorf("the proxy for itself: %q, %v", got, err)
	}
	if got, err := p.ask("127.0.0.2", ""); err != nil || !strings.HasPrefix(got, "127.0.0.2:") {
		t.Errorf("directly: %q, %v", got, err)
	}
	if got, err := p.ask("127.0.0.2", header); err == nil {
		t.Errorf("a stranger's header was taken: %q", got)
	}
	if got, err := p.ask("127.0.0.9", ""); err == nil {
		t.Errorf("a proxy without a header was taken: %q", got)
	}
	c := p.dial("127.0.0.9") // says nothing
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
		t.Errorf("a silent proxy is kept: %v", err)
	}
	eventually(t, "counted", func() bool { return p.count(RefusedProxy) == 2 && p.count(RefusedHandshake) == 1 })
}

// errTimeout is err if it is the client's own deadline.
func errTimeout(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return err
	}
	return io.ErrNoProgress
}

// TestAddressBehindProxyIsLimited holds that limits are those of the client's address, not the proxy's.
func TestAddressBehindProxyIsLimited(t *testing.T) {
	p := open(t, Limits{ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}, PerAddress: 1})
	for i, tc := range []struct {
		client string
		taken  bool
	}{{"2001:db8::1", true}, {"2001:db8::2", false}, {"2001:db8:0:1::1", true}} {
		if _, err := p.ask("127.0.0.9", "PROXY TCP6 "+tc.client+" ::1 1 443\r\n"); (err == nil) != tc.taken {
			t.Errorf("%d: %s: %v", i, tc.client, err)
		}
	}
	if p.count(RefusedConnections) != 1 {
		t.Errorf("refused: %v", p.refused)
	}
}

// TestHandshakesGiveWay holds that those who never end their handshake hold nobody up: of too many the oldest goes, and of one address its own.
func TestHandshakesGiveWay(t *testing.T) {
	p := open(t, Limits{Handshakes: 8, HandshakesPerAddress: 4, HandshakeTimeout: time.Minute})
	other := p.dial("127.0.0.3") // idle, and older than all of the others
	eventually(t, "begun", func() bool { return p.Connections() == 1 })
	for range 50 {
		p.dial("127.0.0.2")
	}
	eventually(t, "the oldest are gone", func() bool { return p.count(RefusedOverrun) == 46 })
	if _, err := p.ask("127.0.0.2", ""); err != nil {
		t.Errorf("who is quick does not get through from the same address: %v", err)
	}
	ok(t, other.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, errTimeout(err)) {
		t.Errorf("another address paid: %v", err)
	}
	for i := range 5 {
		p.dial("127.0.1." + string(rune('1'+i)))
	}
	if _, err := p.ask("127.0.0.4", ""); err != nil {
		t.Errorf("who is quick does not get through: %v", err)
	}
}

// TestHandshakesEnd holds that a handshake has its time, and that connections that are over are not counted.
func TestHandshakesEnd(t *testing.T) {
	p := open(t, Limits{HandshakeTimeout: 100 * time.Millisecond})
	c := p.dial("127.0.0.1")
	_, err := c.Write([]byte{22, 3, 1})
	ok(t, err)
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
		t.Errorf("it is kept: %v", err)
	}
	if _, err := p.ask("127.0.0.1", "GET / HTTP/1.1\r\n\r\n"); err == nil {
		t.Error("plain text was taken")
	}
	eventually(t, "counted", func() bool { return p.count(RefusedHandshake) == 2 && p.Connections() == 0 })
}

// TestConnectionsASecond holds that an address may connect so often, and less often when its connections had to be ended.
func TestConnectionsASecond(t *testing.T) {
	p := open(t, Limits{PerSecond: 15})
	n := 0
	for range 40 {
		if _, err := p.ask("127.0.0.2", ""); err == nil {
			n++
		}
	}
	if n < 30 || n > 39 || p.count(RefusedConnections) != 40-n {
		t.Errorf("%d of 40 were taken", n)
	}
	if _, err := p.ask("127.0.0.3", ""); err != nil {
		t.Errorf("another address pays: %v", err)
	}
	p.Punish("127.0.0.3")
	p.Punish("127.0.0.3")
	if _, err := p.ask("127.0.0.3", ""); err == nil {
		t.Error("who had to be ended may go on")
	}
}

// exhausted fails to accept for lack of file descriptors, some times.
type exhausted struct {
	net.Listener
	times int
}

func (e *exhausted) Accept() (net.Conn, error) {
	if e.times > 0 {
		e.times--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return e.Listener.Accept()
}

// TestOutlivesExhaustion holds that a port stays open when the process has no file descriptor left.
func TestOutlivesExhaustion(t *testing.T) {
	p := open(t, Limits{}, func(l net.Listener) net.Listener { return &exhausted{l, 3} })
	_, err := p.ask("127.0.0.1", "")
	ok(t, err)
}

// TestEither holds who is shown which certificate.
func TestEither(t *testing.T) {
	own, _ := certificate(t, []string{"public.example"}, net.IPv4(192, 0, 2, 1))
	mesh, _ := certificate(t, []string{"localhost", "public.example"}, net.IPv4(127, 0, 0, 1))
	broken := errors.New("broken")
	f := Either(func() (*tls.Certificate, error) { return own, nil }, func() (*tls.Certificate, error) { return mesh, nil })
	at := func(ip string) net.Conn { return local{addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}} }
	for name, tc := range map[string]struct {
		hello tls.ClientHelloInfo
		want  *tls.Certificate
	}{
		"its own name":             {tls.ClientHelloInfo{ServerName: "public.example"}, own},
		"a name of the mesh's":     {tls.ClientHelloInfo{ServerName: "localhost"}, mesh},
		"a name of nobody's":       {tls.ClientHelloInfo{ServerName: "else.example"}, own},
		"an address of its own":    {tls.ClientHelloInfo{Conn: at("192.0.2.1")}, own},
		"an address of the mesh's": {tls.ClientHelloInfo{Conn: at("127.0.0.1")}, mesh},
		"an address of nobody's":   {tls.ClientHelloInfo{Conn: at("172.17.0.2")}, own},
		"nothing":                  {tls.ClientHelloInfo{}, own},
	} {
		if got, err := f(&tc.hello); err != nil || got != tc.want {
			t.Errorf("%s: another one, %v", name, err)
		}
	}
	f = Either(func() (*tls.Certificate, error) { return own, nil }, func() (*tls.Certificate, error) { return nil, broken })
	if got, err := f(&tls.ClientHelloInfo{ServerName: "localhost"}); err != nil || got != own {
		t.Errorf("without the mesh's: %v", err)
	}
}

type local struct {
	net.Conn
	addr net.Addr
}

func (l local) LocalAddr() net.Addr { return l.addr }
