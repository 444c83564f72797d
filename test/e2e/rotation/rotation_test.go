// Package rotation rotates the root of a whole installation while it is called without a pause (D10, A3): each phase and its way back, with
// identity started again in between, and not one call that fails. Afterwards it tries with what the revoked root has signed.
//
// Under load connections live for two seconds instead of twenty minutes, so that the waits are short; all else is as it ships.
package rotation

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func TestMain(m *testing.M) {
	testmesh.Child()
	os.Exit(m.Run())
}

type rotating struct {
	*testing.T
	mesh *testmesh.Mesh
	keys identityv1.KeyServiceClient
	ctx  context.Context
}

func start(t *testing.T, age time.Duration) *rotating {
	mesh, err := testmesh.StartOnPorts(func(c *node.UpConfig) { c.Options.Limits.ConnectionAge = age })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mesh.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	r := &rotating{T: t, mesh: mesh, ctx: ctx}
	r.keys = identityv1.NewKeyServiceClient(mesh.Dial(t, mesh.Admin(t)))
	return r
}

func (r *rotating) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%v\n%s", err, r.mesh.Log())
	}
}

// eventually repeats an order that is refused while something is on its way.
func (r *rotating) eventually(what string, call func() error) {
	r.Helper()
	for {
		err := call()
		if err == nil {
			return
		}
		if code := status.Code(err); code != codes.FailedPrecondition || r.ctx.Err() != nil {
			r.Fatalf("%s: %v\n%s", what, err, r.mesh.Log())
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (r *rotating) active() string {
	r.Helper()
	all, err := r.keys.ListAuthorities(r.ctx, &identityv1.ListAuthoritiesRequest{})
	r.must(err)
	for _, a := range all.GetAuthorities() {
		if a.GetState() == identityv1.AuthorityState_AUTHORITY_STATE_ACTIVE {
			return a.GetPin()
		}
	}
	r.Fatal("no root signs")
	return ""
}

func (r *rotating) prepare() string {
	r.Helper()
	a, err := r.keys.PrepareAuthority(r.ctx, &identityv1.PrepareAuthorityRequest{})
	r.must(err)
	if len(a.GetPending()) > 0 {
		r.Errorf("the root was prepared, and %v do not know", a.GetPending())
	}
	return a.GetPin()
}

func (r *rotating) activate(pin string) {
	r.Helper()
	r.eventually("activate", func() error {
		_, err := r.keys.ActivateAuthority(r.ctx, &identityv1.ActivateAuthorityRequest{Pin: pin})
		return err
	})
}

func (r *rotating) taint(pin string) {
	r.Helper()
	a, err := r.keys.TaintAuthority(r.ctx, &identityv1.TaintAuthorityRequest{Pin: pin})
	r.must(err)
	if len(a.GetPending()) > 0 {
		r.Errorf("the root is tainted, and %v have not renewed", a.GetPending())
	}
}

func (r *rotating) revoke(pin string, force bool) {
	r.Helper()
	r.eventually("revoke", func() error {
		_, err := r.keys.RevokeAuthority(r.ctx, &identityv1.RevokeAuthorityRequest{Pin: pin, Force: force})
		if code := status.Code(err); force && (code == codes.Unavailable || code == codes.NotFound) {
			// The order itself may hang on a connection of the root that goes, which is closed before its answer.
			if _, err = r.keys.RevokeAuthority(r.ctx, &identityv1.RevokeAuthorityRequest{Pin: pin, Force: force}); status.Code(err) == codes.NotFound {
				return nil
			}
		}
		return err
	})
}

// load calls without a pause until stop is called, and gives how many calls were made and what failed. Half of the callers keep their connection,
// half make one for each call, all with the roots of before.
func (r *rotating) load(roots *tls.Config) (stop func() (calls int64, failed []error)) {
	ctx, cancel := context.WithCancel(r.ctx)
	token := testmesh.Bearer(r.mesh.Admin(r))
	dial := func() *grpc.ClientConn {
		c, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(r.mesh.URL, "https://"), grpc.WithTransportCredentials(credentials.NewTLS(roots)), grpc.WithPerRPCCredentials(token), grpc.WithNoProxy())
		if err != nil {
			panic(err)
		}
		return c
	}
	var wg sync.WaitGroup
	var n atomic.Int64
	var mu sync.Mutex
	var failed []error
	for i := range 4 {
		wg.Go(func() {
			c := dial()
			defer func() { _ = c.Close() }()
			for ctx.Err() == nil {
				if i%2 == 1 {
					_ = c.Close()
					c = dial()
				}
				// A read of one service, and a change that three of them make.
				_, err := workspacev1.NewResourceServiceClient(c).ListSubscriptions(context.WithoutCancel(ctx), &workspacev1.ListSubscriptionsRequest{})
				if err == nil {
					_, err = identityv1.NewDirectoryServiceClient(c).ListUsers(context.WithoutCancel(ctx), &identityv1.ListUsersRequest{})
				}
				n.Add(1)
				if err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	return func() (int64, []error) {
		cancel()
		wg.Wait()
		return n.Load(), failed
	}
}

func TestEveryPhaseUnderLoad(t *testing.T) { // D10, A3
	r := start(t, 2*time.Second)
	before := r.mesh.TLS() // a file that nobody changes until the end
	stop := r.load(before)
	first := r.active()

	dropped := r.prepare()
	r.revoke(dropped, false)
	second := r.prepare()
	r.activate(second)
	r.activate(first) // and back
	r.activate(second)
	r.taint(first)
	_, err := r.keys.UntaintAuthority(r.ctx, &identityv1.UntaintAuthorityRequest{Pin: first})
	r.must(err)
	r.taint(first)
	for name, n := range r.mesh.Nodes {
		if got := n.SVID(); got.Issuer() != second {
			t.Errorf("%s has a certificate of %s", name, got.Issuer())
		}
	}
	// Who has only the old root's file still gets in; before it goes, the file is changed.
	calls, failed := stop()
	r.mesh.CA = r.pem()
	stop = r.load(r.mesh.TLS())
	// Run certificates live for ten minutes and are not written down, so this waits for them unless it is forced; connections have gone by then.
	time.Sleep(8 * time.Second)
	if _, err := r.keys.RevokeAuthority(r.ctx, &identityv1.RevokeAuthorityRequest{Pin: first}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("revoked while runs may have certificates of it: %v", err)
	}
	r.revoke(first, true)
	time.Sleep(time.Second)
	more, moreFailed := stop()
	t.Logf("%d calls over the four phases and their ways back, %d failed", calls+more, len(failed)+len(moreFailed))
	for _, err := range append(failed, moreFailed...) {
		t.Errorf("a call failed: %v", err)
	}
	if calls < 40 || more < 100 {
		t.Errorf("%d and %d calls are no load", calls, more)
	}
}

func (r *rotating) pem() []byte {
	r.Helper()
	return r.mesh.Nodes["gateway"].CA()
}

// refused tries a connection to a service with a certificate.
func (r *rotating) knock(addr string, cert tls.Certificate, cache tls.ClientSessionCache) error {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}, ServerName: "same", ClientSessionCache: cache,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func TestNothingOfARevokedRoot(t *testing.T) { // D10, A3
	r := start(t, 0) // what is closed below is not closed for its age
	first := r.active()
	// An operator, with a certificate and a connection of the root that goes.
	cert := r.operator()
	cache := tls.NewLRUClientSessionCache(64)
	standing := make(map[string]*tls.Conn)
	for name, n := range r.mesh.Nodes {
		if err := r.knock(n.MeshAddr(), cert, cache); err != nil {
			t.Errorf("%s refuses a good certificate: %v", name, err)
		}
	}
	second := r.prepare()
	r.activate(second)
	r.must(r.mesh.Restart())
	r.keys = identityv1.NewKeyServiceClient(r.mesh.Dial(t, r.mesh.Admin(t)))
	if r.active() != second {
		t.Fatal("another root signs after a restart")
	}
	r.taint(first)
	for name, n := range r.mesh.Nodes {
		conn, err := tls.Dial("tcp", n.MeshAddr(), &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"}, ServerName: "same", ClientSessionCache: cache, Certificates: []tls.Certificate{cert},
		})
		r.must(err)
		defer conn.Close()
		_, err = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		r.must(err)
		_, err = conn.Read(make([]byte, 1)) // it is accepted, and a ticket would have come
		r.must(err)
		if conn.ConnectionState().DidResume {
			t.Errorf("%s resumes sessions", name)
		}
		standing[name] = conn
	}
	if _, err := r.keys.RevokeAuthority(r.ctx, &identityv1.RevokeAuthorityRequest{Pin: first}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "operator/") {
		t.Errorf("revoked while an operator has a certificate of it: %v", err)
	}
	r.revoke(first, true)
	r.mesh.CA = r.pem()
	for name, conn := range standing {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 4096)
		var err error
		for err == nil {
			_, err = conn.Read(buf)
		}
		if os.IsTimeout(err) {
			t.Errorf("%s leaves a connection open whose root is revoked", name)
		}
	}
	for name, n := range r.mesh.Nodes {
		if err := r.knock(n.MeshAddr(), cert, cache); status.Code(err) != codes.Unavailable {
			t.Errorf("%s takes a certificate of a revoked root: %v", name, err)
		}
		if err := r.knock(n.MeshAddr(), cert, nil); status.Code(err) != codes.Unavailable {
			t.Errorf("%s takes a certificate of a revoked root, without a session to resume: %v", name, err)
		}
	}
	r.must(r.mesh.Restart())
	r.mesh.CA = r.pem()
	r.keys = identityv1.NewKeyServiceClient(r.mesh.Dial(t, r.mesh.Admin(t)))
	all, err := r.keys.ListAuthorities(r.ctx, &identityv1.ListAuthoritiesRequest{})
	r.must(err)
	if slices.ContainsFunc(all.GetAuthorities(), func(a *identityv1.Authority) bool { return a.GetPin() == first }) {
		t.Error("the revoked root is back after a restart")
	}
	for name, n := range r.mesh.Nodes {
		if err := r.knock(n.MeshAddr(), cert, cache); status.Code(err) != codes.Unavailable {
			t.Errorf("%s takes a certificate of a revoked root after a restart: %v", name, err)
		}
	}
}

// operator gives the administrator's own certificate.
func (r *rotating) operator() tls.Certificate {
	r.Helper()
	key, err := svid.NewKey()
	r.must(err)
	return r.certified(key)
}

func (r *rotating) certified(key *ecdsa.PrivateKey) tls.Certificate {
	r.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	r.must(err)
	res, err := identityv1.NewOperatorServiceClient(r.mesh.Dial(r, r.mesh.Admin(r))).IssueOperatorCertificate(r.ctx, &identityv1.IssueOperatorCertificateRequest{Csr: csr})
	r.must(err)
	return tls.Certificate{Certificate: res.GetChain(), PrivateKey: key}
}
