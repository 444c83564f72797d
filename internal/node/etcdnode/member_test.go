package etcdnode

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// cluster writes the folders of three members on loopback addresses of their own.
func cluster(t *testing.T) (*PKI, []Member) {
	t.Helper()
	pki, err := OpenPKI(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	free := func(host string) string {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		return l.Addr().String()
	}
	members := make([]Member, 3)
	var all []string
	for i := range members {
		host := fmt.Sprintf("127.0.9.%d", i+1)
		m := Member{Name: fmt.Sprintf("m%d", i), Dir: t.TempDir(), TLS: t.TempDir(), ClientListen: free(host), PeerListen: free(host), Token: "test", UnsafeNoFsync: true}
		m.ClientURL, m.PeerURL = "https://"+m.ClientListen, "https://"+m.PeerListen
		if err := pki.WriteMember(m.TLS, m.Name, host); err != nil {
			t.Fatal(err)
		}
		all = append(all, m.Name+"="+m.PeerURL)
		members[i] = m
	}
	for i := range members {
		members[i].Cluster = all
	}
	return pki, members
}

func startAll(t *testing.T, members []Member) []*Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nodes := make([]*Node, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			n, err := StartMember(ctx, m)
			if err != nil {
				t.Errorf("%s: %v", m.Name, err)
				return
			}
			nodes[i] = n
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			_ = n.Close()
		}
	})
	return nodes
}

func clusterClient(t *testing.T, pki *PKI, members []Member) *clientv3.Client {
	t.Helper()
	conf, err := pki.ClientTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, m := range members {
		urls = append(urls, m.ClientURL)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, TLS: conf, Logger: zap.NewNop(), DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// D10: three members go on with two, stop with one, and go on again when the others are back, with what was acknowledged.
func TestCluster(t *testing.T) {
	pki, members := cluster(t)
	nodes := startAll(t, members)
	c := clusterClient(t, pki, members)
	if _, err := c.Put(within(t, 20*time.Second), "k", "1"); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	put := func(value string) {
		t.Helper()
		ctx := within(t, 30*time.Second)
		for {
			once, cancel := context.WithTimeout(ctx, 3*time.Second)
			_, err := c.Put(once, "k", value)
			cancel()
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	put("2")
	if err := nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(within(t, time.Second), "k", "3"); err == nil {
		t.Error("one of three members acknowledges a write")
	}
	startAll(t, members[:2])
	if got, err := c.Get(within(t, 30*time.Second), "k"); err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) == "1" {
		t.Errorf("after all are back: %v, %v", got, err)
	}
	put("4")
	files, err := members[2].Checker().ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	one, err := clientv3.New(clientv3.Config{Endpoints: []string{members[2].ClientURL}, TLS: files, Logger: zap.NewNop(), DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = one.Close() }()
	if _, err := one.Get(within(t, 10*time.Second), "k"); err != nil {
		t.Errorf("a member's own check: %v", err)
	}
}

// D10: a peer port takes peers alone. A client's certificate is of the same root, and is refused like a foreign one.
func TestPeerPortRefuses(t *testing.T) {
	pki, members := cluster(t)
	startAll(t, members)
	other, err := OpenPKI(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	try := func(of *PKI, l svid.Leaf, version uint16) error {
		files, err := of.WriteLeaf(t.TempDir(), "x", l)
		if err != nil {
			t.Fatal(err)
		}
		files.CA = filepath.Join(members[0].TLS, rootCert)
		conf, err := files.ClientTLS()
		if err != nil {
			t.Fatal(err)
		}
		conf.MaxVersion, conf.MinVersion = version, tls.VersionTLS12
		conn, err := tls.Dial("tcp", members[0].PeerListen, conf)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write([]byte("GET /version HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			return err
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		if err == nil && !strings.HasPrefix(string(b[:n]), "HTTP/1.1 ") {
			t.Errorf("answered %q", b[:n])
		}
		return err
	}
	if err := try(pki, svid.Leaf{CommonName: peerName, Client: true}, tls.VersionTLS13); err != nil {
		t.Fatalf("a peer: %v", err)
	}
	for name, err := range map[string]error{
		"a client of etcd":  try(pki, svid.Leaf{CommonName: "compute-a", Client: true}, tls.VersionTLS13),
		"a server":          try(pki, svid.Leaf{CommonName: peerName, Server: true, DNSNames: []string{"localhost"}}, tls.VersionTLS13),
		"a foreign peer":    try(other, svid.Leaf{CommonName: peerName, Client: true}, tls.VersionTLS13),
		"a peer in TLS 1.2": try(pki, svid.Leaf{CommonName: peerName, Client: true}, tls.VersionTLS12),
	} {
		if err == nil || os.IsTimeout(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// D10: what is wrong in a member's configuration is named.
func TestMemberRefused(t *testing.T) {
	good := Member{
		Name: "a", Dir: "/d", TLS: "/t", ClientListen: "0.0.0.0:1", PeerListen: "127.0.0.1:2", ClientURL: "https://a:1", PeerURL: "https://a:2", Cluster: []string{"a=https://a:2"}, Token: "x",
	}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*Member){
		"etcd.name":          func(m *Member) { m.Name = "" },
		"etcd.token":         func(m *Member) { m.Token = "" },
		"etcd.dir":           func(m *Member) { m.Dir = "d" },
		"etcd.tls":           func(m *Member) { m.TLS = "" },
		"etcd.client_listen": func(m *Member) { m.ClientListen = "a:1" },
		"etcd.peer_listen":   func(m *Member) { m.PeerListen = ":2" },
		"etcd.client_url":    func(m *Member) { m.ClientURL = "http://a:1" },
		"etcd.peer_url":      func(m *Member) { m.PeerURL = "https://a" },
		"etcd.cluster":       func(m *Member) { m.Cluster = []string{"b=https://a:2"} },
	} {
		m := good
		change(&m)
		if _, err := StartMember(t.Context(), m); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
