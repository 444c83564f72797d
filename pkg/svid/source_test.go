package svid

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestMutualTLS(t *testing.T) {
	a := newAuthority(t, td)
	server, _ := newSource(t, a, service(t, "keyvault"), time.Minute)
	addr, told := serve(t, server.ServerCredentials())
	client, _ := newSource(t, a, service(t, "compute"), time.Minute)
	if err := check(t, addr, client.ClientCredentials(service(t, "keyvault"))); err != nil {
		t.Fatal(err)
	}
	if told.peer != "spiffe://mesh.test/service/compute" {
		t.Errorf("the server saw %q", told.peer)
	}
	if told.keyOK {
		t.Error("a mesh connection passes as an enrolment")
	}
	if client.ID() != service(t, "compute") || time.Until(client.NotAfter()) > time.Minute {
		t.Errorf("%v until %v", client.ID(), client.NotAfter())
	}
}

// TestServerRefuses is D10 from the server's side: every call here must fail, and be counted.
func TestServerRefuses(t *testing.T) {
	a := newAuthority(t, td)
	failed := make(chan error, 64)
	server, _ := newSource(t, a, service(t, "keyvault"), time.Minute, func(c *SourceConfig) { c.OnHandshakeError = func(err error) { failed <- err } })
	addr, told := serve(t, server.ServerCredentials())
	leaf := func(a *Authority, id spiffeid.ID, ttl time.Duration, at time.Time) tls.Certificate {
		key := newKey(t)
		chain, err := a.Sign(key.Public(), id, ttl, at)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: chain, PrivateKey: key}
	}
	id := service(t, "compute")
	gateway := func() tls.Certificate {
		key := newKey(t)
		chain, err := a.SignServer(key.Public(), []string{"ml.example"}, nil, time.Minute, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: chain, PrivateKey: key}
	}()
	good := leaf(a, id, time.Minute, time.Now())
	always := func(c tls.Certificate) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
	}
	for _, c := range []struct {
		name, why string
		conf      *tls.Config
	}{
		{"no certificate", "didn't provide a certificate", &tls.Config{}},
		{"TLS 1.2", "unsupported versions", &tls.Config{GetClientCertificate: always(good), MaxVersion: tls.VersionTLS12}},
		{"expired", "has expired", &tls.Config{GetClientCertificate: always(leaf(a, id, time.Minute, time.Now().Add(-2*time.Minute)))}},
		{"foreign trust domain", "could not get X509 bundle", &tls.Config{GetClientCertificate: always(leaf(newAuthority(t, foreign), spiffeid.RequireFromPath(foreign, "/service/compute"), time.Minute, time.Now()))}},
		{"other root", "unknown authority", &tls.Config{GetClientCertificate: always(leaf(newAuthority(t, td), id, time.Minute, time.Now()))}},
		{"public listener's certificate", "no URI SAN", &tls.Config{GetClientCertificate: always(gateway)}},
		{"the agent of a run", "only services and operators", &tls.Config{GetClientCertificate: always(leaf(a, spiffeid.RequireFromPath(td, "/workspace/ws_1/run/run_1"), time.Minute, time.Now()))}},
		{"a replica's endpoint", "only services and operators", &tls.Config{GetClientCertificate: always(leaf(a, spiffeid.RequireFromPath(td, "/workspace/ws_1/endpoint/e"), time.Minute, time.Now()))}},
		{"what has no kind", "only services and operators", &tls.Config{GetClientCertificate: always(leaf(a, spiffeid.RequireFromPath(td, "/root"), time.Minute, time.Now()))}},
		{"self-signed", "no URI SAN", &tls.Config{GetClientCertificate: always(selfSigned(t, newKey(t)))}},
	} {
		c.conf.InsecureSkipVerify = true
		if err := check(t, addr, credentials.NewTLS(c.conf)); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", c.name, err)
		}
		for counted := false; !counted; {
			select {
			case err := <-failed:
				counted = strings.Contains(err.Error(), c.why)
			case <-time.After(5 * time.Second):
				t.Fatalf("%s was not counted as %q", c.name, c.why)
			}
		}
	}
	if told.calls != 0 {
		t.Errorf("%d calls came through", told.calls)
	}
	if err := check(t, addr, credentials.NewTLS(&tls.Config{GetClientCertificate: always(good), InsecureSkipVerify: true})); err != nil {
		t.Errorf("the pattern itself is refused: %v", err)
	}
}

// A5: where agents of runs connect, nobody else does.
func TestServerForRuns(t *testing.T) {
	a := newAuthority(t, td)
	server, _ := newSource(t, a, service(t, "inference"), time.Minute)
	addr, told := serve(t, server.ServerCredentials(Run()))
	run, err := RunID(td, "ws_1", "run_1")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]codes.Code{
		run.Path(): codes.OK, "/service/compute": codes.Unavailable, "/operator/usr_1": codes.Unavailable, "/agent/agt_1": codes.Unavailable,
		"/workspace/ws_1/endpoint/e": codes.Unavailable,
	} {
		client, _ := newSource(t, a, spiffeid.RequireFromPath(td, path), time.Minute)
		if err := check(t, addr, client.ClientCredentials(service(t, "inference"))); status.Code(err) != want {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if told.peer != run.String() {
		t.Errorf("the server saw %q", told.peer)
	}
}

// TestClientPinsServer has a real member of the mesh answer in another's place (D10).
func TestClientPinsServer(t *testing.T) {
	a := newAuthority(t, td)
	server, _ := newSource(t, a, service(t, "inference"), time.Minute)
	addr, told := serve(t, server.ServerCredentials())
	var failures atomic.Int64
	client, _ := newSource(t, a, service(t, "compute"), time.Minute, func(c *SourceConfig) { c.OnHandshakeError = func(error) { failures.Add(1) } })
	for name, c := range map[string]credentials.TransportCredentials{
		"other service": client.ClientCredentials(service(t, "keyvault")),
		"zero":          client.ClientCredentials(spiffeid.ID{}),
		"also refused": client.ClientCredentials(service(t, "inference"), func(spiffeid.ID) error {
			return fault.PermissionDenied("not today")
		}),
		"nobody allowed": client.credentials(client.ClientTLS(nil)),
	} {
		if err := check(t, addr, c); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if told.calls != 0 || failures.Load() < 4 {
		t.Errorf("%d calls came through, %d failures counted", told.calls, failures.Load())
	}
	strict, _ := serve(t, server.credentials(server.ServerTLS(nil)))
	if err := check(t, strict, client.ClientCredentials(service(t, "inference"))); status.Code(err) != codes.Unavailable {
		t.Errorf("a server that allows nobody: %v", err)
	}
	// The server's side of TLS 1.2.
	old := server.ServerTLS(Member())
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	oldAddr, _ := serve(t, credentials.NewTLS(old))
	if err := check(t, oldAddr, client.ClientCredentials(service(t, "inference"))); status.Code(err) != codes.Unavailable {
		t.Errorf("a server of TLS 1.2: %v", err)
	}
}

// TestRotationUnderLoad holds D10's measure: leaves of 2 s, connections that are made anew all the time and ones that are
// kept, and not one call or handshake that fails.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, td)
	var failures atomic.Int64
	count := func(c *SourceConfig) {
		c.OnHandshakeError = func(err error) { failures.Add(1); t.Errorf("handshake: %v", err) }
	}
	server, issued := newSource(t, a, service(t, "keyvault"), 2*time.Second, count)
	addr, told := serve(t, server.ServerCredentials(), grpc.KeepaliveParams(keepalive.ServerParameters{
		MaxConnectionAge: 200 * time.Millisecond, MaxConnectionAgeGrace: 5 * time.Second,
	}))
	client, _ := newSource(t, a, service(t, "compute"), 2*time.Second, count)
	c := client.ClientCredentials(service(t, "keyvault"))
	kept, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(c), grpc.WithNoProxy(),
		grpc.WithDefaultServiceConfig(`{"methodConfig":[{"name":[{}],"waitForReady":true}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	var wg sync.WaitGroup
	var calls, dials atomic.Int64
	start := issued.n.Load()
	deadline := time.Now().Add(20 * time.Second)
	more := func() bool { return issued.n.Load() < start+2 && time.Now().Before(deadline) }
	for range 2 {
		wg.Go(func() {
			for more() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				_, err := healthpb.NewHealthClient(kept).Check(ctx, &healthpb.HealthCheckRequest{})
				cancel()
				if err != nil {
					t.Errorf("call: %v", err)
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Go(func() {
		for more() {
			if err := check(t, addr, c); err != nil {
				t.Errorf("dial: %v", err)
				return
			}
			dials.Add(1)
		}
	})
	wg.Wait()
	t.Logf("%d calls, %d dials, %d SVIDs issued to the server, peer %s", calls.Load(), dials.Load(), issued.n.Load(), told.peer)
	if failures.Load() != 0 || calls.Load() < 100 || dials.Load() < 20 || issued.n.Load() < start+2 {
		t.Errorf("%d failures in %d calls and %d dials over %d SVIDs", failures.Load(), calls.Load(), dials.Load(), issued.n.Load())
	}
}

// TestNoResumption: a client that keeps sessions gets none, so a root that is taken away is looked at on every connection.
func TestNoResumption(t *testing.T) {
	a := newAuthority(t, td)
	server, _ := newSource(t, a, service(t, "keyvault"), time.Minute)
	addr, _ := serve(t, server.ServerCredentials())
	client, _ := newSource(t, a, service(t, "compute"), time.Minute)
	conf := client.ClientTLS(Member())
	conf.NextProtos = []string{"h2"}
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	conf.SessionTicketsDisabled = false
	conf.ServerName = "same"
	for n := range 2 {
		conn, err := tls.Dial("tcp", addr, conf)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		_, _ = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		if _, err := conn.Read(buf); err != nil { // tickets come with the first data
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Errorf("connection %d was resumed", n)
		}
		_ = conn.Close()
	}
}

// TestRootTakenAway: with the root out of the bundle, the next connection fails (Go CVE-2025-68121's shape).
func TestRootTakenAway(t *testing.T) {
	old, next := newAuthority(t, td), newAuthority(t, td)
	both, err := next.WithTrusted(old.Root())
	if err != nil {
		t.Fatal(err)
	}
	server, i := newSource(t, both, service(t, "keyvault"), time.Minute)
	addr, _ := serve(t, server.ServerCredentials())
	late, _ := newSource(t, old, service(t, "compute"), time.Minute) // has the old root's SVID
	conf := late.ClientTLS(Member())
	conf.NextProtos = []string{"h2"}
	conf.VerifyConnection = nil // it does not know the new root, and is not what is tested
	if err := check(t, addr, credentials.NewTLS(conf)); err != nil {
		t.Fatalf("while both roots are trusted: %v", err)
	}
	i.a = next
	serverKeeper(t, server).Refresh()
	for deadline := time.Now().Add(20 * time.Second); len(server.Bundle()) != 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the bundle without the old root does not come")
		}
	}
	if err := check(t, addr, credentials.NewTLS(conf)); status.Code(err) != codes.Unavailable {
		t.Errorf("after the old root is gone: %v", err)
	}
}

// TestOwnSVIDEnded: without a valid SVID a service neither takes nor makes connections.
func TestOwnSVIDEnded(t *testing.T) {
	a := newAuthority(t, td)
	c := newClock()
	server, _ := newSource(t, a, service(t, "keyvault"), time.Minute, func(s *SourceConfig) { s.Now = c.now })
	addr, _ := serve(t, server.ServerCredentials())
	client, _ := newSource(t, a, service(t, "compute"), time.Minute, func(s *SourceConfig) { s.Now = c.now })
	pinned := client.ClientCredentials(service(t, "keyvault"))
	if err := check(t, addr, pinned); err != nil {
		t.Fatal(err)
	}
	c.advance(2 * time.Minute)
	if err := check(t, addr, pinned); status.Code(err) != codes.Unavailable {
		t.Errorf("with ended SVIDs: %v", err)
	}
}

// TestHalfOpen: who connects and says nothing is dropped at the handshake's deadline.
func TestHalfOpen(t *testing.T) {
	a := newAuthority(t, td)
	failed := make(chan error, 1)
	server, _ := newSource(t, a, service(t, "keyvault"), time.Minute, func(c *SourceConfig) { c.OnHandshakeError = func(err error) { failed <- err } })
	cr, ok := server.ServerCredentials().(*creds)
	if !ok || cr.timeout <= 0 || cr.timeout > 10*time.Second {
		t.Fatalf("the deadline is %v", cr.timeout)
	}
	cr.timeout = 50 * time.Millisecond
	addr, _ := serve(t, cr)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the server spoke first")
	} else if nerr, ok := err.(net.Error); ok && nerr.Timeout() { //nolint:errorlint // net gives it bare
		t.Error("the connection was left open")
	}
	<-failed
}

func TestSourceRefused(t *testing.T) {
	a := newAuthority(t, td)
	w, _ := workloadServer(t, t.TempDir(), time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := NewSource(ctx, SourceConfig{Addr: w.Addr(), TrustDomain: foreign}); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("an SVID of another trust domain: %v", err)
	}
	for name, cfg := range map[string]SourceConfig{"no address": {TrustDomain: td}, "no trust domain": {Addr: w.Addr()}} {
		if _, err := NewSource(ctx, cfg); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	i := &issuer{a: a, id: service(t, "a"), ttl: time.Minute}
	i.away.Store(&errAway)
	k := startKeeper(t, KeeperConfig{Dir: t.TempDir(), ID: i.id, Issue: i.issue})
	empty, err := NewWorkloadServer(WorkloadConfig{Keeper: k, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := NewSource(short, SourceConfig{Addr: empty.Addr(), TrustDomain: td}); !fault.Is(err, codes.Unavailable) {
		t.Errorf("without an SVID: %v", err)
	}
}

// TestSourceOutlivesSocket: while the Workload API is away the SVID is kept, and it is followed again afterwards.
func TestSourceOutlivesSocket(t *testing.T) {
	t.Parallel()
	i := &issuer{a: newAuthority(t, td), id: service(t, "compute"), ttl: time.Minute}
	dir := t.TempDir()
	k := startKeeper(t, KeeperConfig{Dir: dir, ID: i.id, Issue: i.issue})
	ready(t, k)
	w, err := NewWorkloadServer(WorkloadConfig{Keeper: k, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := NewSource(ctx, SourceConfig{Addr: w.Addr(), TrustDomain: td})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := s.certificate()
	if err != nil {
		t.Fatalf("with the socket gone: %v", err)
	}
	k.Refresh()
	if w, err = NewWorkloadServer(WorkloadConfig{Keeper: k, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for {
		if c, err := s.certificate(); err == nil && !c.Leaf.Equal(before.Leaf) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("no update after the socket came back")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestPeerFromDoesNotAllocate(t *testing.T) {
	ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: &PeerInfo{PeerID: "spiffe://mesh.test/service/a"}})
	var id string
	if n := testing.AllocsPerRun(100, func() { id, _ = PeerFrom(ctx) }); n != 0 || id != "spiffe://mesh.test/service/a" {
		t.Errorf("%v allocations, %q", n, id)
	}
	for name, ctx := range map[string]context.Context{
		"no peer": context.Background(), "plain": peer.NewContext(context.Background(), &peer.Peer{}),
		"TLS of others": peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}}}),
		"zero":          peer.NewContext(context.Background(), &peer.Peer{AuthInfo: &PeerInfo{}}),
		"enrolling":     peer.NewContext(context.Background(), &peer.Peer{AuthInfo: &EnrolInfo{}}),
	} {
		if id, ok := PeerFrom(ctx); ok || id != "" {
			t.Errorf("%s: %q", name, id)
		}
	}
}

// TestListenerClosesWithItsRoot: what a listener has accepted that serves no gRPC is closed too when the root of its peer goes (D10).
func TestListenerClosesWithItsRoot(t *testing.T) {
	old, next := newAuthority(t, td), newAuthority(t, td)
	both, err := next.WithTrusted(old.Root())
	if err != nil {
		t.Fatal(err)
	}
	server, i := newSource(t, both, service(t, "inference"), time.Minute)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := server.Listen(raw)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn := tls.Server(&wrapped{c}, server.ServerTLS(Member()))
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	dial := func(a *Authority) *tls.Conn {
		t.Helper()
		client, _ := newSource(t, a, service(t, "compute"), time.Minute)
		conf := client.ClientTLS(Member())
		conf.VerifyConnection = nil // some do not know the other root, and are not what is tested
		c, err := tls.Dial("tcp", raw.Addr().String(), conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	echoes := func(c *tls.Conn) bool {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return false
		}
		_, err := c.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("it hangs")
		}
		return err == nil
	}
	goes, stays := dial(old), dial(both)
	if !echoes(goes) || !echoes(stays) {
		t.Fatal("while both roots are believed")
	}
	i.a = next
	serverKeeper(t, server).Refresh()
	_ = goes.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := goes.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection of the old root stands: %v", err)
	}
	if !echoes(stays) {
		t.Error("the connection of the new root was closed")
	}
}

// wrapped is a connection inside another one, as servers count what they send.
type wrapped struct{ net.Conn }

func (w *wrapped) NetConn() net.Conn { return w.Conn }
