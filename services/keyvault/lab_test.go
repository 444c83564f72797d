package keyvault_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
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
	"github.com/redoubt-ml/redoubt/services/keyvault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	trust  = "redoubt.test"
	issuer = "https://redoubt.test:7443"

	sub1 = "subscriptions/s1"
	grp1 = sub1 + "/resourceGroups/g1"
	ws1  = grp1 + "/workspaces/w1"
	ws2  = grp1 + "/workspaces/w2"
)

// lab is the vault behind the real chain on a real socket with a real database. Only the handshake and the tokens are the test's own:
// who connects says who he is.
type lab struct {
	t      *testing.T
	db     *sqldb.DB
	outbox *audit.Outbox
	addr   string
	uids   map[string]string
	users  map[string]string
}

// newLab has two workspaces with vaults. Its users are owner of both, reader of both, and two, who owns the second only.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, uids: map[string]string{"/": ""}, users: map[string]string{"owner": "usr_owner", "reader": "usr_reader", "two": "usr_two", "nobody": "usr_nobody"}}
	l.db = sqldbtest.Open(t, envelope.Migrations(), leader.Migrations(), audit.Migrations(), keyvault.Migrations())
	sl, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	must(t, err)
	own, err := envelope.New(envelope.Config{Source: envelope.SealSource(sl, "keyvault"), DB: l.db})
	must(t, err)
	l.outbox, err = audit.New(audit.Config{Service: "keyvault", DB: l.db, Keys: own})
	must(t, err)

	engine := authz.New(authz.Config{MaxStale: time.Hour})
	state := &workspacev1.WatchAuthorizationResponse{Seq: 1, Reset_: true, Complete: true, Roles: authz.BuiltinRoles()}
	for name, at := range map[string]struct{ prefix, parent string }{sub1: {"sub", "/"}, grp1: {"rgp", sub1}, ws1: {"ws", grp1}, ws2: {"ws", grp1}} {
		l.uids[name] = resource.NewUID(at.prefix)
	}
	for _, name := range []string{sub1, grp1, ws1, ws2} {
		parent := "/"
		if i := strings.LastIndex(name[:strings.LastIndex(name, "/")], "/"); i > 0 {
			parent = name[:i]
		}
		state.Scopes = append(state.Scopes, &workspacev1.ScopeRecord{Uid: l.uids[name], Name: name, ParentUid: l.uids[parent], Active: true})
	}
	state.Assignments = []*workspacev1.AssignmentRecord{
		{Uid: "asg_1", ScopeUid: l.uids[sub1], Role: authz.Owner, PrincipalUid: "usr_owner"},
		{Uid: "asg_2", ScopeUid: l.uids[sub1], Role: authz.Reader, PrincipalUid: "usr_reader"},
		{Uid: "asg_3", ScopeUid: l.uids[ws2], Role: authz.Owner, PrincipalUid: "usr_two"},
	}
	must(t, engine.ApplyAuthorization(state))
	must(t, engine.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}))

	svc, err := keyvault.New(keyvault.Config{DB: l.db, Own: own})
	must(t, err)
	rules, err := rule.Load(rule.Registered("redoubt.keyvault")...)
	must(t, err)
	proofs, err := authn.NewProofChecker(authn.ProofConfig{})
	must(t, err)
	chain, err := rpc.NewChain(rpc.Config{
		Service: "keyvault", TrustDomain: trust, Installation: trust, Issuer: issuer, PublicURL: issuer, Rules: rules,
		Verifier: l, Proofs: proofs, Engine: engine, Recorder: l.outbox, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	server := chain.NewServer(says{}, rule.Registered("redoubt.keyvault")...)
	svc.Register(chain.Registrar(server))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	l.addr = listener.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		must(t, svc.Close())
		server.Stop()
		wg.Wait()
	})
	for _, ws := range []string{ws1, ws2} {
		_, err := l.vault("workspace").CreateVault(t.Context(), &keyvaultv1.CreateVaultRequest{WorkspaceUid: l.uids[ws]})
		must(t, err)
	}
	return l
}

// Verify implements rpc.Verifier.
func (l *lab) Verify(_ context.Context, token, audience string) (*authn.Verified, error) {
	uid, ok := l.users[token]
	if !ok || audience != issuer {
		return nil, fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID, "not one of ours")
	}
	return &authn.Verified{Claims: authn.Claims{Subject: uid, PrincipalType: authn.User, AuthTime: time.Now(), ACR: authn.ACRPassword}}, nil
}

// VerifyDelivery implements rpc.Verifier: no run has ended here.
func (l *lab) VerifyDelivery(ctx context.Context, token, audience string) (*authn.Verified, error) {
	return l.Verify(ctx, token, audience)
}

// dial connects as a service of the mesh.
func (l *lab) dial(service string) *grpc.ClientConn {
	l.t.Helper()
	c, err := grpc.NewClient("passthrough:///"+l.addr, grpc.WithTransportCredentials(says{"spiffe://" + trust + "/service/" + service}))
	must(l.t, err)
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (l *lab) as(user string) context.Context {
	return metadata.AppendToOutgoingContext(l.t.Context(), "authorization", "Bearer "+user)
}

func (l *lab) vault(service string) keyvaultv1.VaultServiceClient {
	return keyvaultv1.NewVaultServiceClient(l.dial(service))
}

func (l *lab) secrets() keyvaultv1.SecretServiceClient {
	return keyvaultv1.NewSecretServiceClient(l.dial("gateway"))
}

func (l *lab) keys() keyvaultv1.KeyServiceClient {
	return keyvaultv1.NewKeyServiceClient(l.dial("gateway"))
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
		if depth, err := l.outbox.Depth(ctx); err != nil || depth == int64(len(events)) {
			defer cancel()
			return events[len(events)-1].GetSeq(), err
		}
		return events[len(events)-1].GetSeq(), nil
	})
	if err != nil && ctx.Err() == nil {
		l.t.Fatal(err)
	}
	return out
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
	return c, info("spiffe://" + trust + "/service/keyvault"), err
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
