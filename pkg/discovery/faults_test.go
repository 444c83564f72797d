package discovery_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// TestNoBootOrder starts everything before etcd.
func TestNoBootOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := node(t, dir, "127.0.0.1:0")
	at := strings.TrimPrefix(n.Endpoints()[0], "https://")
	conf := clientTLS(t, n)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := discovery.Open(discovery.Config{Endpoints: []string{at}, TLS: conf, LeaseTTL: time.Second, DialTimeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	begin := time.Now()
	if _, err := r.Register(within(t, 300*time.Millisecond), "compute", "a", "127.0.0.1:1"); !fault.Is(err, codes.Unavailable) || !strings.Contains(err.Error(), "nothing answers") {
		t.Errorf("Register without etcd: %v", err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("Register took %s of 0.3 s", took)
	}
	addr, _ := backend(t)
	g, err := r.Announce("compute", "a", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	client := dial(t, r, "compute")
	begin = time.Now()
	if _, err := call(within(t, time.Second), client); err == nil || !strings.Contains(err.Error(), "nothing answers") {
		t.Errorf("a call without etcd: %v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the call took %s of 1 s", took)
	}
	answered := make(chan error, 1)
	go func() { _, err := call(within(t, 20*time.Second), client); answered <- err }()
	node(t, dir, at)
	if err := <-answered; err != nil {
		t.Errorf("a call that waited for etcd: %v", err)
	}
	if err := g.Ready(within(t, 10*time.Second)); err != nil {
		t.Error(err)
	}
}

// TestFaultsSayWhy: what etcd's client shows as a deadline is found out.
func TestFaultsSayWhy(t *testing.T) {
	t.Parallel()
	other, err := etcdnode.OpenPKI(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.ClientTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	listen := func(host string, serve func(net.Conn)) string {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
		return l.Addr().String()
	}
	plain := listen("127.0.0.1", func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); _ = c.Close() })
	silent := listen("127.0.0.1", func(net.Conn) {})
	elsewhere := listen("127.0.0.2", func(c net.Conn) {
		d, err := net.Dial("tcp", strings.TrimPrefix(shared.Endpoints()[0], "https://"))
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(d, c); _ = d.Close() }()
		_, _ = io.Copy(c, d)
		_ = c.Close()
	})
	here := shared.Endpoints()
	for _, c := range []struct {
		name, want string
		change     func(*discovery.Config)
	}{
		{"untrusted certificate", "refuses our client certificate", func(c *discovery.Config) { c.TLS.GetClientCertificate = foreign.GetClientCertificate }},
		{"empty certificate", "refuses our client certificate", func(c *discovery.Config) {
			c.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
		}},
		{"foreign root", "is not of the configured root", func(c *discovery.Config) { c.TLS.RootCAs = foreign.RootCAs }},
		{"other host", "is not valid for it", func(c *discovery.Config) { c.Endpoints = []string{elsewhere} }},
		{"plain text", "does not speak TLS", func(c *discovery.Config) { c.Endpoints = []string{plain} }},
		{"silent", "did not answer in time", func(c *discovery.Config) { c.Endpoints = []string{silent} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := discovery.Config{Endpoints: here, TLS: clientTLS(t, shared)}
			c.change(&cfg)
			r, err := discovery.Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			begin := time.Now()
			err = r.Check(within(t, 300*time.Millisecond))
			if !fault.Is(err, codes.Unavailable) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if took := time.Since(begin); took > 2500*time.Millisecond {
				t.Errorf("took %s", took)
			}
		})
	}
	r := open(t, shared)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Check(ended); !fault.Is(err, codes.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestZapLogger(t *testing.T) {
	var b bytes.Buffer
	l := discovery.ZapLogger(slog.New(slog.NewTextHandler(&b, nil)))
	l.Info("quiet")
	l.With(zap.String("member", "m1")).Warn("slow", zap.Int("ms", 7), zap.Error(errors.New("disk")))
	l.Error("broken")
	got := b.String()
	if strings.Contains(got, "quiet") || !strings.Contains(got, `level=WARN msg="etcd: slow" member=m1 ms=7 error=disk`) || !strings.Contains(got, `level=ERROR msg="etcd: broken"`) {
		t.Errorf("logged: %s", got)
	}
	discovery.ZapLogger(nil).Error("nowhere")
}
