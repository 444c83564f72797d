package endpoints

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/models"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	trust  = "redoubt.test"
	issuer = "https://redoubt.test:7443"

	sub1     = "subscriptions/s1"
	grp1     = sub1 + "/resourceGroups/g1"
	ws1      = grp1 + "/workspaces/w1"
	ws2      = grp1 + "/workspaces/w2"
	snap     = ws1 + "/snapshots/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	here     = ws1 + "/computes/here"
	longTime = 60 * time.Second // for what has to come, however slow the machine is
)

// lab is endpoints behind the real chain, with the real registry, the real listeners and a real database. Compute is a computer of the
// test's own, reached over the mesh's mutual TLS.
type lab struct {
	t      testing.TB
	td     spiffeid.TrustDomain
	ca     *svid.Authority
	cfg    Config
	outbox *audit.Outbox
	engine *authz.Engine
	models *models.Service
	uids   map[string]string
	seq    uint64
	peer   *peer
	comp   *computer
	source *svid.Source

	s       *Service
	serving *serving.Server
	addr    string // of the RPCs
	public  string // of the scoring listener
	conns   map[string]*grpc.ClientConn
	ended   func()

	mu     sync.Mutex
	clock  time.Duration
	tokens map[string]*authn.Verified
	events []*audit.Event
}

func (l *lab) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Add(l.clock)
}

func (l *lab) advance(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock += d
}

// peer is workspace and compute, as far as they are asked in the caller's name.
type peer struct {
	workspacev1.SnapshotServiceClient
	computev1.ComputeServiceClient
	mu                sync.Mutex
	snapshot, compute error
}

func (p *peer) set(snapshot, compute error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snapshot, p.compute = snapshot, compute
}

func wire(err error) error {
	if err == nil {
		return nil
	}
	return fault.ToStatus(err, trust, "").Err()
}

func (p *peer) GetSnapshot(context.Context, *workspacev1.GetSnapshotRequest, ...grpc.CallOption) (*workspacev1.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &workspacev1.Snapshot{}, wire(p.snapshot)
}

func (p *peer) GetCompute(context.Context, *computev1.GetComputeRequest, ...grpc.CallOption) (*computev1.Compute, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &computev1.Compute{}, wire(p.compute)
}

// noRuns is compute's runs, which these tests register nothing from.
type noRuns struct{ computev1.RunServiceClient }

// records drops what is logged of requests.
type records struct{}

func (records) Append(*telemetryv1.ScoringRequest) {}

// newSource is a service's side of the mesh's mutual TLS.
func (l *lab) newSource(service string) *svid.Source {
	l.t.Helper()
	id, err := svid.ServiceID(l.td, service)
	must(l.t, err)
	dir := l.t.TempDir()
	k, err := svid.NewKeeper(svid.KeeperConfig{Dir: dir, ID: id, Issue: func(_ context.Context, _ crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
		chain, _, err := l.ca.SignCSR(csr, id, time.Hour, time.Now())
		var bundle [][]byte
		for _, c := range l.ca.Bundle() {
			bundle = append(bundle, c.Raw)
		}
		return chain, bundle, err
	}})
	must(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx) }()
	ready, stop := context.WithTimeout(ctx, longTime)
	defer stop()
	must(l.t, k.Ready(ready))
	w, err := svid.NewWorkloadServer(svid.WorkloadConfig{Keeper: k, Dir: dir})
	must(l.t, err)
	src, err := svid.NewSource(ready, svid.SourceConfig{Addr: w.Addr(), TrustDomain: l.td})
	must(l.t, err)
	l.t.Cleanup(func() { _ = src.Close(); _ = w.Close(); cancel(); <-done })
	return src
}

func newLab(t testing.TB, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{
		t: t, td: spiffeid.RequireTrustDomainFromString(trust), uids: map[string]string{"/": ""}, peer: &peer{}, conns: make(map[string]*grpc.ClientConn),
		tokens: make(map[string]*authn.Verified),
	}
	var err error
	l.ca, err = svid.NewAuthority(l.td, time.Now(), time.Hour)
	must(t, err)
	l.source = l.newSource("inference")
	db := sqldbtest.Open(t, envelope.Migrations(), audit.Migrations(), store.Migrations())
	ring := func(service string) *envelope.Keyring {
		s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		must(t, err)
		k, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, service), DB: db})
		must(t, err)
		return k
	}
	own, keys := ring("inference"), ring("keyvault")
	l.outbox, err = audit.New(audit.Config{Service: "inference", DB: db, Keys: own})
	must(t, err)
	blobs, err := blob.Open(t.Context(), blob.Config{Dir: filepath.Join(t.TempDir(), "blob")})
	must(t, err)
	t.Cleanup(func() { _ = blobs.Close() })
	l.models, err = models.New(models.Config{DB: db, Own: own, Keys: keys, Blobs: blobs, Runs: noRuns{}})
	must(t, err)

	l.engine = authz.New(authz.Config{MaxStale: 1e6 * time.Hour, Now: l.now})
	l.seq++
	state := &workspacev1.WatchAuthorizationResponse{Seq: l.seq, Reset_: true, Complete: true, Roles: authz.BuiltinRoles()}
	for _, at := range []struct{ name, parent, prefix string }{{sub1, "/", "sub"}, {grp1, sub1, "rgp"}, {ws1, grp1, "ws"}, {ws2, grp1, "ws"}} {
		l.uids[at.name] = resource.NewUID(at.prefix)
		state.Scopes = append(state.Scopes, &workspacev1.ScopeRecord{Uid: l.uids[at.name], Name: at.name, ParentUid: l.uids[at.parent], Active: true})
	}
	must(t, l.engine.ApplyAuthorization(state))
	must(t, l.engine.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}))
	l.assign("owner", sub1, authz.Owner)
	l.assign("reader", sub1, authz.Reader)
	l.assign("other", ws2, authz.Owner)

	l.comp = newComputer(l)
	c, err := grpc.NewClient("passthrough:///"+l.comp.addr, grpc.WithTransportCredentials(l.source.ClientCredentials(l.id("compute"))))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	l.cfg = Config{
		DB: db, Outbox: l.outbox, Keys: keys, Engine: l.engine, Models: l.models, Replicas: computev1.NewReplicaServiceClient(c), Computes: l.peer,
		Snapshots: l.peer, ScoringURL: "https://localhost:1", Backoff: 20 * time.Millisecond, Slow: 100 * time.Millisecond, Settled: time.Hour,
		Now: l.now, Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&l.cfg)
	}
	l.start()
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *lab) id(service string) spiffeid.ID {
	id, err := svid.ServiceID(l.td, service)
	must(l.t, err)
	return id
}

// start is the service as a process has it: listeners, chain, loop.
func (l *lab) start() {
	l.t.Helper()
	key, err := svid.NewKey()
	must(l.t, err)
	cert, err := l.ca.SignServer(key.Public(), []string{"localhost"}, nil, time.Hour, time.Now())
	must(l.t, err)
	l.serving, err = serving.New(serving.Config{
		Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{Certificate: cert, PrivateKey: key}, nil },
		MeshTLS:     l.source.ServerTLS, TrustDomain: trust, Log: records{}, Installation: trust, Logger: slog.New(slog.DiscardHandler), Now: l.now,
	})
	must(l.t, err)
	public, replicas := listen(l.t), listen(l.t)
	l.public = public.Addr().String()
	l.comp.at(replicas.Addr().String())
	l.cfg.Listener, l.cfg.ReplicaAddress = l.serving, "replicas.test:1"
	l.s, err = New(l.cfg)
	must(l.t, err)
	rules, err := rule.Load(rule.Registered("redoubt")...)
	must(l.t, err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{})
	must(l.t, err)
	chain, err := rpc.NewChain(rpc.Config{
		Service: "inference", TrustDomain: trust, Installation: trust, Issuer: issuer, PublicURL: issuer, Rules: rules,
		Verifier: l, Proofs: proofs, Engine: l.engine, Recorder: l.outbox, Logger: slog.New(slog.DiscardHandler),
	})
	must(l.t, err)
	server := chain.NewServer(l.source.ServerCredentials(), "redoubt.inference.v1.EndpointService", "redoubt.inference.v1.InferenceInternalService", "redoubt.inference.v1.ModelService")
	l.models.Register(chain.Registrar(server))
	l.s.Register(chain.Registrar(server))
	rpcs := listen(l.t)
	l.addr = rpcs.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var jobs sync.WaitGroup
	jobs.Go(func() { _ = server.Serve(rpcs) })
	must(l.t, l.s.Load(ctx))
	jobs.Go(func() { _ = l.s.Run(ctx) })
	jobs.Go(func() { _ = l.serving.Serve(ctx, public, replicas) })
	l.ended = func() {
		for service, c := range l.conns {
			_ = c.Close()
			delete(l.conns, service)
		}
		server.Stop()
		cancel()
		jobs.Wait()
	}
}

func (l *lab) stop() {
	if l.ended != nil {
		l.ended()
		l.ended = nil
	}
}

func (l *lab) restart() {
	l.stop()
	l.start()
}

// Verify implements rpc.Verifier.
func (l *lab) Verify(_ context.Context, token, audience string) (*authn.Verified, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.tokens[token]
	if !ok || audience != issuer {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "not one of ours")
	}
	return v, nil
}

// VerifyDelivery implements rpc.Verifier: no run has ended here.
func (l *lab) VerifyDelivery(ctx context.Context, token, audience string) (*authn.Verified, error) {
	return l.Verify(ctx, token, audience)
}

// assign gives a user a role.
func (l *lab) assign(user, scope, role string) {
	l.t.Helper()
	l.mu.Lock()
	l.tokens[user] = &authn.Verified{Claims: authn.Claims{Subject: "usr_" + user, PrincipalType: "User"}}
	l.mu.Unlock()
	l.seq++
	must(l.t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq, Assignments: []*workspacev1.AssignmentRecord{
		{Uid: "asg_" + user + role + l.uids[scope], ScopeUid: l.uids[scope], Role: role, PrincipalUid: "usr_" + user},
	}}))
}

// dial connects to the RPCs as a service of the mesh.
func (l *lab) dial(service string) *grpc.ClientConn {
	l.t.Helper()
	if c := l.conns[service]; c != nil {
		return c
	}
	c, err := grpc.NewClient("passthrough:///"+l.addr, grpc.WithTransportCredentials(l.newSource(service).ClientCredentials(l.id("inference"))))
	must(l.t, err)
	l.conns[service] = c
	return c
}

func (l *lab) as(user string) context.Context {
	return metadata.AppendToOutgoingContext(l.t.Context(), "authorization", "Bearer "+user)
}

func (l *lab) rpc() inferencev1.EndpointServiceClient {
	return inferencev1.NewEndpointServiceClient(l.dial("gateway"))
}

func (l *lab) internal(service string) inferencev1.InferenceInternalServiceClient {
	return inferencev1.NewInferenceInternalServiceClient(l.dial(service))
}

// model uploads a version of the model m, and gives its name.
func (l *lab) model() string {
	l.t.Helper()
	s, err := inferencev1.NewModelServiceClient(l.dial("gateway")).UploadModelVersion(l.as("owner"))
	must(l.t, err)
	must(l.t, s.Send(&inferencev1.UploadModelVersionRequest{Parent: ws1 + "/models/m", CreateModel: true}))
	content := []byte("weights")
	must(l.t, s.Send(&inferencev1.UploadModelVersionRequest{File: &inferencev1.ModelFile{Path: "model.json", Size: int64(len(content)), Digest: sum(content)}, Data: content}))
	v, err := s.CloseAndRecv()
	must(l.t, err)
	return v.GetName()
}

// endpoint makes one in w1.
func (l *lab) endpoint(id string, in *inferencev1.NewEndpoint) *inferencev1.Endpoint {
	l.t.Helper()
	e, err := l.rpc().CreateEndpoint(l.as("owner"), &inferencev1.CreateEndpointRequest{Parent: ws1, EndpointId: id, Endpoint: in})
	must(l.t, err)
	return e
}

func (l *lab) keys(name string) *inferencev1.Credentials {
	l.t.Helper()
	c, err := l.rpc().GetCredentials(l.as("owner"), &inferencev1.GetCredentialsRequest{Name: name})
	must(l.t, err)
	return c
}

func spec(model string) *inferencev1.DeploymentSpec {
	return &inferencev1.DeploymentSpec{Model: model, Snapshot: snap, Compute: here}
}

// deploy makes a deployment.
func (l *lab) deploy(endpoint, id string, s *inferencev1.DeploymentSpec) *inferencev1.Deployment {
	l.t.Helper()
	d, err := l.rpc().CreateDeployment(l.as("owner"), &inferencev1.CreateDeploymentRequest{Parent: endpoint, DeploymentId: id, Deployment: s})
	must(l.t, err)
	return d
}

// until watches a deployment until it is as wanted.
func (l *lab) until(name, what string, ok func(d *inferencev1.Deployment) bool) *inferencev1.Deployment {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.as("owner"), longTime)
	defer cancel()
	w, err := l.rpc().WatchDeployment(ctx, &inferencev1.WatchDeploymentRequest{Name: name})
	must(l.t, err)
	var last *inferencev1.Deployment
	for {
		d, err := w.Recv()
		if err != nil {
			l.t.Fatalf("%s: %v; last it was %v", what, err, last)
		}
		if last = d; ok(d) {
			return d
		}
	}
}

func (l *lab) ready(name string) *inferencev1.Deployment {
	l.t.Helper()
	return l.until(name, "ready", isReady)
}

func isReady(d *inferencev1.Deployment) bool {
	return d.GetState() == inferencev1.Deployment_STATE_READY
}

// eventually repeats what becomes true soon.
func (l *lab) eventually(what string, f func() bool) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), longTime)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			l.t.Fatalf("it does not happen: %s", what)
		case <-tick.C:
		}
	}
}

// client speaks to the scoring listener.
func (l *lab) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(l.ca.Root())
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, ServerName: "localhost"}, MaxIdleConnsPerHost: 64}
	l.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// score asks an endpoint, and gives status and body.
func (l *lab) score(c *http.Client, uid, credential string) (int, string) {
	ctx, cancel := context.WithTimeout(context.Background(), longTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+l.public+"/endpoints/"+uid+"/score", bytes.NewReader([]byte(`{"data":[[1]]}`)))
	must(l.t, err)
	req.Header.Set("Content-Type", "application/json")
	if credential != "" {
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// log delivers what is in the outbox and returns all events so far.
func (l *lab) log() []*audit.Event {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.outbox.Relay(ctx, func(_ context.Context, events []*audit.Event) (int64, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.events = append(l.events, events...)
			return events[len(events)-1].GetSeq(), nil
		})
	}()
	l.eventually("the outbox is empty", func() bool {
		n, err := l.outbox.Depth(ctx)
		must(l.t, err)
		return n == 0
	})
	cancel()
	<-done
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events
}

// of are the events of a method or action.
func (l *lab) of(method string) (out []*audit.Event) {
	l.t.Helper()
	for _, ev := range l.log() {
		if strings.HasSuffix(ev.GetMethod(), method) {
			out = append(out, ev)
		}
	}
	return out
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks code and, unless it is 0, reason of an error that came over the wire.
func want(t testing.TB, name string, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	err = fault.FromStatus(err)
	if fault.Code(err) != code || reason != 0 && fault.ReasonOf(err) != reason {
		t.Errorf("%s: got %v %v (%v), want %v %v", name, fault.Code(err), fault.ReasonOf(err), err, code, reason)
	}
}

// worker answers requests on one connection to the replica listener.
func worker(c net.Conn, n int, answer func() (int, string)) {
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	fmt.Fprintf(w, "{\"worker\":%d}\n", n)
	if w.Flush() != nil {
		return
	}
	if line, err := r.ReadString('\n'); err != nil || line != "ok\n" {
		return
	}
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		status, body := answer()
		fmt.Fprintf(w, "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
		if w.Flush() != nil {
			return
		}
	}
}

// writing is a write transaction about the endpoints of a workspace.
func writing(fn func(ctx context.Context, x store.Endpoints) error, s *store.Store, key *envelope.Key) func(ctx context.Context, tx *sqldb.Tx) error {
	return func(ctx context.Context, tx *sqldb.Tx) error { return fn(ctx, s.Endpoints(tx, key)) }
}
