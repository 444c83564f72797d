// Package testmesh owns a whole installation inside a test binary: embedded etcd, every service with its real store, real mTLS on
// loopback, real agents. It is imported by tests only.
//
// Trust boundary: the same as everywhere: what a test may do is what its tokens allow. The package has no way around the gateway but
// the certificates of services themselves, which the tests of refused peers need.
//
// Invariants: one mesh a package, started once; each test works in a subscription of its own, so that tests do not see each other.
//
// Failure: what does not start ends the test binary, with the log of the mesh.
package testmesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// Mesh is an installation that runs.
type Mesh struct {
	*node.Installation
	// Dir is the state folder.
	Dir string
	cfg node.UpConfig
	log *buffer

	mu       sync.Mutex
	password string
	admin    string                      // token
	certs    map[string]*tls.Certificate // of peers, by service
}

// Cheap is the cost of password hashes in tests.
func Cheap() password.Config { return password.Config{Passes: 1, MemoryKiB: 8 << 10, Lanes: 1} }

// Start starts a mesh in a folder of its own. Stop it with Close.
func Start(change ...func(*node.UpConfig)) (*Mesh, error) {
	dir, err := os.MkdirTemp("", "mesh")
	if err != nil {
		return nil, err
	}
	m := &Mesh{Dir: dir, log: &buffer{}}
	m.cfg = node.UpConfig{
		Data: dir, Listen: "127.0.0.1:0", EtcdUnsafe: true, Log: node.Log{Level: "info"},
		Options: node.Options{LogWriter: m.log, Password: Cheap()},
	}
	for _, f := range change {
		f(&m.cfg)
	}
	if err := m.up(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return m, nil
}

// StartOnPorts is Start for a mesh that is restarted, or asked about its ports: they follow each other, from one below those that the
// system gives to others meanwhile.
func StartOnPorts(change ...func(*node.UpConfig)) (m *Mesh, err error) {
	for range 20 {
		listen := net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(10000)))
		if m, err = Start(append(slices.Clone(change), func(c *node.UpConfig) { c.Listen = listen })...); err == nil {
			return m, nil
		}
	}
	return nil, err
}

func (m *Mesh) up() error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	in, err := node.Up(ctx, m.cfg)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, m.log.tail())
	}
	m.Installation = in
	if !in.FirstPassword.Empty() {
		m.password = in.FirstPassword.RevealString()
	}
	return nil
}

// Restart stops the mesh and starts it again on the same folder and ports; it is for one that StartOnPorts has started.
func (m *Mesh) Restart() error {
	m.cfg.Listen = strings.TrimPrefix(m.URL, "https://")
	m.Stop()
	return m.up()
}

// Close stops the mesh, ends the agents that it leaves behind, as an installation does on purpose, and removes its folder.
func (m *Mesh) Close() {
	m.Stop()
	m.endAgents()
	_ = os.RemoveAll(m.Dir)
}

// endAgents kills what works in the folders of runs; with an agent its sandbox ends.
func (m *Mesh) endAgents() {
	procs, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return
	}
	runs := filepath.Join(m.Dir, "compute", "runs") + string(filepath.Separator)
	for _, p := range procs {
		cwd, err := os.Readlink(p)
		if err != nil || !strings.HasPrefix(cwd, runs) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err != nil {
			continue
		}
		if process, err := os.FindProcess(pid); err == nil {
			_ = process.Kill()
		}
	}
}

// Log is what the services have logged so far.
func (m *Mesh) Log() string { return m.log.String() }

// Password of the first administrator.
func (m *Mesh) Password() string { return m.password }

// TLS is what a client of the gateway needs.
func (m *Mesh) TLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(m.CA)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
}

// Dial connects to the gateway with a bearer token, or without one.
func (m *Mesh) Dial(t testing.TB, token string) *grpc.ClientConn {
	t.Helper()
	opts := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(m.TLS())), grpc.WithNoProxy()}
	if token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(Bearer(token)))
	}
	c, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(m.URL, "https://"), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Admin is a token of the first administrator; it is kept while the mesh runs.
func (m *Mesh) Admin(t testing.TB) string {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.admin == "" {
		m.admin = m.SignIn(t, strings.TrimPrefix(m.Installation.Admin, "users/"), m.password)
	}
	return m.admin
}

// SignIn gives a token.
func (m *Mesh) SignIn(t testing.TB, user, pw string) string {
	t.Helper()
	r, err := identityv1.NewSignInServiceClient(m.Dial(t, "")).SignIn(t.Context(), &identityv1.SignInRequest{User: user, Password: pw})
	if err != nil {
		t.Fatalf("sign in as %s: %v", user, err)
	}
	return r.GetSession().GetAccessToken()
}

// User makes a user and signs him in.
func (m *Mesh) User(t testing.TB, id string) (uid, token string) {
	t.Helper()
	pw := resource.NewUID("pw")
	u, err := identityv1.NewDirectoryServiceClient(m.Dial(t, m.Admin(t))).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: id, Password: pw})
	if err != nil {
		t.Fatalf("create user %s: %v", id, err)
	}
	return u.GetUid(), m.SignIn(t, id, pw)
}

// Bearer are the credentials of calls that carry a token.
type Bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b Bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (Bearer) RequireTransportSecurity() bool { return true }

// buffer keeps the log of a mesh.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) tail() string {
	s := b.String()
	if len(s) > 8000 {
		s = s[len(s)-8000:]
	}
	return s
}

// Child does the work of a process that this test binary was started again as: a sandbox's stage, a run's agent, or what computes hashes. Call it first in
// TestMain; in the test process itself it does nothing.
func Child() {
	sandbox.MaybeStage()
	apart.Maybe()
	if len(os.Args) == 2 && os.Args[1] == "agent" {
		os.Exit(agent.Main(context.Background(), os.NewFile(3, "bootstrap"), os.Stderr))
	}
}
