package telemetry_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
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
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	trust  = "redoubt.test"
	issuer = "https://redoubt.test:7443"

	sub1 = "subscriptions/s1"
	grp1 = sub1 + "/resourceGroups/g1"
	ws1  = grp1 + "/workspaces/w1"
	ws2  = grp1 + "/workspaces/w2"
	run1 = ws1 + "/runs/r1"
	run2 = ws1 + "/runs/R2"
	run3 = ws2 + "/runs/r1"
)

var uids = map[string]string{"/": "", sub1: "sub_1", grp1: "rgp_1", ws1: "ws_1", ws2: "ws_2", run1: "run_1", run2: "run_2", run3: "run_3"}

// lab is telemetry behind the real chain on a real socket with a real database. Only the handshake and the tokens are the test's own: who
// connects says who he is.
type lab struct {
	t      testing.TB
	db     *sqldb.DB
	path   string
	own    *envelope.Keyring
	keys   *envelope.Keyring
	engine *authz.Engine
	outbox *audit.Outbox
	svc    *telemetry.Service
	addr   string
	tokens map[string]*authn.Verified
	runs   compute
	ends   inference
	clock  atomic.Int64 // microseconds
	seq    atomic.Uint64
}

// compute is the other service, as far as telemetry asks it.
type compute struct {
	mu      sync.Mutex
	away    bool
	deleted bool
	calls   int
}

func (c *compute) DescribeRun(_ context.Context, in *computev1.DescribeRunRequest, _ ...grpc.CallOption) (*computev1.DescribeRunResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.away {
		return nil, fault.ToStatus(fault.Unavailable("compute is away"), "redoubt.test", "").Err()
	}
	for name, uid := range uids {
		if ws, id, ok := strings.Cut(name, "/runs/"); ok && uids[ws] == in.GetWorkspaceUid() && id == in.GetRunId() {
			return &computev1.DescribeRunResponse{RunUid: uid, Deleted: c.deleted}, nil
		}
	}
	return nil, fault.ToStatus(fault.NotFound("no such run"), "redoubt.test", "").Err()
}

// inference is the other service, as far as telemetry asks it: which endpoints there are, by workspace and id.
type inference struct {
	mu   sync.Mutex
	uids map[[2]string]string
	away bool
}

func (i *inference) set(workspaceUID, id, uid string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.uids == nil {
		i.uids = make(map[[2]string]string)
	}
	i.uids[[2]string{workspaceUID, id}] = uid
}

func (i *inference) DescribeEndpoint(_ context.Context, in *inferencev1.DescribeEndpointRequest, _ ...grpc.CallOption) (*inferencev1.DescribeEndpointResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.away {
		return nil, fault.ToStatus(fault.Unavailable("inference is away"), "redoubt.test", "").Err()
	}
	if uid := i.uids[[2]string{in.GetWorkspaceUid(), in.GetEndpointId()}]; uid != "" {
		return &inferencev1.DescribeEndpointResponse{EndpointUid: uid}, nil
	}
	return nil, fault.ToStatus(fault.NotFound("no such endpoint"), "redoubt.test", "").Err()
}

func sets() []sqldb.MigrationSet {
	return []sqldb.MigrationSet{envelope.Migrations(), leader.Migrations(), audit.Migrations(), telemetry.Migrations()}
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, tokens: make(map[string]*authn.Verified)}
	l.clock.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro())
	config := sqldbtest.SQLite(t, sets()...)
	l.db, l.path = sqldbtest.OpenConfig(t, config), config.Path

	ring := func(service string) *envelope.Keyring {
		s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
		if err != nil {
			t.Fatal(err)
		}
		k, err := envelope.New(envelope.Config{Source: envelope.SealSource(s, service), DB: l.db})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	l.own, l.keys = ring("telemetry"), ring("keyvault")
	var err error
	if l.outbox, err = audit.New(audit.Config{Service: "telemetry", DB: l.db, Keys: l.own}); err != nil {
		t.Fatal(err)
	}
	l.engine = authz.New(authz.Config{MaxStale: time.Hour})
	state := &workspacev1.WatchAuthorizationResponse{Seq: l.seq.Add(1), Reset_: true, Complete: true, Roles: authz.BuiltinRoles()}
	for _, name := range []string{sub1, grp1, ws1, ws2} {
		parent := "/"
		if i := strings.LastIndex(name[:strings.LastIndex(name, "/")], "/"); i > 0 {
			parent = name[:i]
		}
		state.Scopes = append(state.Scopes, &workspacev1.ScopeRecord{Uid: uids[name], Name: name, ParentUid: uids[parent], Active: true})
	}
	must(t, l.engine.ApplyAuthorization(state))
	must(t, l.engine.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}))

	l.start()
	return l
}

// start serves as a process that has just started would.
func (l *lab) start() {
	l.t.Helper()
	var err error
	l.svc, err = telemetry.New(telemetry.Config{
		DB: l.db, Own: l.own, Keys: l.keys, Runs: &l.runs, Endpoints: &l.ends, Now: func() time.Time { return time.UnixMicro(l.clock.Load()) },
	})
	must(l.t, err)
	rules, err := rule.Load(rule.Registered("redoubt.telemetry")...)
	must(l.t, err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{})
	must(l.t, err)
	chain, err := rpc.NewChain(rpc.Config{
		Service: "telemetry", TrustDomain: trust, Installation: trust, Issuer: issuer, PublicURL: issuer, Rules: rules,
		Verifier: l, Proofs: proofs, Engine: l.engine, Recorder: l.outbox, Logger: slog.New(slog.DiscardHandler),
	})
	must(l.t, err)
	server := chain.NewServer(says{}, rule.Registered("redoubt.telemetry")...)
	l.svc.Register(chain.Registrar(server))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(l.t, err)
	l.addr = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	svc := l.svc
	wg.Go(func() { _ = server.Serve(listener) })
	wg.Go(func() { _ = svc.Run(ctx) })
	l.t.Cleanup(func() {
		cancel()
		must(l.t, svc.Close())
		server.Stop()
		wg.Wait()
	})
}

// Verify implements rpc.Verifier.
func (l *lab) Verify(_ context.Context, token, audience string) (*authn.Verified, error) {
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
	l.tokens[user] = &authn.Verified{Claims: authn.Claims{Subject: "usr_" + user, PrincipalType: "User"}}
	must(l.t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq.Add(1), Assignments: []*workspacev1.AssignmentRecord{
		{Uid: "asg_" + user + role + uids[scope], ScopeUid: uids[scope], Role: role, PrincipalUid: "usr_" + user},
	}}))
}

// unassign takes it away.
func (l *lab) unassign(user, scope, role string) {
	l.t.Helper()
	must(l.t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq.Add(1), Removed: []string{"asg_" + user + role + uids[scope]}}))
}

// token makes a run token of a submitter.
func (l *lab) token(name, user, run, workspace string, actions ...string) {
	l.tokens[name] = &authn.Verified{Claims: authn.Claims{Subject: "usr_" + user, PrincipalType: "User", Run: uids[run], Workspace: uids[workspace], Actions: actions}}
}

// dial connects as a peer of the mesh, "/service/gateway".
func (l *lab) dial(peer string) *grpc.ClientConn {
	l.t.Helper()
	c, err := grpc.NewClient("passthrough:///"+l.addr, grpc.WithTransportCredentials(says{"spiffe://" + trust + peer}))
	must(l.t, err)
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

// as is the context of a caller's call.
func (l *lab) as(user string) context.Context {
	return metadata.AppendToOutgoingContext(l.t.Context(), "authorization", "Bearer "+user)
}

func (l *lab) activity() telemetryv1.ActivityServiceClient {
	return telemetryv1.NewActivityServiceClient(l.dial("/service/gateway"))
}

func (l *lab) metrics() telemetryv1.MetricServiceClient {
	return telemetryv1.NewMetricServiceClient(l.dial("/service/gateway"))
}

func (l *lab) ingest(service string) telemetryv1.IngestServiceClient {
	return telemetryv1.NewIngestServiceClient(l.dial("/service/" + service))
}

func (l *lab) exec(text string) {
	l.t.Helper()
	must(l.t, l.db.Write(l.t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, text)
		return err
	}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks code and reason of an error that came over the wire.
func want(t testing.TB, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	err = fault.FromStatus(err)
	if fault.Code(err) != code || fault.ReasonOf(err) != reason {
		t.Errorf("got %v, want %v %v", err, code, reason)
	}
}

func codeOf(err error) codes.Code { return fault.Code(fault.FromStatus(err)) }

func meta(err error) map[string]string {
	var f *fault.Error
	if errors.As(fault.FromStatus(err), &f) {
		return f.Metadata()
	}
	return nil
}

// says is a handshake in which the client says who it is.
type says struct{ id string }

func (s says) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	_, err := c.Write(append([]byte{byte(len(s.id))}, s.id...))
	return c, info("spiffe://" + trust + "/service/telemetry"), err
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
