package rpc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	domain = "redoubt.test"
	issuer = "https://redoubt.test:7443"

	sub = "subscriptions/s"
	grp = sub + "/resourceGroups/g"
	ws  = grp + "/workspaces/w"
	ws2 = grp + "/workspaces/v"
	run = ws + "/runs/r1"

	owner, reader, stranger = "usr_owner", "usr_reader", "usr_stranger"
)

// services are contracts of several services: one chain here has methods of every kind.
var services = []string{
	"redoubt.telemetry.v1.MetricService", "redoubt.telemetry.v1.IngestService", "redoubt.keyvault.v1.SecretService",
	"redoubt.identity.v1.SignInService", "redoubt.identity.v1.TokenService", "redoubt.workspace.v1.SnapshotService", "redoubt.workspace.v1.AccessService", "redoubt.workspace.v1.ResourceService", "grpc.health.v1.Health",
}

// pki is made once: the keys and SVIDs of a mesh.
type pki struct {
	td        spiffeid.TrustDomain
	authority *svid.Authority
	source    *svid.Source
	close     func()
}

var mesh pki //nolint:gochecknoglobals // made by TestMain for all tests

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		panic(err)
	}
	if mesh, err = newPKI(dir); err != nil {
		panic(err)
	}
	code := m.Run()
	mesh.close()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func newPKI(dir string) (p pki, err error) {
	p.td = spiffeid.RequireTrustDomainFromString(domain)
	if p.authority, err = svid.NewAuthority(p.td, time.Now(), 24*time.Hour); err != nil {
		return p, err
	}
	id, err := svid.ServiceID(p.td, "telemetry")
	if err != nil {
		return p, err
	}
	keeper, err := svid.NewKeeper(svid.KeeperConfig{Dir: filepath.Join(dir, "svid"), ID: id, Issue: func(_ context.Context, _ crypto.Signer, csr []byte) (chain, bundle [][]byte, err error) {
		chain, _, err = p.authority.SignCSR(csr, id, time.Hour, time.Now())
		return chain, [][]byte{p.authority.Root().Raw}, err
	}})
	if err != nil {
		return p, err
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = keeper.Run(ctx) })
	if err := keeper.Ready(ctx); err != nil {
		stop()
		return p, err
	}
	workload, err := svid.NewWorkloadServer(svid.WorkloadConfig{Keeper: keeper, Dir: dir})
	if err != nil {
		stop()
		return p, err
	}
	if p.source, err = svid.NewSource(ctx, svid.SourceConfig{Addr: workload.Addr(), TrustDomain: p.td}); err != nil {
		stop()
		return p, err
	}
	p.close = func() {
		_ = p.source.Close()
		_ = workload.Close()
		stop()
		running.Wait()
	}
	return p, nil
}

// creds are the client side of mTLS with an SVID of path, "service/compute".
func (p pki) creds(t testing.TB, path string) credentials.TransportCredentials {
	t.Helper()
	key, err := authn.GenerateKey()
	ok(t, err)
	id := spiffeid.RequireFromString("spiffe://" + domain + "/" + path)
	chain, err := p.authority.Sign(&key.PublicKey, id, time.Hour, time.Now())
	ok(t, err)
	leaf, err := x509.ParseCertificate(chain[0])
	ok(t, err)
	own := &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
	return credentials.NewTLS(tlsconfig.MTLSClientConfig(own, x509bundle.FromX509Authorities(p.td, p.authority.Bundle()), tlsconfig.AuthorizeAny()))
}

// recorder is a Recorder that keeps what it gets, and can fail.
type recorder struct {
	mu         sync.Mutex
	recorded   []*audit.Event // by Record
	appended   []*audit.Event // by Append
	aggregated []*audit.Event // by Aggregate
	bursts     int            // of recorded, by RecordBurst
	err        error
	on         func()
}

func (r *recorder) take(to *[]*audit.Event, ev *audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.on != nil {
		r.on()
	}
	if r.err != nil {
		return r.err
	}
	*to = append(*to, ev)
	return nil
}

func (r *recorder) Append(_ context.Context, _ *sqldb.Tx, ev *audit.Event) error {
	return r.take(&r.appended, ev)
}
func (r *recorder) Record(_ context.Context, ev *audit.Event) error { return r.take(&r.recorded, ev) }
func (r *recorder) RecordOn(ctx context.Context, ev *audit.Event, g audit.Ground) error {
	if g.On != nil {
		if err := g.Still(ctx, nil); err != nil {
			return &audit.Withdrawn{Err: err}
		}
	}
	return r.take(&r.recorded, ev)
}
func (r *recorder) RecordBurst(ctx context.Context, ev *audit.Event, g audit.Ground) error {
	r.mu.Lock()
	r.bursts++
	r.mu.Unlock()
	return r.RecordOn(ctx, ev, g)
}
func (r *recorder) Aggregate(ev *audit.Event) { _ = r.take(&r.aggregated, ev) }

func (r *recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// counts are the numbers of events recorded, appended and aggregated.
func (r *recorder) counts() [3]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return [3]int{len(r.recorded), len(r.appended), len(r.aggregated)}
}

func (r *recorder) last(t testing.TB) *audit.Event {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.recorded) == 0 {
		t.Fatal("nothing was recorded")
	}
	return r.recorded[len(r.recorded)-1]
}

// keys is a KeySet of one key.
type keys struct {
	kid string
	pub *ecdsa.PublicKey
}

func (k keys) Key(_ context.Context, kid string) (*ecdsa.PublicKey, error) {
	if kid != k.kid {
		return nil, authn.ErrUnknownKey
	}
	return k.pub, nil
}
func (keys) Generation() uint64 { return 1 }

// handlers are the services behind the chain; a test sets those that it looks at.
type handlers struct {
	telemetryv1.UnimplementedMetricServiceServer
	telemetryv1.UnimplementedIngestServiceServer
	keyvaultv1.UnimplementedSecretServiceServer
	workspacev1.UnimplementedResourceServiceServer
	workspacev1.UnimplementedAccessServiceServer
	identityv1.UnimplementedSignInServiceServer
	identityv1.UnimplementedTokenServiceServer
	workspacev1.UnimplementedSnapshotServiceServer
	healthpb.UnimplementedHealthServer

	ran    atomic.Int64 // handlers that began
	unary  func(ctx context.Context) error
	log    func(grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error
	upload func(grpc.ClientStreamingServer[workspacev1.UploadBlobRequest, workspacev1.UploadBlobResponse]) error
	watch  func(*telemetryv1.WatchMetricsRequest, grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error
}

func (h *handlers) do(ctx context.Context) error {
	h.ran.Add(1)
	if h.unary == nil {
		return nil
	}
	return h.unary(ctx)
}

func (h *handlers) GetRunData(ctx context.Context, _ *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
	return &telemetryv1.RunData{}, h.do(ctx)
}
func (h *handlers) SetSecret(ctx context.Context, _ *keyvaultv1.SetSecretRequest) (*keyvaultv1.SecretVersion, error) {
	return &keyvaultv1.SecretVersion{}, h.do(ctx)
}
func (h *handlers) AccessSecret(ctx context.Context, _ *keyvaultv1.AccessSecretRequest) (*keyvaultv1.AccessSecretResponse, error) {
	return &keyvaultv1.AccessSecretResponse{Value: []byte("the secret")}, h.do(ctx)
}
func (h *handlers) DeleteSecret(ctx context.Context, _ *keyvaultv1.DeleteSecretRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, h.do(ctx)
}
func (h *handlers) DeleteSubscription(ctx context.Context, _ *workspacev1.DeleteSubscriptionRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, h.do(ctx)
}
func (h *handlers) CreateRoleAssignment(ctx context.Context, _ *workspacev1.CreateRoleAssignmentRequest) (*workspacev1.RoleAssignment, error) {
	return &workspacev1.RoleAssignment{}, h.do(ctx)
}
func (h *handlers) SignIn(ctx context.Context, _ *identityv1.SignInRequest) (*identityv1.SignInResponse, error) {
	return &identityv1.SignInResponse{}, h.do(ctx)
}
func (h *handlers) WhoAmI(ctx context.Context, _ *identityv1.WhoAmIRequest) (*identityv1.WhoAmIResponse, error) {
	return &identityv1.WhoAmIResponse{}, h.do(ctx)
}
func (h *handlers) Ingest(ctx context.Context, _ *telemetryv1.IngestRequest) (*telemetryv1.IngestResponse, error) {
	return &telemetryv1.IngestResponse{}, h.do(ctx)
}
func (h *handlers) PurgeWorkspace(ctx context.Context, _ *telemetryv1.PurgeWorkspaceRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, h.do(ctx)
}
func (h *handlers) FindMissingBlobs(ctx context.Context, _ *workspacev1.FindMissingBlobsRequest) (*workspacev1.FindMissingBlobsResponse, error) {
	return &workspacev1.FindMissingBlobsResponse{}, h.do(ctx)
}
func (h *handlers) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, h.do(ctx)
}

// LogRunData answers each message, unless the test says otherwise.
func (h *handlers) LogRunData(s grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
	if h.log != nil {
		return h.log(s)
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := h.do(s.Context()); err != nil {
			return err
		}
		if err := s.Send(&telemetryv1.LogRunDataResponse{BatchId: m.GetBatchId()}); err != nil {
			return err
		}
	}
}
func (h *handlers) UploadBlob(s grpc.ClientStreamingServer[workspacev1.UploadBlobRequest, workspacev1.UploadBlobResponse]) error {
	return h.upload(s)
}
func (h *handlers) WatchMetrics(r *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
	return h.watch(r, s)
}

// lab is a service of the mesh behind the real chain, with mTLS.
type lab struct {
	t      *testing.T
	cfg    Config
	chain  *Chain
	h      *handlers
	rec    *recorder
	engine *authz.Engine
	signer *authn.Signer
	seq    uint64 // of authorization changes
	sec    uint64 // of security changes
	jti    int
	addr   string
	odd    *bufconn.Listener // where peers say who they are, without proof: those that mTLS keeps out
	skew   atomic.Int64
	conns  map[string]*grpc.ClientConn
	logged *logs
	fence  atomic.Pointer[fence.Fence] // that hears what the engine has; nil where there is none
}

func (l *lab) now() time.Time          { return time.Now().Add(time.Duration(l.skew.Load())) }
func (l *lab) advance(d time.Duration) { l.skew.Add(int64(d)) }

type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (w *logs) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *logs) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, h: &handlers{}, rec: &recorder{}, conns: make(map[string]*grpc.ClientConn), odd: bufconn.Listen(1 << 20), logged: &logs{}}
	l.engine = authz.New(authz.Config{Now: l.now, OwnAuthorization: true, OwnSecurity: true, OnApplied: func(owner string, seq uint64) {
		if f := l.fence.Load(); f != nil {
			f.Delivered(owner, seq)
		}
	}})
	l.assign(&workspacev1.WatchAuthorizationResponse{
		Reset_: true, Complete: true, Roles: authz.BuiltinRoles(),
		Scopes: []*workspacev1.ScopeRecord{
			{Uid: "sub_1", Name: sub, Active: true}, {Uid: "rgp_1", Name: grp, ParentUid: "sub_1", Active: true},
			{Uid: "ws_1", Name: ws, ParentUid: "rgp_1", Active: true}, {Uid: "ws_2", Name: ws2, ParentUid: "rgp_1", Active: true},
		},
		Assignments: []*workspacev1.AssignmentRecord{
			{Uid: "asg_owner", ScopeUid: "rgp_1", Role: authz.Owner, PrincipalUid: owner},
			{Uid: "asg_reader", ScopeUid: "ws_1", Role: authz.Reader, PrincipalUid: reader},
		},
	})
	l.secure(&identityv1.WatchSecurityResponse{Reset_: true, Complete: true})
	key, err := authn.GenerateKey()
	ok(t, err)
	l.signer, err = authn.NewSigner(key, "k1")
	ok(t, err)
	verifier, err := authn.New(authn.Config{Issuer: issuer, Keys: keys{"k1", &key.PublicKey}, Revocations: l.engine.Revocations(), Now: l.now})
	ok(t, err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{Now: l.now})
	ok(t, err)
	rules, err := rule.Load(services...)
	ok(t, err)
	l.cfg = Config{
		Service: "telemetry", TrustDomain: domain, Installation: domain, Issuer: issuer, PublicURL: issuer, Rules: rules, Verifier: verifier,
		Proofs: proofs, Engine: l.engine, Recorder: l.rec, Logger: slog.New(slog.NewTextHandler(l.logged, nil)), Now: l.now,
	}
	for _, f := range change {
		f(&l.cfg)
	}
	l.chain, err = NewChain(l.cfg)
	ok(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	l.addr = ln.Addr().String()
	// Whoever has an SVID connects: the chain holds by itself.
	l.serve(mesh.source.ServerCredentials(func(spiffeid.ID) error { return nil }), ln)
	l.serve(introduced{}, l.odd)
	return l
}

func (l *lab) serve(creds credentials.TransportCredentials, ln net.Listener) {
	s := l.chain.NewServer(creds, services...)
	l.register(l.chain.Registrar(s))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	l.t.Cleanup(func() { s.Stop(); <-done })
}

func (l *lab) register(r grpc.ServiceRegistrar) {
	telemetryv1.RegisterMetricServiceServer(r, l.h)
	telemetryv1.RegisterIngestServiceServer(r, l.h)
	keyvaultv1.RegisterSecretServiceServer(r, l.h)
	workspacev1.RegisterAccessServiceServer(r, l.h)
	workspacev1.RegisterResourceServiceServer(r, l.h)
	identityv1.RegisterSignInServiceServer(r, l.h)
	identityv1.RegisterTokenServiceServer(r, l.h)
	workspacev1.RegisterSnapshotServiceServer(r, l.h)
	healthpb.RegisterHealthServer(r, l.h)
}

// assign applies a change of authorization.
func (l *lab) assign(m *workspacev1.WatchAuthorizationResponse) {
	l.t.Helper()
	l.seq++
	m.Seq = l.seq
	ok(l.t, l.engine.ApplyAuthorization(m))
}

// secure applies a change of revocations.
func (l *lab) secure(m *identityv1.WatchSecurityResponse) {
	l.t.Helper()
	l.sec++
	m.Seq = l.sec
	ok(l.t, l.engine.ApplySecurity(m))
}

// as is a connection with the SVID of path, "service/gateway".
func (l *lab) as(path string) *grpc.ClientConn {
	l.t.Helper()
	return l.conn("mtls "+path, l.addr, grpc.WithTransportCredentials(mesh.creds(l.t, path)))
}

// claiming is a connection whose peer ID is what it says, past mTLS.
func (l *lab) claiming(id string) *grpc.ClientConn {
	l.t.Helper()
	return l.conn("odd "+id, "test", grpc.WithTransportCredentials(introduced{id}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.odd.DialContext(ctx) }))
}

func (l *lab) conn(key, target string, opts ...grpc.DialOption) *grpc.ClientConn {
	l.t.Helper()
	if c := l.conns[key]; c != nil {
		return c
	}
	c, err := grpc.NewClient("passthrough:///"+target, opts...)
	ok(l.t, err)
	l.t.Cleanup(func() { _ = c.Close() })
	l.conns[key] = c
	return c
}

func (l *lab) gateway() *grpc.ClientConn { return l.as("service/gateway") }

// token mints a token of sub for the installation.
func (l *lab) token(sub string, change ...func(*authn.Claims)) string {
	l.t.Helper()
	l.jti++
	c := authn.Claims{
		Issuer: issuer, Audience: []string{issuer}, Subject: sub, PrincipalType: authn.User, ClientID: "cli", ID: fmt.Sprintf("jti_%d", l.jti),
		SessionID: "ses_" + sub, IssuedAt: l.now().Truncate(time.Second), Expiry: l.now().Truncate(time.Second).Add(time.Hour),
	}
	for _, f := range change {
		f(&c)
	}
	s, err := l.signer.Mint(c)
	ok(l.t, err)
	return s
}

// expired makes a token that has ended.
func expired(c *authn.Claims) {
	c.IssuedAt, c.Expiry = c.IssuedAt.Add(-time.Hour), c.IssuedAt.Add(-time.Minute)
}

// exchangedBy makes a token that the service may send on to the lab's.
func exchangedBy(by string) func(*authn.Claims) {
	return func(c *authn.Claims) {
		c.Audience = []string{"spiffe://" + domain + "/service/telemetry"}
		c.Actor = &authn.Actor{Subject: "spiffe://" + domain + "/service/" + by}
	}
}

func bearer(t testing.TB, token string, more ...string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), append([]string{"authorization", "Bearer " + token}, more...)...)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refusedAs fails unless err has this code and reason.
func refusedAs(t testing.TB, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	got := fault.FromStatus(err)
	if fault.Code(got) != code || fault.ReasonOf(got) != reason {
		t.Fatalf("got %s %s (%v), want %s %s", fault.Code(got), fault.ReasonOf(got), err, code, reason)
	}
}

// introduced is a connection whose client says who it is. The handshake itself is pkg/svid's.
type introduced struct{ as string }

func (c introduced) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(c.as))), c.as...))
	return conn, &svid.PeerInfo{}, err
}

func (c introduced) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, nil, err
	}
	id := make([]byte, binary.BigEndian.Uint16(head))
	_, err := io.ReadFull(conn, id)
	return conn, &svid.PeerInfo{PeerID: string(id)}, err
}

func (c introduced) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "test"}
}
func (c introduced) Clone() credentials.TransportCredentials { return c }
func (c introduced) OverrideServerName(string) error         { return nil }
