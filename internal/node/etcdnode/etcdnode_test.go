package etcdnode

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// lines collects what is logged.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, cfg Config) *Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	begin := time.Now()
	n, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s at %v", time.Since(begin), n.Endpoints())
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func client(t *testing.T, n *Node, conf *tls.Config) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: n.Endpoints(), TLS: conf, Logger: zap.NewNop(), DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func clientTLS(t *testing.T, n *Node) *tls.Config {
	t.Helper()
	conf, err := n.ClientTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestRestartKeepsData starts twice in one folder, at another port the second time, and quietly.
func TestRestartKeepsData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	log := &lines{}
	cfg := Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(log, nil))}
	n := start(t, cfg)
	first := n.Endpoints()[0]
	if _, err := client(t, n, clientTLS(t, n)).Put(within(t, 10*time.Second), "k", "v"); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(within(t, 5*time.Second), cfg); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("a second member in the folder: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	held, err := net.Listen("tcp", strings.TrimPrefix(first, "https://")) // so that the port must be another
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	busy := cfg
	busy.ClientAddr = held.Addr().String()
	if _, err := Start(within(t, 10*time.Second), busy); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), busy.ClientAddr) {
		t.Errorf("at a port that is taken: %v", err)
	}
	n = start(t, cfg)
	if n.Endpoints()[0] == first {
		t.Fatal("the same port")
	}
	got, err := client(t, n, clientTLS(t, n)).Get(within(t, 10*time.Second), "k")
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "v" {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	if log.String() != "" {
		t.Errorf("logged in a life without trouble: %s", log)
	}
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 && strings.Contains(path, "pki") {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestClientPortRefuses holds D10 on the port: no plain text, no TLS 1.2, no client without a certificate of this root.
func TestClientPortRefuses(t *testing.T) {
	n := start(t, Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	if _, err := client(t, n, clientTLS(t, n)).Get(within(t, 10*time.Second), "k"); err != nil {
		t.Fatal(err)
	}
	files, err := n.PKI().WriteLeaf(filepath.Join(t.TempDir(), "compute"), "client", svid.Leaf{CommonName: "compute", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	fromFiles, err := files.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, n, fromFiles).Get(within(t, 10*time.Second), "k"); err != nil {
		t.Errorf("with certificates from files: %v", err)
	}
	if _, err := (Files{CA: files.CA, Cert: files.CA, Key: files.Key}).ClientTLS(); err == nil {
		t.Error("a certificate of another key is taken")
	}
	addr := strings.TrimPrefix(n.Endpoints()[0], "https://")
	other, err := OpenPKI(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.ClientTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	good := clientTLS(t, n)
	for name, change := range map[string]func(*tls.Config){
		"no certificate":      func(c *tls.Config) { c.GetClientCertificate = nil },
		"foreign certificate": func(c *tls.Config) { c.GetClientCertificate = foreign.GetClientCertificate },
		"TLS 1.2":             func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"foreign root":        func(c *tls.Config) { c.RootCAs = foreign.RootCAs },
		"server as client": func(c *tls.Config) {
			f, err := n.pki.WriteLeaf(t.TempDir(), "s", svid.Leaf{DNSNames: []string{"localhost"}, Server: true})
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				t.Fatal(err)
			}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		},
	} {
		conf := good.Clone()
		conf.NextProtos = []string{"h2"}
		change(conf)
		conn, err := tls.Dial("tcp", addr, conf)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, err = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
			}
			_ = conn.Close()
		}
		if err == nil || os.IsTimeout(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_ = plain.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := plain.Write([]byte("GET /version HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	if got, err := plain.Read(buf); os.IsTimeout(err) || strings.Contains(string(buf[:got]), "etcdserver") {
		t.Errorf("plain text: %q, %v", buf[:got], err)
	}
	if len(n.etcd.Peers) != 0 {
		t.Errorf("%d peer ports are open", len(n.etcd.Peers))
	}
}

func TestPKI(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	p, err := OpenPKI(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenPKI(dir, clock)
	if err != nil || string(again.RootPEM()) != string(p.RootPEM()) {
		t.Fatalf("another root the second time: %v", err)
	}
	conf, err := p.ClientTLS("compute")
	if err != nil {
		t.Fatal(err)
	}
	first, err := conf.GetClientCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(leafLife/2 - time.Minute)
	if same, err := conf.GetClientCertificate(nil); err != nil || same != first {
		t.Errorf("renewed before half of its life: %v", err)
	}
	now = now.Add(2 * time.Minute)
	if next, err := conf.GetClientCertificate(nil); err != nil || next == first {
		t.Errorf("not renewed after half of its life: %v", err)
	}
	if _, err := p.ClientTLS(""); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("a client without a name: %v", err)
	}
	member := memberLeaf("m", "etcd-1", "10.0.0.7", "0.0.0.0", "localhost")
	if len(member.DNSNames) != 2 || len(member.IPs) != 3 {
		t.Errorf("a member's names: %v %v", member.DNSNames, member.IPs)
	}

	key, err := os.ReadFile(filepath.Join(dir, rootKey))
	if err != nil {
		t.Fatal(err)
	}
	open := func() error { _, err := OpenPKI(dir, clock); return err }
	if err := os.Chmod(filepath.Join(dir, rootKey), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := open(); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("a key that the group can read: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, rootKey)); err != nil {
		t.Fatal(err)
	}
	if err := open(); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("without the key: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, rootKey), key[:len(key)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); !fault.Is(err, codes.DataLoss) {
		t.Errorf("with half a key: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, rootCert)); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil { // a first start that was cut off after the key
		t.Errorf("with a key alone: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	for name, cfg := range map[string]Config{"no folder": {}, "no port": {Dir: t.TempDir(), ClientAddr: "127.0.0.1"}} {
		if _, err := Start(within(t, time.Second), cfg); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	if _, err := Start(ended, Config{Dir: dir, UnsafeNoFsync: true}); !fault.Is(err, codes.Unavailable) {
		t.Errorf("with a context that has ended: %v", err)
	}
	start(t, Config{Dir: dir, UnsafeNoFsync: true}) // and the folder is free again
}

func TestFailedIsTold(t *testing.T) {
	n := start(t, Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	select {
	case <-n.Failed():
		t.Fatal("a healthy member has failed")
	default:
	}
	n.etcd.Server.HardStop()
	select {
	case <-n.Failed():
	case <-within(t, 10*time.Second).Done():
		t.Error("a member that has stopped is not told of")
	}
}
