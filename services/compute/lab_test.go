package compute

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const (
	trust  = "redoubt.test"
	issuer = "https://redoubt.test:7443"

	sub1 = "subscriptions/s1"
	grp1 = sub1 + "/resourceGroups/g1"
	ws1  = grp1 + "/workspaces/w1"
	ws2  = grp1 + "/workspaces/w2"
	snap = "/snapshots/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// lab is compute behind the real chain on a real socket with a real database and a clock of the test's. Its loop is not running: step
// is one turn of it. The peers and the driver are the test's own.
type lab struct {
	t      testing.TB
	cfg    Config
	s      *Service
	db     *sqldb.DB
	engine *authz.Engine
	addr   string
	uids   map[string]string
	seq    uint64 // of workspace's stream
	sec    uint64 // of identity's
	fence  *fence.Fence
	peers  *peers
	driver *recorder
	data   *logged
	conns  map[string]*grpc.ClientConn
	*world
}

// world is what the instances of a lab share beside their database.
type world struct {
	seals map[string]*seal.Seal

	mu     sync.Mutex
	clock  time.Time
	tokens map[string]*authn.Verified
}

func (l *lab) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock
}

func (l *lab) advance(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock = l.clock.Add(d)
}

// peers are identity and workspace, as far as compute asks them.
type peers struct {
	identityv1.TokenServiceClient
	identityv1.AgentServiceClient
	workspacev1.SnapshotServiceClient

	mu                          sync.Mutex
	actAs, join, snapshot, away error
	acting, joining             func() // before the answer of ActAs and of CreateAgentJoin
	joins                       []*identityv1.CreateAgentJoinRequest
	revoked                     []string // whose tokens open nothing any more
	narrowed                    map[string]time.Time
	enrolled                    map[string]bool // runs whose agents have come to identity
}

func (p *peers) answer(err error) error {
	if p.away != nil {
		err = p.away
	}
	if err == nil {
		return nil
	}
	return fault.ToStatus(err, trust, "").Err()
}

func (p *peers) set(fn func(p *peers)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn(p)
}

// before runs a hook that may wait.
func (p *peers) before(hook *func()) {
	p.mu.Lock()
	fn := *hook
	p.mu.Unlock()
	if fn != nil {
		fn()
	}
}

func (p *peers) ActAs(context.Context, *identityv1.ActAsRequest, ...grpc.CallOption) (*identityv1.TokenResponse, error) {
	p.before(&p.acting)
	p.mu.Lock()
	defer p.mu.Unlock()
	return &identityv1.TokenResponse{AccessToken: "acting"}, p.answer(p.actAs)
}

func (p *peers) RevokeRun(_ context.Context, in *identityv1.RevokeRunRequest, _ ...grpc.CallOption) (*emptypb.Empty, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.answer(nil); err != nil {
		return nil, err
	}
	if t := in.GetDeliverUntil(); t != nil {
		if p.narrowed == nil {
			p.narrowed = make(map[string]time.Time)
		}
		p.narrowed[in.GetRunUid()] = t.AsTime()
		return &emptypb.Empty{}, nil
	}
	p.revoked = append(p.revoked, in.GetRunUid())
	return &emptypb.Empty{}, nil
}

func (p *peers) CreateAgentJoin(_ context.Context, in *identityv1.CreateAgentJoinRequest, _ ...grpc.CallOption) (*identityv1.AgentJoin, error) {
	p.before(&p.joining)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.answer(p.join); err != nil {
		return nil, err
	}
	if p.enrolled[in.GetRunUid()] {
		return nil, p.answer(fault.AlreadyExists("an agent has come for the run already"))
	}
	p.joins = append(p.joins, in)
	return &identityv1.AgentJoin{JoinToken: fmt.Sprintf("join %s %d", in.GetRunUid(), len(p.joins))}, nil
}

func (p *peers) GetSnapshot(context.Context, *workspacev1.GetSnapshotRequest, ...grpc.CallOption) (*workspacev1.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return &workspacev1.Snapshot{}, p.answer(p.snapshot)
}

// recorder is a driver that writes down what it is asked.
type recorder struct {
	mu              sync.Mutex
	fail            error
	before          func() // of each Start
	started         map[string]int
	gone            map[string]bool
	killed, cleaned []string
}

func newRecorder() *recorder {
	return &recorder{started: make(map[string]int), gone: make(map[string]bool)}
}

func (d *recorder) Start(_ context.Context, p Placement) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.before != nil {
		d.before()
	}
	d.started[p.RunUID]++
	return d.fail
}

func (d *recorder) Gone(uid string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone[uid]
}

func (d *recorder) Kill(uid string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.killed = append(d.killed, uid)
}

func (d *recorder) Clean(uid string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cleaned = append(d.cleaned, uid)
}

func (d *recorder) Left() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var left []string
	for uid := range d.started {
		if !slices.Contains(d.cleaned, uid) {
			left = append(left, uid)
		}
	}
	return left
}

func (d *recorder) starts(uid string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.started[uid]
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := newStill(t, sqldbtest.Open(t, envelope.Migrations(), audit.Migrations(), Migrations()))
	l.serve()
	return l
}

// newStill is a lab that nobody can call.
func newStill(t testing.TB, db *sqldb.DB) *lab {
	t.Helper()
	l := &lab{
		t: t, db: db, uids: map[string]string{"/": ""}, peers: &peers{}, driver: newRecorder(), data: newLogged(), conns: make(map[string]*grpc.ClientConn),
		world: &world{seals: make(map[string]*seal.Seal), clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), tokens: make(map[string]*authn.Verified)},
	}
	for _, service := range []string{"compute", "keyvault"} {
		s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		must(t, err)
		l.seals[service] = s
	}
	blobs, err := blob.Open(t.Context(), blob.Config{Dir: filepath.Join(t.TempDir(), "blob")})
	must(t, err)
	t.Cleanup(func() { _ = blobs.Close() })

	l.engine = authz.New(authz.Config{MaxStale: 1e6 * time.Hour, Now: l.now})
	l.seq++
	state := &workspacev1.WatchAuthorizationResponse{Seq: l.seq, Reset_: true, Complete: true, Roles: authz.BuiltinRoles()}
	for _, at := range []struct{ name, parent, prefix string }{{sub1, "/", "sub"}, {grp1, sub1, "rgp"}, {ws1, grp1, "ws"}, {ws2, grp1, "ws"}} {
		l.uids[at.name] = resource.NewUID(at.prefix)
		state.Scopes = append(state.Scopes, &workspacev1.ScopeRecord{Uid: l.uids[at.name], Name: at.name, ParentUid: l.uids[at.parent], Active: true})
	}
	must(t, l.engine.ApplyAuthorization(state))
	l.sec = 1
	must(t, l.engine.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: l.sec, Reset_: true, Complete: true}))
	l.assign("owner", sub1, authz.Owner)
	l.assign("reader", sub1, authz.Reader)

	l.cfg = Config{
		Blobs: blobs, Engine: l.engine, Tokens: l.peers, Agents: l.peers, Snapshots: l.peers, RunData: l.data,
		Dir: t.TempDir(), Gateway: "127.0.0.1:1", PublicURL: issuer, CA: func() ([]byte, error) { return []byte("pem"), nil }, Driver: l.driver, Heartbeat: time.Second, Silence: 3 * time.Second, Instance: "a", StartGrace: 10 * time.Second,
		CancelGrace: 5 * time.Second, LostGrace: 20 * time.Second, MaxLogBytes: 1000, MaxOutputBytes: 1000, MaxOutputs: 3, Now: l.now,
	}
	l.open(db)
	return l
}

// open makes the service on a database.
func (l *lab) open(db *sqldb.DB) {
	l.t.Helper()
	l.db, l.cfg.DB = db, db
	for service, ring := range map[string]**envelope.Keyring{"compute": &l.cfg.Own, "keyvault": &l.cfg.Keys} {
		var err error
		*ring, err = envelope.New(envelope.Config{Source: envelope.SealSource(l.seals[service], service), DB: db})
		must(l.t, err)
	}
	var err error
	l.cfg.Outbox, err = audit.New(audit.Config{Service: "compute", DB: db, Keys: l.cfg.Own})
	must(l.t, err)
	l.restart()
}

// twin is another instance of the service, with a machine of its own.
func (l *lab) twin(db *sqldb.DB, instance string) *lab {
	l.t.Helper()
	other := *l
	other.driver, other.conns, other.addr = newRecorder(), make(map[string]*grpc.ClientConn), ""
	other.cfg.Driver, other.cfg.Instance = other.driver, instance
	other.open(db)
	return &other
}

// restart is the service as a new process on the same database has it.
func (l *lab) restart() {
	l.t.Helper()
	var err error
	l.s, err = New(l.cfg)
	must(l.t, err)
}

func (l *lab) serve() {
	l.t.Helper()
	rules, err := rule.Load(rule.Registered("redoubt.compute")...)
	must(l.t, err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{})
	must(l.t, err)
	chain, err := rpc.NewChain(rpc.Config{
		Service: "compute", TrustDomain: trust, Installation: trust, Issuer: issuer, PublicURL: issuer, Rules: rules,
		Verifier: l, Proofs: proofs, Engine: l.engine, Fence: l.fence, Recorder: l.cfg.Outbox, Logger: slog.New(slog.DiscardHandler),
	})
	must(l.t, err)
	server := chain.NewServer(says{}, rule.Registered("redoubt.compute")...)
	l.s.Register(chain.Registrar(server))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(l.t, err)
	l.addr = listener.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	l.t.Cleanup(func() {
		for _, c := range l.conns {
			_ = c.Close()
		}
		server.Stop()
		wg.Wait()
	})
}

// step is one turn of the service's loop.
func (l *lab) step() {
	l.t.Helper()
	ctx := l.t.Context()
	if err := errors.Join(l.s.queue.StartQueued(ctx), l.s.queue.WatchActive(ctx), l.s.queue.Tend(ctx), l.s.queue.RevokeEnded(ctx)); err != nil {
		l.t.Fatal(err)
	}
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

// VerifyDelivery implements rpc.Verifier. What tokens open is not decided here: this service has to hold by itself.
func (l *lab) VerifyDelivery(ctx context.Context, token, audience string) (*authn.Verified, error) {
	return l.Verify(ctx, token, audience)
}

// assign gives a user a role, and unassign takes it away.
func (l *lab) assign(user, scope, role string) {
	l.t.Helper()
	l.tokens[user] = &authn.Verified{Claims: authn.Claims{Subject: "usr_" + user, PrincipalType: "User"}}
	l.seq++
	must(l.t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq, Assignments: []*workspacev1.AssignmentRecord{
		{Uid: "asg_" + user + role + l.uids[scope], ScopeUid: l.uids[scope], Role: role, PrincipalUid: "usr_" + user},
	}}))
}

func (l *lab) unassign(user, scope, role string) {
	l.t.Helper()
	l.seq++
	must(l.t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq, Removed: []string{"asg_" + user + role + l.uids[scope]}}))
}

func (l *lab) dial(service string) *grpc.ClientConn {
	l.t.Helper()
	if c := l.conns[service]; c != nil {
		return c
	}
	c, err := grpc.NewClient("passthrough:///"+l.addr, grpc.WithTransportCredentials(says{"spiffe://" + trust + "/service/" + service}))
	must(l.t, err)
	l.conns[service] = c
	return c
}

func (l *lab) as(user string) context.Context {
	return metadata.AppendToOutgoingContext(l.t.Context(), "authorization", "Bearer "+user)
}

func (l *lab) computes() computev1.ComputeServiceClient {
	return computev1.NewComputeServiceClient(l.dial("gateway"))
}

func (l *lab) runs() computev1.RunServiceClient {
	return computev1.NewRunServiceClient(l.dial("gateway"))
}

func (l *lab) target(kind computev1.Compute_Kind, maxRuns int32) string {
	l.t.Helper()
	id := strings.ToLower(kind.String()[len("KIND_"):])
	c, err := l.computes().CreateCompute(l.as("owner"), &computev1.CreateComputeRequest{Parent: ws1, ComputeId: strings.ReplaceAll(id, "_", "-"), Kind: kind, MaxRuns: maxRuns})
	must(l.t, err)
	return c.GetName()
}

func (l *lab) request(compute, id string) *computev1.SubmitRunRequest {
	return &computev1.SubmitRunRequest{Parent: ws1, RunId: id, Compute: compute, Snapshot: ws1 + snap, Command: []string{"true"}}
}

func (l *lab) submit(compute, id string) *computev1.Run {
	l.t.Helper()
	r, err := l.runs().SubmitRun(l.as("owner"), l.request(compute, id))
	must(l.t, err)
	l.advance(time.Millisecond)
	return r
}

// stored is a run as the database has it.
func (l *lab) stored(uid string) *store.Run {
	l.t.Helper()
	r, err := l.s.store.RunByUID(l.t.Context(), uid)
	must(l.t, err)
	return r
}

func (l *lab) is(name, uid string, state computev1.Run_State, reason faultv1.Reason) {
	l.t.Helper()
	r := l.stored(uid)
	got := r.Outcome.GetReason()
	if r.State != state || reason == 0 && got != "" || reason != 0 && got != reason.String() {
		l.t.Errorf("%s: %v %s (%s), want %v %v", name, r.State, got, r.Outcome.GetMessage(), state, reason)
	}
}

// agent carries a run.
type agent struct {
	l      *lab
	name   string
	token  string
	prover *authn.Prover
}

// agent has a run token with a key of its own.
func (l *lab) agent(uid string) *agent {
	l.t.Helper()
	r := l.stored(uid)
	key, err := authn.GenerateKey()
	must(l.t, err)
	prover, err := authn.NewProver(key, time.Now)
	must(l.t, err)
	a := &agent{l: l, name: r.Name(), token: "run " + resource.NewUID("tok"), prover: prover}
	a.token = strings.ReplaceAll(a.token, " ", "-")
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens[a.token] = &authn.Verified{Claims: authn.Claims{
		Subject: r.Submitter, PrincipalType: "User", Run: uid, Workspace: r.Workspace, Actions: queue.Actions(r), Confirmation: prover.Thumbprint(),
	}}
	return a
}

func (a *agent) rpc() computev1.AgentRunServiceClient {
	return computev1.NewAgentRunServiceClient(a.l.dial("gateway"))
}

func (a *agent) ctx(method string) context.Context {
	a.l.t.Helper()
	proof, err := a.prover.Proof("POST", issuer+"/redoubt.compute.v1.AgentRunService/"+method, a.token, "")
	must(a.l.t, err)
	return metadata.AppendToOutgoingContext(a.l.t.Context(), "authorization", "DPoP "+a.token, "dpop", proof)
}

func (a *agent) assignment() (*computev1.Assignment, error) {
	return a.rpc().GetAssignment(a.ctx("GetAssignment"), &computev1.GetAssignmentRequest{Name: a.name})
}

func (a *agent) heartbeat() (bool, error) {
	res, err := a.rpc().Heartbeat(a.ctx("Heartbeat"), &computev1.HeartbeatRequest{Name: a.name})
	return res.GetCancel(), err
}

func (a *agent) log(offset int64, data string) (*computev1.AppendLogsResponse, error) {
	s, err := a.rpc().AppendLogs(a.ctx("AppendLogs"))
	must(a.l.t, err)
	_ = s.Send(&computev1.AppendLogsRequest{Name: a.name, Offset: offset, Data: []byte(data)})
	_ = s.CloseSend()
	return s.Recv()
}

func (a *agent) upload(path, content string, change func(*computev1.UploadOutputRequest)) (*computev1.Output, error) {
	s, err := a.rpc().UploadOutput(a.ctx("UploadOutput"))
	must(a.l.t, err)
	sum := sha256.Sum256([]byte(content))
	first := &computev1.UploadOutputRequest{Name: a.name, Path: path, Size: int64(len(content)), Digest: sum[:]}
	if change != nil {
		change(first)
	}
	_ = s.Send(first)
	for part := range slices.Chunk([]byte(content), 100) {
		_ = s.Send(&computev1.UploadOutputRequest{Data: part})
	}
	return s.CloseAndRecv()
}

func (a *agent) report(state computev1.Run_State, log int64, outputs int32) error {
	_, err := a.rpc().ReportRun(a.ctx("ReportRun"), &computev1.ReportRunRequest{Name: a.name, State: state, LogBytes: log, Outputs: outputs})
	return err
}

// running is an agent whose run goes.
func (l *lab) running(compute, id string) (*agent, string) {
	l.t.Helper()
	r := l.submit(compute, id)
	l.step()
	a := l.agent(r.GetUid())
	_, err := a.assignment()
	must(l.t, err)
	return a, r.GetUid()
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

// says is a handshake in which the client says who it is.
type says struct{ id string }

func (s says) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_, err := c.Write(append([]byte{byte(len(s.id))}, s.id...))
	return c, info("spiffe://" + trust + "/service/compute"), err
}

func (says) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	read := func(n int) ([]byte, error) {
		b := make([]byte, n)
		for i := 0; i < n; {
			k, err := c.Read(b[i:])
			if err != nil {
				return nil, err
			}
			i += k
		}
		return b, nil
	}
	n, err := read(1)
	if err != nil {
		return nil, nil, err
	}
	id, err := read(int(n[0]))
	return c, info(string(id)), err
}

func info(id string) *svid.PeerInfo {
	return &svid.PeerInfo{TLSInfo: credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, PeerID: id}
}

func (says) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "test"}
}
func (s says) Clone() credentials.TransportCredentials { return s }
func (says) OverrideServerName(string) error           { return nil }
