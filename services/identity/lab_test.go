package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func TestMain(m *testing.M) {
	apart.Maybe()
	goleak.VerifyTestMain(m)
}

const (
	issuer        = "https://redoubt.test:7443"
	adminPassword = "correct horse"
)

// lab is identity on a listener of its own with the real chain and mTLS, and callers of every kind.
type lab struct {
	t      *testing.T
	cfg    Config
	s      *Service
	db     *sqldb.DB
	outbox *audit.Outbox
	addr   string // of the services
	enrol  string // of enrolment
	admin  string // uid
	keeper *svid.Keeper

	compute *ecdsa.PrivateKey // of an instance of it

	mu    sync.Mutex
	clock time.Time
	conns map[string]*grpc.ClientConn
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

// cheap is the cost of passwords in tests.
var cheap = password.Config{Passes: 1, MemoryKiB: 64}

func newLab(t *testing.T) *lab { return newLabOf(t, func(*Config) {}) }

func newLabOf(t *testing.T, change func(*Config)) *lab {
	t.Helper()
	return newLabAt(t, time.Now(), change)
}

// newLabAt is a lab whose clock stands at now.
func newLabAt(t *testing.T, now time.Time, change func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, clock: now.Truncate(time.Second), conns: make(map[string]*grpc.ClientConn)}
	log := slog.New(slog.DiscardHandler)
	l.db = sqldbtest.Open(t, Migrations(), audit.Migrations(), envelope.Migrations(), leader.Migrations())
	key, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	ring, err := envelope.New(envelope.Config{Source: envelope.SealSource(key, Name), DB: l.db})
	must(t, err)
	l.outbox, err = audit.New(audit.Config{Service: Name, DB: l.db, Keys: ring, Now: l.now})
	must(t, err)
	engine := authz.New(authz.Config{Now: l.now, OwnSecurity: true, OwnAuthorization: true})
	l.cfg = Config{
		DB: l.db, Outbox: l.outbox, Own: ring, Engine: engine, TrustDomain: "redoubt.test", Issuer: issuer,
		EnrolAddress: "127.0.0.1:1", Password: cheap, SVIDLife: 24 * time.Hour, Heartbeat: 20 * time.Millisecond, Now: l.now, Logger: log,
	}
	change(&l.cfg)
	l.s, err = New(l.cfg)
	must(t, err)
	first, created, err := l.s.Bootstrap(t.Context(), BootstrapRequest{User: "admin", Password: redact.FromString(adminPassword)})
	must(t, err)
	if !created {
		t.Fatal("there was an administrator before")
	}
	l.admin = first.UID
	must(t, engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{
		Seq: 1, Reset_: true, Complete: true, Roles: authz.BuiltinRoles(),
		Assignments: []*workspacev1.AssignmentRecord{{Uid: "ra_1", Role: authz.Owner, PrincipalUid: l.admin}},
	}))
	l.serve(log)
	return l
}

func (l *lab) serve(log *slog.Logger) {
	t := l.t
	keeper, err := svid.NewKeeper(svid.KeeperConfig{
		Dir: filepath.Join(t.TempDir(), "svid"), ID: l.id("service/identity"), Issue: l.s.IssueSelf, Now: l.now,
	})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = keeper.Run(ctx) })
	running.Go(func() { _ = l.s.Run(ctx) })
	l.keeper = keeper
	must(t, keeper.Ready(t.Context()))
	workload, err := svid.NewWorkloadServer(svid.WorkloadConfig{Keeper: keeper, Dir: t.TempDir()})
	must(t, err)
	source, err := svid.NewSource(t.Context(), svid.SourceConfig{Addr: workload.Addr(), TrustDomain: l.s.td, Now: l.now})
	must(t, err)

	rules, err := rule.Load(
		"redoubt.identity.v1.SignInService", "redoubt.identity.v1.DirectoryService", "redoubt.identity.v1.TokenService",
		"redoubt.identity.v1.PrincipalService", "redoubt.identity.v1.EnrolmentService", "redoubt.identity.v1.AgentService",
		"redoubt.identity.v1.OperatorService", "redoubt.identity.v1.ApplicationService", "redoubt.identity.v1.ProviderService", "redoubt.identity.v1.KeyService",
		"redoubt.identity.v1.FactorService", "redoubt.identity.v1.FederationService", "redoubt.identity.v1.AccountService", "redoubt.identity.v1.WorkloadIdentityService")
	must(t, err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{Now: l.now})
	must(t, err)
	conf := rpc.Config{
		Service: Name, TrustDomain: l.cfg.TrustDomain, Installation: l.cfg.TrustDomain, Issuer: l.cfg.Issuer, PublicURL: issuer, Rules: rules,
		Verifier: l.s.Verifier(), Proofs: proofs, Engine: l.cfg.Engine, Recorder: l.outbox, Logger: log, Now: l.now,
	}
	start := func(conf rpc.Config, creds credentials.TransportCredentials, register func(grpc.ServiceRegistrar)) (string, func()) {
		chain, err := rpc.NewChain(conf)
		must(t, err)
		server := chain.NewServer(creds)
		register(chain.Registrar(server))
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		running.Go(func() { _ = server.Serve(ln) })
		return ln.Addr().String(), server.Stop
	}
	var stopMain, stopEnrol func()
	// Whoever has an SVID connects: the chain holds by itself.
	l.addr, stopMain = start(conf, source.ServerCredentials(func(spiffeid.ID) error { return nil }), l.s.Register)
	conf.Enrolment = true
	l.enrol, stopEnrol = start(conf, svid.EnrolServerCredentials(keeper.Current, l.now, nil), l.s.RegisterEnrolment)
	t.Cleanup(func() {
		for _, c := range l.conns {
			_ = c.Close()
		}
		_ = l.s.Close()
		stopMain()
		stopEnrol()
		_ = source.Close()
		_ = workload.Close()
		stop()
		running.Wait()
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) id(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://redoubt.test/" + path)
}

// as is a connection with the SVID of path, "service/compute".
func (l *lab) as(path string) *grpc.ClientConn {
	l.t.Helper()
	if c := l.conns[path]; c != nil {
		return c
	}
	key := newKey(l.t)
	chain, err := l.s.authority.Load().Sign(&key.PublicKey, l.id(path), time.Hour, l.now())
	must(l.t, err)
	leaf, err := x509.ParseCertificate(chain[0])
	must(l.t, err)
	bundle := x509bundle.FromX509Authorities(l.s.td, l.s.authority.Load().Bundle())
	mutual := &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key, Leaf: leaf}},
		VerifyConnection: func(state tls.ConnectionState) error { // by the lab's clock
			id, err := svid.Verify(state.PeerCertificates, l.s.td, bundle, x509.ExtKeyUsageServerAuth, l.now())
			if err == nil && id != l.id("service/identity") {
				err = errors.New("this is " + id.String())
			}
			return err
		},
	}
	conn, err := grpc.NewClient("passthrough:///"+l.addr, grpc.WithTransportCredentials(credentials.NewTLS(mutual)))
	must(l.t, err)
	l.conns[path] = conn
	return conn
}

// service is a connection as a service of the mesh, and gateway the one over which users come.
func (l *lab) service(name string) *grpc.ClientConn { return l.as("service/" + name) }
func (l *lab) gateway() *grpc.ClientConn            { return l.service("gateway") }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := authn.GenerateKey()
	must(t, err)
	return key
}

func csr(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	return der
}

// bearer is a context with a token.
func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// bound is a context with a run token and its proof.
func (l *lab) bound(ctx context.Context, token string, key *ecdsa.PrivateKey, method string) context.Context {
	l.t.Helper()
	prover, err := authn.NewProver(key, l.now)
	must(l.t, err)
	proof, err := prover.Proof("POST", issuer+method, token, "")
	must(l.t, err)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "DPoP "+token, "dpop", proof)
}

// try signs in through the gateway from an address.
func (l *lab) try(user, pw, address string) (*identityv1.Session, error) {
	ctx := metadata.AppendToOutgoingContext(l.t.Context(), rpc.AddressHeader, address)
	res, err := identityv1.NewSignInServiceClient(l.gateway()).SignIn(ctx, &identityv1.SignInRequest{User: user, Password: pw})
	return res.GetSession(), err
}

func (l *lab) signIn(user, pw string) *identityv1.Session {
	l.t.Helper()
	session, err := l.try(user, pw, "192.0.2.1")
	must(l.t, err)
	return session
}

// asAdmin is a context of the first administrator, and the directory as he sees it.
func (l *lab) asAdmin() (context.Context, identityv1.DirectoryServiceClient) {
	l.t.Helper()
	return bearer(l.t.Context(), l.signIn("admin", adminPassword).GetAccessToken()), identityv1.NewDirectoryServiceClient(l.gateway())
}

// addUser makes a user whose password is "password of " and his id.
func (l *lab) addUser(id string) *identityv1.User {
	l.t.Helper()
	ctx, directory := l.asAdmin()
	u, err := directory.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: id, DisplayName: "The " + id, Password: "password of " + id})
	must(l.t, err)
	return u
}

// claims verifies a token for an audience as identity itself does.
func (l *lab) claims(token, audience string) authn.Claims {
	l.t.Helper()
	v, err := l.s.verifier.Verify(l.t.Context(), token, audience)
	must(l.t, err)
	return v.Claims
}

func (l *lab) whoAmI(token string) (*identityv1.WhoAmIResponse, error) {
	return identityv1.NewSignInServiceClient(l.gateway()).WhoAmI(bearer(l.t.Context(), token), &identityv1.WhoAmIRequest{})
}

// want compares the refusal of a call.
func want(t testing.TB, name string, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	err = fault.FromStatus(err)
	if fault.Code(err) != code || fault.ReasonOf(err) != reason {
		t.Errorf("%s: %v %v (%v), want %v %v", name, fault.Code(err), fault.ReasonOf(err), err, code, reason)
	}
}

// events gives the records so far and empties the outbox.
func (l *lab) events() []*audit.Event {
	l.t.Helper()
	must(l.t, l.outbox.Flush(l.t.Context()))
	var out []*audit.Event
	ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
	defer cancel()
	err := l.outbox.Relay(ctx, func(ctx context.Context, events []*audit.Event) (int64, error) {
		out = append(out, events...)
		stored := events[len(events)-1].GetSeq()
		if depth, err := l.outbox.Depth(ctx); err != nil || depth == int64(len(events)) {
			defer cancel()
			return stored, err
		}
		return stored, nil
	})
	if err != nil && ctx.Err() == nil {
		l.t.Fatal(err)
	}
	return out
}

// long skips what has many password hashes and little that runs at the same time, where the race detector makes each take seconds (-short).
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: make test and make attack have it")
	}
}
