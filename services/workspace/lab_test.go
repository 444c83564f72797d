package workspace

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	domain = "mesh.test"
	issuer = "https://redoubt.test"
	group1 = "subscriptions/default/resourceGroups/default"
)

// Principals of the tests.
var (
	admin = resource.NewUID("usr")
	ada   = resource.NewUID("usr")
	bob   = resource.NewUID("usr")
)

// peers are the services beside this one. Each call is noted, and fails where fail says so.
type peers struct {
	mu     sync.Mutex
	calls  []string
	fail   map[string]error
	before func(method string)
	ids    map[string]string // managed identity by workspace
	vaults map[string]bool
}

func (p *peers) call(method, ws string, done func()) error {
	p.mu.Lock()
	before := p.before
	p.mu.Unlock()
	if before != nil {
		before(method)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, method+" "+ws)
	if err := p.fail[method]; err != nil {
		return fault.ToStatus(err, "redoubt."+domain, "").Err()
	}
	done()
	return nil
}

func (p *peers) set(method string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = map[string]error{method: err}
}

func (p *peers) CreateManagedIdentity(_ context.Context, req *identityv1.CreateManagedIdentityRequest, _ ...grpc.CallOption) (*identityv1.ManagedIdentity, error) {
	ws := req.GetWorkspaceUid()
	err := p.call("CreateManagedIdentity", ws, func() {
		if p.ids[ws] == "" {
			p.ids[ws] = resource.NewUID("mid")
		}
	})
	if err != nil {
		return nil, err
	}
	return &identityv1.ManagedIdentity{Uid: p.ids[ws], WorkspaceUid: ws}, nil
}

func (p *peers) DeleteManagedIdentity(_ context.Context, req *identityv1.DeleteManagedIdentityRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, p.call("DeleteManagedIdentity", req.GetWorkspaceUid(), func() { delete(p.ids, req.GetWorkspaceUid()) })
}

func (p *peers) ResolvePrincipals(_ context.Context, req *identityv1.ResolvePrincipalsRequest, _ ...grpc.CallOption) (*identityv1.ResolvePrincipalsResponse, error) {
	out := &identityv1.ResolvePrincipalsResponse{}
	for name, uid := range map[string]string{"users/admin": admin, "users/ada": ada, "users/bob": bob} {
		if slices.Contains(req.GetUids(), uid) || slices.Contains(req.GetNames(), name) {
			out.Principals = append(out.Principals, &identityv1.Principal{Uid: uid, Name: name})
		}
	}
	return out, p.call("ResolvePrincipals", "", func() {})
}

func (p *peers) KeepAdministrator(_ context.Context, req *identityv1.KeepAdministratorRequest, _ ...grpc.CallOption) (*identityv1.KeepAdministratorResponse, error) {
	out := &identityv1.KeepAdministratorResponse{}
	for _, uid := range req.GetPrincipalUids() {
		if uid == admin || uid == ada {
			out.PrincipalUid, out.UserUid = uid, uid
		}
	}
	if out.GetUserUid() == "" {
		return nil, fault.ToStatus(fault.New(codes.FailedPrecondition, faultv1.Reason_AUTHZ_LAST_OWNER, "nobody is left"), "redoubt."+domain, "").Err()
	}
	return out, p.call("KeepAdministrator", "", func() {})
}

// others are the peers whose methods have names of their own.
type vaultPeer struct {
	*peers
	keyvaultv1.VaultServiceClient
}

func (p vaultPeer) CreateVault(_ context.Context, req *keyvaultv1.CreateVaultRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, p.call("CreateVault", req.GetWorkspaceUid(), func() { p.vaults[req.GetWorkspaceUid()] = true })
}

func (p vaultPeer) DeleteVault(_ context.Context, req *keyvaultv1.DeleteVaultRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, p.call("DeleteVault", req.GetWorkspaceUid(), func() { delete(p.vaults, req.GetWorkspaceUid()) })
}

type runPeer struct {
	*peers
	computev1.RunInternalServiceClient
}

func (p runPeer) PurgeWorkspace(_ context.Context, req *computev1.PurgeWorkspaceRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, p.call("PurgeRuns", req.GetWorkspaceUid(), func() {})
}

type endpointPeer struct {
	*peers
	inferencev1.InferenceInternalServiceClient
}

func (p endpointPeer) PurgeWorkspace(_ context.Context, req *inferencev1.PurgeWorkspaceRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, p.call("PurgeEndpoints", req.GetWorkspaceUid(), func() {})
}

type ingestPeer struct {
	*peers
	telemetryv1.IngestServiceClient
}

func (p ingestPeer) PurgeWorkspace(_ context.Context, req *telemetryv1.PurgeWorkspaceRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, p.call("PurgeMetrics", req.GetWorkspaceUid(), func() {})
}

// introduced is a connection whose client says who it is. The handshake itself is tested in pkg/svid.
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

// verifier takes "<principal>" for a token of that principal, and "<principal> <run> <workspace uid> <action>" for a run's.
type verifier struct{}

func (verifier) Verify(_ context.Context, token, _ string) (*authn.Verified, error) {
	f := strings.Split(token, "|")
	c := authn.Claims{Subject: f[0], PrincipalType: authn.User, ID: "jti", AuthTime: time.Now(), ACR: authn.ACRPassword}
	if len(f) == 4 {
		c.Run, c.Workspace, c.Actions = f[1], f[2], []string{f[3]}
	}
	return &authn.Verified{Claims: c}, nil
}

// VerifyDelivery implements rpc.Verifier: no run has ended here.
func (v verifier) VerifyDelivery(ctx context.Context, token, audience string) (*authn.Verified, error) {
	return v.Verify(ctx, token, audience)
}

// lab is the service behind its chain.
type lab struct {
	t *testing.T
	*Service
	peers *peers
	db    *sqldb.DB
	dir   string
	cfg   Config

	mu     sync.Mutex
	clock  time.Duration
	events []*audit.Event

	resources workspacev1.ResourceServiceClient
	access    workspacev1.AccessServiceClient
	snapshots workspacev1.SnapshotServiceClient
	state     workspacev1.AuthorizationStateServiceClient
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), peers: &peers{ids: map[string]string{}, vaults: map[string]bool{}}}
	l.db = sqldbtest.Open(t, envelope.Migrations(), leader.Migrations(), audit.Migrations(), Migrations())
	ring := func(name string) *envelope.Keyring {
		sl, err := seal.OpenFile(filepath.Join(l.dir, name+".key"), true)
		l.ok(err)
		k, err := envelope.New(envelope.Config{Source: envelope.SealSource(sl, name), DB: l.db})
		l.ok(err)
		return k
	}
	own := ring("workspace")
	outbox, err := audit.New(audit.Config{Service: "workspace", DB: l.db, Keys: own})
	l.ok(err)
	blobs, err := blob.Open(t.Context(), blob.Config{Dir: filepath.Join(l.dir, "blob")})
	l.ok(err)
	t.Cleanup(func() { _ = blobs.Close() })
	l.cfg = Config{
		DB: l.db, Outbox: outbox, Own: own, Keys: ring("vault"), Blobs: blobs, Engine: authz.New(authz.Config{OwnAuthorization: true, OwnSecurity: true}),
		Identity: l.peers, Vaults: vaultPeer{peers: l.peers}, Runs: runPeer{peers: l.peers}, Ingest: ingestPeer{peers: l.peers}, Endpoints: endpointPeer{peers: l.peers},
		Now: func() time.Time {
			l.mu.Lock()
			defer l.mu.Unlock()
			return time.Now().Add(l.clock)
		},
	}
	for _, f := range change {
		f(&l.cfg)
	}
	l.ok(l.cfg.Engine.ApplySecurity(&identityv1.WatchSecurityResponse{Reset_: true, Complete: true}))
	l.Service, err = New(l.cfg)
	l.ok(err)
	t.Cleanup(func() { l.ok(l.Close()) })
	l.ok(l.Bootstrap(t.Context(), admin))
	l.serve()
	return l
}

// serve puts the chain in front of the service, and dials it as the gateway and as compute.
func (l *lab) serve() {
	rules, err := rule.Load(rule.Registered("redoubt.workspace")...)
	l.ok(err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{})
	l.ok(err)
	chain, err := rpc.NewChain(rpc.Config{
		Service: "workspace", TrustDomain: domain, Installation: domain, Issuer: issuer, PublicURL: issuer, Rules: rules,
		Verifier: verifier{}, Proofs: proofs, Engine: l.cfg.Engine, Recorder: l.cfg.Outbox, Logger: slog.New(slog.DiscardHandler),
	})
	l.ok(err)
	server := chain.NewServer(introduced{}, rule.Registered("redoubt.workspace")...)
	l.Register(chain.Registrar(server))
	pipe := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(pipe) }()
	l.t.Cleanup(server.Stop)
	dial := func(as string) *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(introduced{"spiffe://" + domain + "/service/" + as}),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }))
		l.ok(err)
		l.t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	gateway := dial("gateway")
	l.resources, l.access, l.snapshots = workspacev1.NewResourceServiceClient(gateway), workspacev1.NewAccessServiceClient(gateway), workspacev1.NewSnapshotServiceClient(gateway)
	l.state = workspacev1.NewAuthorizationStateServiceClient(dial("compute"))
}

func (l *lab) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// want checks code and reason of a refusal.
func (l *lab) want(err error, code codes.Code, reason faultv1.Reason) {
	l.t.Helper()
	err = fault.FromStatus(err)
	if fault.Code(err) != code || reason != 0 && fault.ReasonOf(err) != reason {
		l.t.Errorf("%v %v (%v), and not %v %v", fault.Code(err), fault.ReasonOf(err), err, code, reason)
	}
}

// as is the context of a call by someone.
func (l *lab) as(token string) context.Context {
	return metadata.AppendToOutgoingContext(l.t.Context(), "authorization", "Bearer "+token)
}

// advance moves the service's clock.
func (l *lab) advance(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock += d
}

// make makes a workspace in the default group.
func (l *lab) make(who, id string) *workspacev1.Workspace {
	l.t.Helper()
	w, err := l.resources.CreateWorkspace(l.as(who), &workspacev1.CreateWorkspaceRequest{Parent: group1, WorkspaceId: id})
	l.ok(err)
	return w
}

func (l *lab) grant(scope, role, principal string) *workspacev1.RoleAssignment {
	l.t.Helper()
	a, err := l.access.CreateRoleAssignment(l.as(admin), &workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: role, Principal: principal})
	l.ok(err)
	return a
}

// count is the answer of a query that counts.
func (l *lab) count(query string, args ...any) (n int) {
	l.t.Helper()
	l.ok(l.db.Reader().QueryRowContext(l.t.Context(), query, args...).Scan(&n))
	return n
}

// nothing checks that a workspace left nothing anywhere.
func (l *lab) nothing(uid string) {
	l.t.Helper()
	l.peers.mu.Lock()
	defer l.peers.mu.Unlock()
	if len(l.peers.ids) > 0 || len(l.peers.vaults) > 0 {
		l.t.Errorf("left at the peers: %v %v", l.peers.ids, l.peers.vaults)
	}
	for _, q := range []string{
		"SELECT COUNT(*) FROM scopes WHERE kind = 'workspaces'", "SELECT COUNT(*) FROM assignments WHERE scope_uid <> ''", "SELECT COUNT(*) FROM blobs",
		"SELECT COUNT(*) FROM snapshots", "SELECT COUNT(*) FROM data_keys WHERE destroyed = 0 AND (owner LIKE 'ws%' OR owner LIKE 'own.%')",
	} {
		if n := l.count(q); n != 0 {
			l.t.Errorf("%d left: %s", n, q)
		}
	}
	for info, err := range l.cfg.Blobs.List(l.t.Context(), "") {
		l.t.Errorf("left: %s %v", info.Name, err)
	}
	if _, ok := l.cfg.Engine.Resolve(must(resource.Parse(group1 + "/workspaces/w1"))); ok {
		l.t.Error("the engine still knows it")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// log delivers what is in the outbox and returns all events so far.
func (l *lab) log() []*audit.Event {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.cfg.Outbox.Relay(ctx, func(_ context.Context, events []*audit.Event) (int64, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.events = append(l.events, events...)
			return events[len(events)-1].GetSeq(), nil
		})
	}()
	for {
		n, err := l.cfg.Outbox.Depth(ctx)
		l.ok(err)
		if n == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	return l.events
}

// last are the events of a method.
func (l *lab) of(method string) (out []*audit.Event) {
	for _, ev := range l.log() {
		if strings.HasSuffix(ev.GetMethod(), "/"+method) {
			out = append(out, ev)
		}
	}
	return out
}
