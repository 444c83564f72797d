package spiffe

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
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

const domain = "redoubt.local"

// another is a Workload API with an authority of its own, which shares no code with ours: crypto/x509 below and the standard's contract above. It
// gives whoever asks every SVID that it has, renews them all every two seconds with new keys, and has an authority between root and leaves. SPIRE
// itself it is not.
type another struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	*testing.T
	path            string
	root, between   *x509.Certificate
	rootKey, midKey *ecdsa.PrivateKey

	mu      sync.Mutex
	names   []string
	serial  int64
	now     *workload.X509SVIDResponse
	changed chan struct{}
}

func startAnother(t *testing.T) *another {
	t.Helper()
	dir, err := os.MkdirTemp("", "other") //nolint:usetesting // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	a := &another{T: t, path: filepath.Join(dir, "api.sock"), names: slices.Clone(node.Services), changed: make(chan struct{})}
	a.rootKey, a.midKey = a.key(), a.key()
	authority := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageCertSign, IsCA: true, URIs: []*url.URL{td.ID().URL()}}
	}
	root := authority("root")
	a.root = a.sign(root, root, &a.rootKey.PublicKey, a.rootKey)
	a.between = a.sign(authority("between"), a.root, &a.midKey.PublicKey, a.rootKey)
	a.renew()
	l, err := net.Listen("unix", a.path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, a)
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(l) })
	running.Go(func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				a.renew()
			case <-stop:
				return
			}
		}
	})
	t.Cleanup(func() { close(stop); s.Stop(); running.Wait() })
	return a
}

func (a *another) key() *ecdsa.PrivateKey {
	k, err := svid.NewKey()
	if err != nil {
		a.Error(err)
	}
	return k
}

func (a *another) sign(template, parent *x509.Certificate, pub *ecdsa.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	a.serial++
	template.SerialNumber, template.BasicConstraintsValid = big.NewInt(a.serial), true
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, by)
	if err != nil {
		a.Error(err)
		return nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.Error(err)
	}
	return c
}

// renew makes every SVID anew.
func (a *another) renew() {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := &workload.X509SVIDResponse{}
	for _, name := range a.names {
		key := a.key()
		leaf := a.sign(&x509.Certificate{
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs: []*url.URL{service(name).URL()}, DNSNames: []string{"localhost"},
		}, a.between, &key.PublicKey, a.midKey)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			a.Error(err)
		}
		out.Svids = append(out.Svids, &workload.X509SVID{SpiffeId: service(name).String(), X509Svid: slices.Concat(leaf.Raw, a.between.Raw), X509SvidKey: der, Bundle: a.root.Raw})
	}
	a.now = out
	close(a.changed)
	a.changed = make(chan struct{})
}

// FetchX509SVID implements the standard's contract, as far as services use it.
func (a *another) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		a.mu.Lock()
		now, changed := a.now, a.changed
		a.mu.Unlock()
		if err := stream.Send(now); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (a *another) socket() string { return "unix://" + a.path }

func (a *another) roots() []*x509.Certificate { return []*x509.Certificate{a.root} }

func (a *another) take(name string) {
	a.mu.Lock()
	a.names = slices.DeleteFunc(a.names, func(n string) bool { return n == name })
	a.mu.Unlock()
	a.renew()
}

func csrOf(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestServicesRunOnAnothersWorkloadAPI runs an installation whose services have their identities from elsewhere (D10).
func TestServicesRunOnAnothersWorkloadAPI(t *testing.T) {
	s := startAnother(t)
	mesh, err := testmesh.Start(func(c *node.UpConfig) {
		c.Listen, c.TrustDomain, c.WorkloadAPI = "localhost:0", domain, s.socket()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mesh.Close)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, mesh.Log())
		}
	}

	// Every service shows what it was given, believes those roots, and has enrolled nowhere.
	roots := s.roots()
	first := make(map[string]*svid.SVID)
	for _, name := range node.Services {
		own := mesh.Nodes[name].SVID()
		if own == nil || own.ID.String() != "spiffe://"+domain+"/service/"+name {
			t.Fatalf("%s shows %v", name, own)
		}
		first[name] = own
		if len(own.Bundle) != len(roots) || !slices.ContainsFunc(roots, own.Bundle[0].Equal) || own.Chain[len(own.Chain)-1].CheckSignatureFrom(roots[0]) != nil {
			t.Errorf("%s believes other roots, or shows what they have not signed", name)
		}
		if _, err := os.Stat(filepath.Join(mesh.Dir, name, "svid")); !os.IsNotExist(err) {
			t.Errorf("%s keeps an identity of its own: %v", name, err)
		}
	}

	// The installation works: sign-in at identity, a workspace that needs keyvault, telemetry and the fence.
	admin := mesh.Admin(t)
	resources := workspacev1.NewResourceServiceClient(mesh.Dial(t, admin))
	sub, err := resources.CreateSubscription(t.Context(), &workspacev1.CreateSubscriptionRequest{SubscriptionId: "elsewhere", Region: "here"})
	must(err)
	group, err := resources.CreateResourceGroup(t.Context(), &workspacev1.CreateResourceGroupRequest{Parent: sub.GetName(), ResourceGroupId: "group"})
	must(err)
	ws, err := resources.CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group.GetName(), WorkspaceId: "lab"})
	must(err)
	if ws.GetState() != workspacev1.Workspace_STATE_ACTIVE {
		t.Errorf("the workspace is %v", ws)
	}

	// Identity names operators, and they are let in at services; its own root names no service, and its bundle is not given to strangers.
	health := func(creds credentials.TransportCredentials) error {
		conn, err := grpc.NewClient("passthrough:///"+mesh.Nodes["telemetry"].MeshAddr(), grpc.WithTransportCredentials(creds))
		must(err)
		defer func() { _ = conn.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	}
	key, err := svid.NewKey()
	must(err)
	r, err := identityv1.NewOperatorServiceClient(mesh.Dial(t, admin)).IssueOperatorCertificate(t.Context(), &identityv1.IssueOperatorCertificateRequest{Csr: csrOf(t, key)})
	must(err)
	held, err := svid.Held(key, r.GetChain(), r.GetBundle(), time.Now())
	must(err)
	must(health(credentials.NewTLS(svid.HeldClientTLS(func() (*svid.SVID, error) { return held, nil }, "telemetry", nil))))
	if !slices.ContainsFunc(held.Bundle, roots[0].Equal) {
		t.Error("an operator is not told of the roots that services chain to")
	}
	if _, err := identityv1.NewWorkloadIdentityServiceClient(mesh.Dial(t, "")).GetSPIFFEBundle(t.Context(), &identityv1.GetSPIFFEBundleRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("identity gives its own bundle to strangers: %v", err)
	}
	thief, err := svid.NewAuthority(first["identity"].ID.TrustDomain(), time.Now(), time.Hour)
	must(err)
	stolen, err := thief.Sign(&key.PublicKey, first["compute"].ID, time.Hour, time.Now())
	must(err)
	if err := health(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: stolen, PrivateKey: key}},
	})); err == nil {
		t.Error("a stranger's certificate is let in")
	}

	// Every SVID is renewed while the installation is called, as fast as one address may.
	var calls, failed atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			_, err := resources.GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: ws.GetName()})
			if ctx.Err() != nil {
				return
			}
			calls.Add(1)
			if err != nil {
				failed.Add(1)
				t.Errorf("a call failed: %v", err)
			}
			time.Sleep(time.Millisecond) // the gateway's limit is not what is tried
		}
	}()
	for _, name := range node.Services {
		first[name] = mesh.Nodes[name].SVID()
	}
	renewed := func(name string) bool {
		own := mesh.Nodes[name].SVID()
		return own != nil && !bytes.Equal(own.Chain[0].Raw, first[name].Chain[0].Raw) && !own.Key.Equal(first[name].Key)
	}
	for deadline := time.Now().Add(90 * time.Second); slices.ContainsFunc(node.Services, func(name string) bool { return !renewed(name) }) || calls.Load() < 20; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("new SVIDs are not taken up\n%s", mesh.Log())
		}
	}
	stop()
	<-ended
	t.Logf("every service of 7 has another SVID and key: %d calls meanwhile, %d failed", calls.Load(), failed.Load())

	// What is taken away is not shown any more, and nothing else in its place, though the process may have six others.
	s.take("telemetry")
	for deadline := time.Now().Add(60 * time.Second); mesh.Nodes["telemetry"].SVID() != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("telemetry shows an SVID that was taken away")
		}
	}
	if err := health(credentials.NewTLS(svid.HeldClientTLS(func() (*svid.SVID, error) { return held, nil }, "telemetry", nil))); err == nil {
		t.Error("telemetry answers without an identity")
	}
}
