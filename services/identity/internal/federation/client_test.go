package federation

import (
	"context"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// names is a DNS server that says of every name what the test has it say: one list of addresses a question of either kind, the last for ever.
type names struct {
	t    *testing.T
	conn net.PacketConn

	mu      sync.Mutex
	answers []string
	asked   int
}

func newNames(t *testing.T) *names {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &names{t: t, conn: conn}
	t.Cleanup(func() { _ = conn.Close() })
	go n.serve()
	return n
}

func (n *names) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", n.conn.LocalAddr().String())
	}}
}

func (n *names) say(answers ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers, n.asked = answers, 0
}

func (n *names) serve() {
	b := make([]byte, 2048)
	for {
		size, from, err := n.conn.ReadFrom(b)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(b[:size]) != nil || len(q.Questions) != 1 {
			continue
		}
		out := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true}, Questions: q.Questions}
		n.mu.Lock()
		// The resolver asks for both kinds at once: a round is two questions.
		round := min(n.asked/2, len(n.answers)-1)
		n.asked++
		for a := range strings.FieldsSeq(n.answers[round]) {
			ip := netip.MustParseAddr(a)
			h := dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: q.Questions[0].Type, Class: dnsmessage.ClassINET}
			switch {
			case ip.Is4() && h.Type == dnsmessage.TypeA:
				out.Answers = append(out.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: ip.As4()}})
			case ip.Is6() && h.Type == dnsmessage.TypeAAAA:
				out.Answers = append(out.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}})
			}
		}
		n.mu.Unlock()
		if packed, err := out.Pack(); err == nil {
			_, _ = n.conn.WriteTo(packed, from)
		}
	}
}

// A name is looked at by the address that is dialled, whatever it resolved to when somebody looked before: DNS that answers otherwise from one
// question to the next (rebinding) leads nowhere inside.
func TestNamesOfOurOwnNetwork(t *testing.T) { // A6
	var came atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "inside") }))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			came.Add(1)
		}
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	dns := newNames(t)
	// The certificate of httptest is for example.com too.
	for _, c := range []struct {
		name, host string
		private    []string
		before     bool // somebody has resolved it, and saw a public address
		answers    []string
		reached    bool
	}{
		{"a name of a private address", "example.com", nil, false, []string{"127.0.0.1"}, false},
		{"one that was public when it was looked at", "example.com", nil, true, []string{"93.184.216.34", "127.0.0.1"}, false},
		{"an address of IPv4 in IPv6", "example.com", nil, false, []string{"::ffff:127.0.0.1"}, false},
		{"loopback of IPv6", "example.com", nil, false, []string{"::1"}, false},
		{"the service of a cloud's credentials", "example.com", nil, false, []string{"169.254.169.254"}, false},
		{"several, all private", "example.com", nil, false, []string{"127.0.0.1 10.0.0.1 ::1 fd00::1"}, false},
		{"another name is allowed", "example.com", []string{"www.example.com", "example.com."}, false, []string{"127.0.0.1"}, false},
		{"a dot behind the allowed name", "example.com.", []string{"example.com"}, false, []string{"127.0.0.1"}, false},
		{"allowed by name", "example.com", []string{"example.com"}, false, []string{"127.0.0.1"}, true},
		{"allowed by name, in capitals", "EXAMPLE.com", []string{"example.com"}, false, []string{"127.0.0.1"}, true},
	} {
		dns.say(c.answers...)
		came.Store(0)
		if c.before {
			if got, err := dns.resolver().LookupNetIP(t.Context(), "ip", c.host); err != nil || len(got) == 0 || !public(got[0]) {
				t.Fatalf("%s: before, it is %v %v", c.name, got, err)
			}
		}
		res, err := newClient(c.private, pool, time.Now, dns.resolver()).Get("https://" + c.host + ":" + port + "/")
		if err == nil {
			_ = res.Body.Close()
		}
		if (err == nil) != c.reached || (came.Load() > 0) != c.reached {
			t.Errorf("%s: %v, and %d connections", c.name, err, came.Load())
		}
		if err != nil && !c.reached && !strings.Contains(err.Error(), "is not one of the public internet") {
			t.Errorf("%s: refused for another reason: %v", c.name, err)
		}
	}
}
