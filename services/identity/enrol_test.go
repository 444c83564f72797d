package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/pkg/svid/jointoken"
)

// join makes a join token and gives its secret.
func (l *lab) join(service, instance string) string {
	l.t.Helper()
	s, err := l.s.CreateServiceJoin(l.t.Context(), service, instance, 0)
	must(l.t, err)
	token, err := jointoken.Parse(s)
	must(l.t, err)
	if token.Pin != l.s.Pin() || token.Address != l.cfg.EnrolAddress {
		l.t.Fatalf("the join token is for %s with pin %s", token.Address, token.Pin)
	}
	return token.Secret.RevealString()
}

// issue enrols on a connection of its own, as the holder of key.
func (l *lab) issue(key *ecdsa.PrivateKey, req *identityv1.IssueRequest) (*identityv1.IssueResponse, error) {
	l.t.Helper()
	tls, err := svid.EnrolClientTLS(svid.Enrolment{Pins: l.s.authority.Load().pins(), Server: l.id("service/identity"), Key: key, Now: l.now})
	must(l.t, err)
	conn, err := grpc.NewClient("passthrough:///"+l.enrol, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	must(l.t, err)
	defer conn.Close()
	if req.Csr == nil {
		req.Csr = csr(l.t, key)
	}
	return identityv1.NewEnrolmentServiceClient(conn).Issue(l.t.Context(), req)
}

func TestServicesEnrol(t *testing.T) { // D10
	l := newLab(t)
	key, thief := newKey(t), newKey(t)
	secret := l.join("compute", "one")
	res, err := l.issue(key, &identityv1.IssueRequest{Service: "compute", Instance: "one", JoinToken: secret})
	must(t, err)
	leaf, err := x509.ParseCertificate(res.GetChain()[0])
	must(t, err)
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://redoubt.test/service/compute" || !key.PublicKey.Equal(leaf.PublicKey) || leaf.IsCA ||
		!leaf.NotAfter.Equal(res.GetExpireTime().AsTime().Truncate(time.Second)) || leaf.NotAfter.Sub(l.now()) != l.cfg.SVIDLife || len(res.GetBundle()) != 1 {
		t.Errorf("issued %v until %v", leaf.URIs, leaf.NotAfter)
	}
	must(t, leaf.CheckSignatureFrom(l.s.authority.Load().Root()))
	// Later the key is enough, with an old token or none, and after any time.
	l.advance(48 * time.Hour)
	must(t, keepServing(l))
	for _, old := range []string{"", secret} {
		if _, err := l.issue(key, &identityv1.IssueRequest{Service: "compute", Instance: "one", JoinToken: old}); err != nil {
			t.Errorf("the pinned key: %v", err)
		}
	}
	fresh := l.join("compute", "two")
	for _, c := range []struct {
		name   string
		key    *ecdsa.PrivateKey
		req    *identityv1.IssueRequest
		code   codes.Code
		reason faultv1.Reason
	}{
		{"no token", thief, &identityv1.IssueRequest{Service: "compute", Instance: "one"}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"a used token", thief, &identityv1.IssueRequest{Service: "compute", Instance: "one", JoinToken: secret}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"a made-up token", thief, &identityv1.IssueRequest{Service: "compute", Instance: "two", JoinToken: "rdj_" + strings.Repeat("A", 43)}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"for another service", thief, &identityv1.IssueRequest{Service: "keyvault", Instance: "two", JoinToken: fresh}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"for another instance", thief, &identityv1.IssueRequest{Service: "compute", Instance: "one", JoinToken: fresh}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"the pinned key for another instance", key, &identityv1.IssueRequest{Service: "compute", Instance: "two"}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"the pinned key for another service", key, &identityv1.IssueRequest{Service: "keyvault", Instance: "one"}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"a service that there is not", thief, &identityv1.IssueRequest{Service: "root", JoinToken: fresh}, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID},
		{"another's request", thief, &identityv1.IssueRequest{Service: "compute", Instance: "one", Csr: csr(t, key)}, codes.Unauthenticated, faultv1.Reason_PEER_UNKNOWN},
		{"another's request with a token", thief, &identityv1.IssueRequest{Service: "compute", Instance: "two", Csr: csr(t, key), JoinToken: fresh}, codes.Unauthenticated, faultv1.Reason_PEER_UNKNOWN},
		{"no request", thief, &identityv1.IssueRequest{Service: "compute", Instance: "two", JoinToken: fresh, Csr: []byte("x")}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a path for an instance", thief, &identityv1.IssueRequest{Service: "compute", Instance: "../one", JoinToken: fresh}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
	} {
		_, err := l.issue(c.key, c.req)
		want(t, c.name, err, c.code, c.reason)
	}
	// None of them has used the token up.
	second := newKey(t)
	if _, err := l.issue(second, &identityv1.IssueRequest{Service: "compute", Instance: "two", JoinToken: fresh}); err != nil {
		t.Errorf("the rightful one: %v", err)
	}
	// A new token puts another key in the place of a lost one, which does not come back.
	again, third := l.join("compute", "two"), newKey(t)
	_, err = l.issue(third, &identityv1.IssueRequest{Service: "compute", Instance: "two", JoinToken: again})
	must(t, err)
	for _, old := range []string{"", fresh, again} {
		_, err = l.issue(second, &identityv1.IssueRequest{Service: "compute", Instance: "two", JoinToken: old})
		want(t, "the replaced key", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	}
	late := l.join("telemetry", "")
	l.advance(serviceJoinLife)
	_, err = l.issue(thief, &identityv1.IssueRequest{Service: "telemetry", JoinToken: late})
	want(t, "too late", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
}

// keepServing waits until identity's own SVID has followed the clock.
func keepServing(l *lab) error {
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	l.keeper.Refresh()
	return l.keeper.Ready(ctx)
}

func TestEnrolmentIsOnlyOnItsListener(t *testing.T) { // D10
	l := newLab(t)
	key := newKey(t)
	_, err := identityv1.NewEnrolmentServiceClient(l.service("compute")).Issue(t.Context(), &identityv1.IssueRequest{Service: "compute", Csr: csr(t, key)})
	want(t, "on the services' listener", err, codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN)
	// The other way round: who shows a self-signed certificate gets nowhere else.
	tls, err := svid.EnrolClientTLS(svid.Enrolment{Pins: []string{l.s.Pin()}, Server: l.id("service/identity"), Key: key, Now: l.now})
	must(t, err)
	for name, c := range map[string]struct {
		addr string
		code codes.Code
	}{"the services' listener": {l.addr, codes.Unavailable}, "the enrolment listener": {l.enrol, codes.Unimplemented}} {
		conn, err := grpc.NewClient("passthrough:///"+c.addr, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
		must(t, err)
		_, err = identityv1.NewTokenServiceClient(conn).GetKeys(t.Context(), &identityv1.GetKeysRequest{})
		if codeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.Close()
	}
}

func TestCreateServiceJoinRefuses(t *testing.T) {
	l := newLab(t)
	for name, c := range map[string]struct {
		service, instance string
		life              time.Duration
	}{"unknown service": {"root", "", 0}, "bad instance": {"compute", "../x", 0}, "too long": {"compute", "", 8 * 24 * time.Hour}, "negative": {"compute", "", -1}} {
		_, err := l.s.CreateServiceJoin(t.Context(), c.service, c.instance, c.life)
		want(t, name, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	}
}

func TestOperatorCertificates(t *testing.T) { // D10
	l := newLab(t)
	l.addUser("alice")
	id, secret := l.robot("robot")
	robot, err := l.clientToken(id, secret)
	must(t, err)
	admin := l.signIn("admin", adminPassword).GetAccessToken()
	key := newKey(t)
	ask := func(token string, request []byte) (*identityv1.IssueResponse, error) {
		return identityv1.NewOperatorServiceClient(l.gateway()).IssueOperatorCertificate(bearer(t.Context(), token), &identityv1.IssueOperatorCertificateRequest{Csr: request})
	}
	res, err := ask(admin, csr(t, key))
	must(t, err)
	leaf, err := x509.ParseCertificate(res.GetChain()[0])
	must(t, err)
	if leaf.URIs[0].String() != "spiffe://redoubt.test/operator/"+l.admin || leaf.NotAfter.Sub(l.now()) != 8*time.Hour || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("issued %v until %v", leaf.URIs, leaf.NotAfter)
	}
	_, err = ask(admin, []byte("x"))
	want(t, "no request", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = ask(l.signIn("alice", "password of alice").GetAccessToken(), csr(t, key))
	want(t, "a user without a role", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	_, err = ask(robot.GetAccessToken(), csr(t, key))
	want(t, "a service principal", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)

	// It opens the service directly, with the holder's own token only.
	own := identityv1.NewSignInServiceClient(l.as("operator/" + l.admin))
	if _, err := own.WhoAmI(bearer(t.Context(), admin), &identityv1.WhoAmIRequest{}); err != nil {
		t.Errorf("his own token: %v", err)
	}
	_, err = own.WhoAmI(bearer(t.Context(), l.signIn("alice", "password of alice").GetAccessToken()), &identityv1.WhoAmIRequest{})
	want(t, "another's token", err, codes.Unauthenticated, faultv1.Reason_PEER_MAY_NOT_FORWARD)
}

// agent is an enrolled one.
type agent struct {
	key   *ecdsa.PrivateKey
	token string
	uid   string
}

var runActions = []string{"compute/runs/execute runs/r1", "telemetry/metrics/write runs/r1"}

func (l *lab) agentJoin(submitter, run string) (string, error) {
	res, err := identityv1.NewAgentServiceClient(l.service("compute")).CreateAgentJoin(l.t.Context(), &identityv1.CreateAgentJoinRequest{
		RunUid: run, WorkspaceUid: "ws_1", Submitter: submitter, Actions: runActions,
	})
	return res.GetJoinToken(), err
}

func (l *lab) enrolAgent(join string, request []byte) (*identityv1.EnrolAgentResponse, error) {
	return identityv1.NewAgentServiceClient(l.gateway()).EnrolAgent(l.t.Context(), &identityv1.EnrolAgentRequest{JoinToken: join, Csr: request})
}

func (l *lab) enrolledAgent(submitter, run string) agent {
	l.t.Helper()
	join, err := l.agentJoin(submitter, run)
	must(l.t, err)
	key := newKey(l.t)
	res, err := l.enrolAgent(join, csr(l.t, key))
	must(l.t, err)
	return agent{key, res.GetRunToken(), res.GetAgentUid()}
}

// renew renews the run token with the agent's key.
func (l *lab) renew(a agent) (*identityv1.EnrolAgentResponse, error) {
	ctx := l.bound(l.t.Context(), a.token, a.key, identityv1.AgentService_RenewRunToken_FullMethodName)
	return identityv1.NewAgentServiceClient(l.gateway()).RenewRunToken(ctx, &identityv1.RenewRunTokenRequest{})
}

// certify renews the run token of a, with a certificate for the key.
func (l *lab) certify(a agent, request []byte) (*identityv1.EnrolAgentResponse, error) {
	ctx := l.bound(l.t.Context(), a.token, a.key, identityv1.AgentService_RenewRunToken_FullMethodName)
	return identityv1.NewAgentServiceClient(l.gateway()).RenewRunToken(ctx, &identityv1.RenewRunTokenRequest{Csr: request})
}

// A5, D10: an agent gets a certificate for its key, that names its run and lives as long as the token.
func TestAgentCertificates(t *testing.T) {
	l := newLab(t)
	alice := l.addUser("alice")
	join, err := l.agentJoin(alice.GetUid(), "run_1")
	must(t, err)
	key, thief := newKey(t), newKey(t)
	res, err := l.enrolAgent(join, csr(t, key))
	must(t, err)
	a := agent{key, res.GetRunToken(), res.GetAgentUid()}
	is := func(name string, res *identityv1.EnrolAgentResponse) {
		t.Helper()
		if len(res.GetSvid()) != 1 || len(res.GetRoots()) != 1 || string(res.GetRoots()[0]) != string(l.s.authority.Load().Root().Raw) {
			t.Fatalf("%s: %d certificates, %d roots", name, len(res.GetSvid()), len(res.GetRoots()))
		}
		leaf, err := x509.ParseCertificate(res.GetSvid()[0])
		must(t, err)
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://redoubt.test/workspace/ws_1/run/run_1" || len(leaf.DNSNames)+len(leaf.IPAddresses) != 0 || leaf.IsCA ||
			!key.PublicKey.Equal(leaf.PublicKey) || !leaf.NotAfter.Equal(l.now().Add(maxRunLife)) || !leaf.NotAfter.Equal(res.GetExpireTime().AsTime()) {
			t.Errorf("%s: %v %v until %v", name, leaf.URIs, leaf.DNSNames, leaf.NotAfter)
		}
		must(t, leaf.CheckSignatureFrom(l.s.authority.Load().Root()))
	}
	is("enrolled", res)
	// It counts as no service, were it let in (ports of the mesh end the handshake).
	_, err = identityv1.NewTokenServiceClient(l.as("workspace/ws_1/run/run_1")).RevokeRun(t.Context(), &identityv1.RevokeRunRequest{RunUid: "run_2", WorkspaceUid: "ws_1"})
	want(t, "a method for services", err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	l.advance(maxRunLife / 2)
	must(t, keepServing(l))
	renewed, err := l.certify(a, csr(t, key))
	must(t, err)
	is("renewed", renewed)
	without, err := l.renew(a)
	must(t, err)
	if len(without.GetSvid()) != 0 || len(without.GetRoots()) == 0 {
		t.Error("a certificate without a request, or no roots")
	}
	_, err = l.certify(a, csr(t, thief))
	want(t, "for another key", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = l.certify(a, []byte("x"))
	want(t, "no request", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = l.certify(agent{key: thief, token: a.token}, csr(t, thief))
	want(t, "with another key", err, codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID)

	_, err = identityv1.NewTokenServiceClient(l.service("compute")).RevokeRun(t.Context(), &identityv1.RevokeRunRequest{RunUid: "run_1", WorkspaceUid: "ws_1"})
	must(t, err)
	_, err = l.certify(a, csr(t, key))
	want(t, "after the end", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
}

func TestAgents(t *testing.T) { // A4
	l := newLab(t)
	alice := l.addUser("alice")
	join, err := l.agentJoin(alice.GetUid(), "run_1")
	must(t, err)
	key, thief := newKey(t), newKey(t)
	_, err = l.enrolAgent(join+"x", csr(t, key))
	want(t, "a wrong token", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	_, err = l.enrolAgent(join, []byte("x"))
	want(t, "no request", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = l.enrolAgent(l.join("compute", ""), csr(t, key))
	want(t, "a service's token", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	_, err = l.issue(key, &identityv1.IssueRequest{Service: "compute", JoinToken: join})
	want(t, "an agent's token for a service", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)

	res, err := l.enrolAgent(join, csr(t, key))
	must(t, err)
	c := l.claims(res.GetRunToken(), issuer)
	if c.Subject != alice.GetUid() || c.Run != "run_1" || c.Workspace != "ws_1" || !slices.Equal(c.Actions, runActions) || c.Confirmation == "" ||
		c.Actor != nil || c.Expiry.Sub(c.IssuedAt) != maxRunLife || !strings.HasPrefix(res.GetAgentUid(), "agt_") {
		t.Errorf("claims: %+v", c)
	}
	_, err = l.enrolAgent(join, csr(t, thief))
	want(t, "a second key", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	if again, err := l.enrolAgent(join, csr(t, key)); err != nil || again.GetAgentUid() != res.GetAgentUid() {
		t.Errorf("the same key, after a lost answer: %v, %v", again.GetAgentUid(), err)
	}

	// The token is nothing without the key.
	a := agent{key, res.GetRunToken(), res.GetAgentUid()}
	_, err = l.whoAmI(a.token)
	want(t, "as a bearer", err, codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID)
	_, err = l.renew(agent{key: thief, token: a.token})
	want(t, "with another key", err, codes.Unauthenticated, faultv1.Reason_TOKEN_PROOF_INVALID)
	ctx := l.bound(t.Context(), a.token, key, identityv1.SignInService_WhoAmI_FullMethodName)
	who, err := identityv1.NewSignInServiceClient(l.gateway()).WhoAmI(ctx, &identityv1.WhoAmIRequest{})
	must(t, err)
	if who.GetPrincipal() != "users/alice" || who.GetRunUid() != "run_1" || who.GetWorkspaceUid() != "ws_1" || !slices.Equal(who.GetActions(), runActions) {
		t.Errorf("who am I: %v", who)
	}
	ctx = l.bound(t.Context(), a.token, key, identityv1.DirectoryService_ListUsers_FullMethodName)
	_, err = identityv1.NewDirectoryServiceClient(l.gateway()).ListUsers(ctx, &identityv1.ListUsersRequest{})
	want(t, "the directory", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN)

	// It is renewed as the same, for the same key.
	l.advance(5 * time.Minute)
	renewed, err := l.renew(a)
	must(t, err)
	c2 := l.claims(renewed.GetRunToken(), issuer)
	if c2.Confirmation != c.Confirmation || c2.Run != c.Run || !slices.Equal(c2.Actions, c.Actions) || c2.SessionID != c.SessionID ||
		!c2.Expiry.Equal(l.now().Add(maxRunLife)) || renewed.GetAgentUid() != a.uid {
		t.Errorf("renewed claims: %+v", c2)
	}
	user := l.signIn("alice", "password of alice").GetAccessToken()
	_, err = identityv1.NewAgentServiceClient(l.gateway()).RenewRunToken(bearer(t.Context(), user), &identityv1.RenewRunTokenRequest{})
	want(t, "a user's token", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)

	// What a service makes of it stays in the run.
	child, err := l.exchange("compute", renewed.GetRunToken(), "telemetry")
	must(t, err)
	c3 := l.claims(child, "spiffe://redoubt.test/service/telemetry")
	if c3.Run != c.Run || c3.Workspace != c.Workspace || !slices.Equal(c3.Actions, c.Actions) || c3.Confirmation != "" || c3.Actor == nil {
		t.Errorf("exchanged claims: %+v", c3)
	}

	// The end of the run is the end of all of them.
	_, err = identityv1.NewTokenServiceClient(l.service("compute")).RevokeRun(t.Context(), &identityv1.RevokeRunRequest{RunUid: "run_1", WorkspaceUid: "ws_1"})
	must(t, err)
	a.token = renewed.GetRunToken()
	_, err = l.renew(a)
	want(t, "after the end", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.s.verifier.Verify(t.Context(), child, "spiffe://redoubt.test/service/telemetry")
	want(t, "a descendant after the end", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.enrolAgent(join, csr(t, key))
	want(t, "the join token after the end", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
	_, err = l.agentJoin(alice.GetUid(), "run_1")
	want(t, "another agent after the end", err, codes.FailedPrecondition, faultv1.Reason_RUN_ENDED)
}

func TestRevokingARunTokenEndsTheAgent(t *testing.T) { // A4
	l := newLab(t)
	alice := l.addUser("alice")
	one, other := l.enrolledAgent(alice.GetUid(), "run_1"), l.enrolledAgent(alice.GetUid(), "run_2")
	renewed, err := l.renew(one)
	must(t, err)
	user := l.signIn("alice", "password of alice").GetAccessToken()
	_, err = l.tokens().RevokeToken(bearer(t.Context(), user), &identityv1.RevokeTokenRequest{Token: one.token})
	must(t, err)
	for name, token := range map[string]string{"the token": one.token, "the one that it was renewed to": renewed.GetRunToken()} {
		_, err := l.renew(agent{key: one.key, token: token})
		want(t, name, err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	}
	if _, err := l.renew(other); err != nil {
		t.Errorf("another run's agent: %v", err)
	}
}

func TestAgentsOfWhomTheyMayNot(t *testing.T) { // A4
	l := newLab(t)
	alice := l.addUser("alice")
	ctx, directory := l.asAdmin()
	waiting, err := l.agentJoin(alice.GetUid(), "run_2")
	must(t, err)
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: alice.GetName(), Disabled: true})
	must(t, err)
	_, err = l.agentJoin(alice.GetUid(), "run_1")
	want(t, "a disabled submitter", err, codes.FailedPrecondition, faultv1.Reason_ACCOUNT_DISABLED)
	_, err = l.agentJoin("usr_none", "run_1")
	want(t, "no submitter", err, codes.FailedPrecondition, faultv1.Reason_RUN_SUBMITTER_DENIED)
	_, err = l.enrolAgent(waiting, csr(t, newKey(t)))
	want(t, "disabled in between", err, codes.FailedPrecondition, faultv1.Reason_ACCOUNT_DISABLED)
	for name, ttl := range map[string]time.Duration{"none": 0, "negative": -time.Second, "too long": time.Hour + 1} {
		_, err := identityv1.NewAgentServiceClient(l.service("compute")).CreateAgentJoin(t.Context(), &identityv1.CreateAgentJoinRequest{
			RunUid: "run_1", WorkspaceUid: "ws_1", Submitter: l.admin, Actions: runActions, Ttl: durationpb.New(ttl),
		})
		want(t, name, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	}
	_, err = identityv1.NewAgentServiceClient(l.service("workspace")).CreateAgentJoin(t.Context(), &identityv1.CreateAgentJoinRequest{
		RunUid: "run_1", WorkspaceUid: "ws_1", Submitter: l.admin, Actions: runActions,
	})
	want(t, "by workspace", err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	late, err := l.agentJoin(l.admin, "run_3")
	must(t, err)
	l.advance(agentJoinLife)
	_, err = l.enrolAgent(late, csr(t, newKey(t)))
	want(t, "too late", err, codes.Unauthenticated, faultv1.Reason_JOIN_TOKEN_INVALID)
}

// A5, D10: the services that strangers reach have the public host's names in their certificates, the others have not.
func TestPublicNames(t *testing.T) {
	l := newLab(t)
	u, err := url.Parse(l.cfg.Issuer)
	must(t, err)
	host := u.Hostname()
	for service, public := range map[string]bool{"gateway": true, "inference": true, "compute": false} {
		res, err := l.issue(newKey(t), &identityv1.IssueRequest{Service: service, Instance: "one", JoinToken: l.join(service, "one")})
		must(t, err)
		leaf, err := x509.ParseCertificate(res.GetChain()[0])
		must(t, err)
		if got := leaf.VerifyHostname(host) == nil; got != public {
			t.Errorf("%s has the name %s: %v; it says %v", service, host, got, leaf.DNSNames)
		}
	}
}
