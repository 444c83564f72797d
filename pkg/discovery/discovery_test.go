package discovery_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3/naming/endpoints"
	etcdresolver "go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// shared is the etcd of all tests that do not stop it; each has a prefix of its own.
var shared *etcdnode.Node

// registerEnv makes the test binary an instance that registers and waits to be killed.
const registerEnv = "REDOUBT_TEST_REGISTER"

func TestMain(m *testing.M) {
	if os.Getenv(registerEnv) != "" {
		child()
		return
	}
	dir, err := os.MkdirTemp("", "redoubt-discovery-")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	shared, err = etcdnode.Start(ctx, etcdnode.Config{Dir: dir, UnsafeNoFsync: true})
	cancel()
	if err != nil {
		panic(err)
	}
	code := m.Run()
	_ = shared.Close()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func clientTLS(t *testing.T, n *etcdnode.Node) *tls.Config {
	t.Helper()
	c, err := n.ClientTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t *testing.T, n *etcdnode.Node, change ...func(*discovery.Config)) *discovery.Registry {
	t.Helper()
	cfg := discovery.Config{Endpoints: n.Endpoints(), TLS: clientTLS(t, n), Prefix: "test/" + t.Name(), LeaseTTL: time.Second}
	for _, c := range change {
		c(&cfg)
	}
	r, err := discovery.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func register(t *testing.T, r *discovery.Registry, service, instance, addr string) *discovery.Registration {
	t.Helper()
	g, err := r.Register(within(t, 10*time.Second), service, instance, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// await reads states until one has exactly these addresses for the service.
func await(t *testing.T, states <-chan map[string][]discovery.Instance, service string, want ...string) {
	t.Helper()
	var last []discovery.Instance
	timeout := time.After(15 * time.Second)
	for {
		select {
		case s := <-states:
			last = s[service]
			var got []string
			for _, in := range last {
				got = append(got, in.Addr)
			}
			if strings.Join(got, " ") == strings.Join(want, " ") {
				return
			}
		case <-timeout:
			t.Fatalf("%s is at %v, want %v", service, last, want)
		}
	}
}

func TestRegisterListWatch(t *testing.T) {
	r := open(t, shared)
	ctx := within(t, 20*time.Second)
	states := r.Watch(ctx)
	await(t, states, "compute")
	a := register(t, r, "compute", "a", "127.0.0.1:1001")
	register(t, r, "compute", "b", "127.0.0.1:1002")
	register(t, r, "workspace", "a", "127.0.0.1:1003")
	await(t, states, "compute", "127.0.0.1:1001", "127.0.0.1:1002")
	all, err := r.List(ctx)
	if err != nil || len(all) != 2 || len(all["compute"]) != 2 || all["workspace"][0] != (discovery.Instance{Service: "workspace", Name: "a", Addr: "127.0.0.1:1003"}) {
		t.Fatalf("%v, %v", all, err)
	}
	begin := time.Now()
	a.Close()
	await(t, states, "compute", "127.0.0.1:1002")
	if took := time.Since(begin); took > 800*time.Millisecond {
		t.Errorf("taken out after %s, so by its lease", took)
	}
	if err := r.Check(ctx); err != nil {
		t.Error(err)
	}
	if err := a.Ready(ctx); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("Ready after Close: %v", err)
	}
	late := r.Watch(ctx) // who comes later is told at once
	await(t, late, "compute", "127.0.0.1:1002")
}

func TestRefused(t *testing.T) {
	good := clientTLS(t, shared)
	bare := good.Clone()
	bare.GetClientCertificate = nil
	for name, cfg := range map[string]discovery.Config{
		"no TLS": {Endpoints: shared.Endpoints()}, "no certificate": {Endpoints: shared.Endpoints(), TLS: bare}, "no endpoint": {TLS: good},
		"plain text": {Endpoints: []string{"http://127.0.0.1:2379"}, TLS: good}, "no port": {Endpoints: []string{"etcd-1"}, TLS: good},
		"a path": {Endpoints: []string{"https://etcd-1:2379/x"}, TLS: good},
	} {
		if r, err := discovery.Open(cfg); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	r := open(t, shared)
	for _, c := range [][3]string{
		{"", "a", "h:1"}, {"a/b", "a", "h:1"}, {"a", "", "h:1"}, {"a", "../x", "h:1"}, {"a", "b", ""}, {"a", "b", "h"}, {"a", "b", ":1"},
		{"a", "b", "h:0"}, {"a", "b", "h:65536"}, {"a", "b", "h:http"}, {"a", "b", "x@h:1"},
	} {
		if _, err := r.Announce(c[0], c[1], c[2]); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%q: %v", c, err)
		}
	}
	bad, err := grpc.NewClient("etcd:///a/b", append(r.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	if _, err := call(within(t, 300*time.Millisecond), healthpb.NewHealthClient(bad)); err == nil || !strings.Contains(err.Error(), "cannot name a service") {
		t.Errorf("a target that names no service: %v", err)
	}
	_ = r.Close()
	if _, err := r.Announce("a", "b", "h:1"); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("after Close: %v", err)
	}
}

// TestOfficialFormat reads our entries with etcd's own resolver, and its manager's entries with ours.
func TestOfficialFormat(t *testing.T) {
	r := open(t, shared)
	addr, _ := backend(t)
	register(t, r, "compute", "a", addr)
	b, err := etcdresolver.NewBuilder(r.Client())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("etcd:///test/"+t.Name()+"/compute", grpc.WithResolvers(b), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthpb.NewHealthClient(conn).Check(within(t, 10*time.Second), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("by etcd's resolver: %v", err)
	}
	m, err := endpoints.NewManager(r.Client(), "test/"+t.Name()+"/other")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.AddEndpoint(within(t, 10*time.Second), "test/"+t.Name()+"/other/x", endpoints.Endpoint{Addr: "127.0.0.1:9", Metadata: "note"}); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"noise": "noise", "other/y": "{}", "other/z/deep": `{"Addr":"h:1"}`, "other/w": `{"Addr":"h"}`, "o r/w": `{"Addr":"h:1"}`} {
		if _, err := r.Client().Put(within(t, 10*time.Second), "test/"+t.Name()+"/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	all, err := r.List(within(t, 10*time.Second))
	if err != nil || len(all) != 2 || len(all["other"]) != 1 || all["other"][0].Addr != "127.0.0.1:9" {
		t.Errorf("%v, %v", all, err)
	}
	await(t, r.Watch(within(t, 10*time.Second)), "other", "127.0.0.1:9")
}

// backend is a gRPC server whose health the test sets.
func backend(t *testing.T) (string, *health.Server) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	h := health.NewServer()
	healthpb.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)
	return lis.Addr().String(), h
}

func dial(t *testing.T, r *discovery.Registry, service string) healthpb.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient(discovery.Target(service), append(r.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return healthpb.NewHealthClient(conn)
}

// List of the health service answers whatever the health is.
func call(ctx context.Context, c healthpb.HealthClient) (string, error) {
	var p peer.Peer
	if _, err := c.List(ctx, &healthpb.HealthListRequest{}, grpc.Peer(&p)); err != nil {
		return "", err
	}
	return p.Addr.String(), nil
}

// until calls until exactly these backends have answered ten calls in a row.
func until(t *testing.T, c healthpb.HealthClient, want ...string) {
	t.Helper()
	ctx := within(t, 15*time.Second)
	seen := map[string]bool{}
	for ctx.Err() == nil {
		clear(seen)
		for range 10 {
			addr, err := call(ctx, c)
			if err != nil {
				t.Fatalf("want %v: %v", want, err)
			}
			seen[addr] = true
		}
		all := len(seen) == len(want)
		for _, w := range want {
			all = all && seen[w]
		}
		if all {
			return
		}
	}
	t.Fatalf("answers from %v, want %v", seen, want)
}

func TestCallsGoToHealthyInstancesInTurn(t *testing.T) {
	t.Parallel()
	r := open(t, shared)
	a, ah := backend(t)
	b, _ := backend(t)
	client := dial(t, r, "compute")
	first := make(chan error, 1)
	go func() { // before there is an instance: the call waits
		_, err := call(within(t, 10*time.Second), client)
		first <- err
	}()
	ga := register(t, r, "compute", "a", a)
	if err := <-first; err != nil {
		t.Fatalf("a call that came before its service: %v", err)
	}
	until(t, client, a)
	gb := register(t, r, "compute", "b", b)
	until(t, client, a, b)
	ah.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	until(t, client, b)
	ah.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	until(t, client, a, b)
	gb.Close()
	until(t, client, a)
	ga.Close()
	// Nobody is left: once the client has heard of it, a call ends at its deadline.
	noticed := within(t, 10*time.Second)
	for {
		_, err := call(within(t, 300*time.Millisecond), client)
		if status.Code(err) == codes.DeadlineExceeded {
			break
		}
		if noticed.Err() != nil {
			t.Fatalf("with nobody left: %v", err)
		}
	}
	if _, err := call(within(t, 300*time.Millisecond), dial(t, r, "keyvault")); err == nil || !strings.Contains(err.Error(), "no instance of keyvault is registered") {
		t.Errorf("with nobody there yet: %v", err)
	}
}

// child registers as the environment says, and stays until it is killed.
func child() {
	f := strings.Split(os.Getenv(registerEnv), " ")
	pair, err := tls.LoadX509KeyPair(f[2], f[3])
	if err != nil {
		panic(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	r, err := discovery.Open(discovery.Config{Endpoints: []string{f[0]}, TLS: conf, Prefix: f[1], LeaseTTL: time.Second})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := r.Register(ctx, "compute", "child", "127.0.0.1:1234"); err != nil {
		panic(err)
	}
	fmt.Println("registered")
	select {}
}

// TestKilledInstanceGoes holds A3's part of this package: a process that is killed is gone within its lease.
func TestKilledInstanceGoes(t *testing.T) {
	t.Parallel()
	r := open(t, shared)
	files, err := shared.PKI().WriteLeaf(t.TempDir(), "child", svid.Leaf{CommonName: "child", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s test/%s %s %s", registerEnv, shared.Endpoints()[0], t.Name(), files.Cert, files.Key))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := out.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "registered") {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	states := r.Watch(within(t, 20*time.Second))
	await(t, states, "compute", "127.0.0.1:1234")
	time.Sleep(1500 * time.Millisecond) // longer than the lease: what keeps it is the keepalive
	if all, err := r.List(within(t, 5*time.Second)); err != nil || len(all["compute"]) != 1 {
		t.Errorf("while it lives: %v, %v", all, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	begin := time.Now()
	await(t, states, "compute")
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("gone after %s with a lease of 1 s", took)
	}
}

// TestEntryRemovedByHand: an entry that somebody deletes comes back.
func TestEntryRemovedByHand(t *testing.T) {
	t.Parallel()
	r := open(t, shared, func(c *discovery.Config) { c.LeaseTTL, c.Resync = time.Hour, 50*time.Millisecond })
	register(t, r, "compute", "a", "127.0.0.1:1001")
	states := r.Watch(within(t, 20*time.Second))
	await(t, states, "compute", "127.0.0.1:1001")
	if _, err := r.Client().Delete(within(t, 5*time.Second), "test/"+t.Name()+"/compute/a"); err != nil {
		t.Fatal(err)
	}
	await(t, states, "compute")
	await(t, states, "compute", "127.0.0.1:1001")
}

func node(t *testing.T, dir, addr string) *etcdnode.Node {
	t.Helper()
	n, err := etcdnode.Start(within(t, 20*time.Second), etcdnode.Config{Dir: dir, ClientAddr: addr, UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// TestEtcdRestarts takes etcd away and back, then away with all its data: calls go on, and registrations come back.
func TestEtcdRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := node(t, dir, "127.0.0.1:0")
	at := strings.TrimPrefix(n.Endpoints()[0], "https://")
	log := &safeBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	r := open(t, n, func(c *discovery.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)); c.Resync = time.Second })
	addr, _ := backend(t)
	g := register(t, r, "compute", "a", addr)
	states := r.Watch(within(t, 60*time.Second))
	await(t, states, "compute", addr)
	client := dial(t, r, "compute")
	until(t, client, addr)
	for wipe, second := range map[bool]string{false: "127.0.0.1:1", true: "127.0.0.1:2"} {
		// One that only reads has no lease whose loss could warn it.
		reader := open(t, n, func(c *discovery.Config) { c.Resync, c.LeaseTTL = 200*time.Millisecond, 10*time.Second })
		read := reader.Watch(within(t, 60*time.Second))
		await(t, read, "compute", addr)
		gone := make(chan bool, 1) // whether the reader was ever told of nobody, before it was told of both
		go func() {
			empty := false
			for s := range read {
				empty = empty || len(s["compute"]) == 0
				if len(s["compute"]) == 2 {
					break
				}
			}
			gone <- empty
		}()
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		until(t, client, addr) // etcd is not on the path of a call
		if err := r.Check(within(t, 200*time.Millisecond)); !fault.Is(err, codes.Unavailable) || !strings.Contains(err.Error(), "nothing answers at "+at) {
			t.Errorf("while etcd is away: %v", err)
		}
		if wipe {
			if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
				t.Fatal(err)
			}
		}
		n = node(t, dir, at)
		fresh := open(t, n, func(c *discovery.Config) { c.Prefix = "test/" + t.Name() })
		await(t, fresh.Watch(within(t, 30*time.Second)), "compute", addr)
		if err := g.Ready(within(t, 10*time.Second)); err != nil {
			t.Error(err)
		}
		until(t, client, addr)
		// What is new is seen by the old watch too, also in a history that began again.
		other := register(t, r, "compute", "b", second)
		await(t, states, "compute", addr, second)
		// What is lost with etcd's data is not taken for gone. (With the data, a lease may have ended meanwhile.)
		if empty := <-gone; empty && wipe {
			t.Error("the reader lost sight of an instance that lived")
		}
		other.Close()
	}
	if !strings.Contains(log.String(), "etcd has lost its data") {
		t.Error("the loss of etcd's data was not noticed")
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *safeBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }
