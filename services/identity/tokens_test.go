package identity

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2/clientcredentials"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

func codeOf(err error) codes.Code { return fault.Code(fault.FromStatus(err)) }

// robot makes a service principal with a secret.
func (l *lab) robot(id string) (clientID, secret string) {
	l.t.Helper()
	ctx, directory := l.asAdmin()
	sp, err := directory.CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: id})
	must(l.t, err)
	s, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	must(l.t, err)
	return s.GetClientId(), s.GetSecret()
}

func (l *lab) tokens() identityv1.TokenServiceClient {
	return identityv1.NewTokenServiceClient(l.gateway())
}

func (l *lab) clientToken(id, secret string) (*identityv1.TokenResponse, error) {
	return l.tokens().IssueToken(l.t.Context(), &identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: id, ClientSecret: secret})
}

// publicly serves what the gateway does: the documents and the token endpoint, with the issuer at the server's own address.
func publicly(t *testing.T, l **lab) *httptest.Server {
	mux := http.NewServeMux()
	document := func(call func(context.Context) (*identityv1.Document, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			doc, err := call(r.Context())
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(doc.GetJson())
		}
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", document(func(ctx context.Context) (*identityv1.Document, error) {
		return (*l).tokens().GetDiscovery(ctx, &identityv1.GetDiscoveryRequest{})
	}))
	mux.HandleFunc("GET "+pathKeys, document(func(ctx context.Context) (*identityv1.Document, error) {
		return (*l).tokens().GetKeys(ctx, &identityv1.GetKeysRequest{})
	}))
	mux.HandleFunc("POST "+provider.PathToken, func(w http.ResponseWriter, r *http.Request) {
		id, secret, basic := r.BasicAuth()
		if !basic {
			id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
		}
		res, err := (*l).tokens().IssueToken(r.Context(), &identityv1.IssueTokenRequest{GrantType: r.PostFormValue("grant_type"), ClientId: id, ClientSecret: secret})
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": oauthCode(err)})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"access_token": res.GetAccessToken(), "token_type": res.GetTokenType(), "expires_in": int(res.GetExpiresIn().AsDuration().Seconds()),
		})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

func oauthCode(err error) string { return fault.Describe(fault.FromStatus(err)).Metadata()[oauthError] }

func TestStandardClientsVerifyOurTokens(t *testing.T) { // A1: coreos/go-oidc and x/oauth2, unmodified
	var l *lab
	server := publicly(t, &l)
	l = newLabOf(t, func(c *Config) { c.Issuer = server.URL })
	id, secret := l.robot("robot")
	ctx := oidc.ClientContext(t.Context(), server.Client())
	provider, err := oidc.NewProvider(ctx, server.URL)
	must(t, err)
	conf := clientcredentials.Config{ClientID: id, ClientSecret: secret, TokenURL: provider.Endpoint().TokenURL}
	token, err := conf.Token(ctx)
	must(t, err)
	if left := time.Until(token.Expiry); token.TokenType != "Bearer" || left > time.Hour || left < 50*time.Minute {
		t.Errorf("token of type %s for %v", token.TokenType, left)
	}
	verified, err := provider.Verifier(&oidc.Config{ClientID: server.URL}).Verify(ctx, token.AccessToken)
	must(t, err)
	if verified.Subject != id || verified.Issuer != server.URL || !slices.Equal(verified.Audience, []string{server.URL}) {
		t.Errorf("verified as %+v", verified)
	}
	if _, err := provider.Verifier(&oidc.Config{ClientID: "https://other"}).Verify(ctx, token.AccessToken); err == nil {
		t.Error("the token is good for another audience")
	}
	head, rest, _ := strings.Cut(token.AccessToken, ".")
	if _, err := provider.Verifier(&oidc.Config{ClientID: server.URL}).Verify(ctx, head+".e30"+rest[strings.LastIndex(rest, "."):]); err == nil {
		t.Error("a changed token is good")
	}
	conf.ClientSecret = "rdt_wrong"
	if _, err := conf.Token(ctx); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("a wrong secret: %v", err)
	}
}

func TestDiscoverySaysWhatIsTrue(t *testing.T) {
	l := newLab(t)
	var header metadata.MD
	doc, err := l.tokens().GetDiscovery(t.Context(), &identityv1.GetDiscoveryRequest{}, grpc.Header(&header))
	must(t, err)
	var d map[string]any
	must(t, json.Unmarshal(doc.GetJson(), &d))
	for name, value := range map[string]string{
		"issuer": issuer, "token_endpoint": issuer + "/oauth2/token", "jwks_uri": issuer + "/oauth2/keys",
		"id_token_signing_alg_values_supported": "[ES256]", "subject_types_supported": "[public]", "response_types_supported": "[code]", "response_modes_supported": "[query]",
		"grant_types_supported":                 "[authorization_code refresh_token client_credentials urn:ietf:params:oauth:grant-type:device_code urn:ietf:params:oauth:grant-type:token-exchange]",
		"token_endpoint_auth_methods_supported": "[none client_secret_basic client_secret_post private_key_jwt]", "code_challenge_methods_supported": "[S256]",
		"authorization_response_iss_parameter_supported": "true", "dpop_signing_alg_values_supported": "[ES256]", "request_uri_parameter_supported": "false",
		"tls_client_certificate_bound_access_tokens": "false",
	} {
		if fmt.Sprint(d[name]) != value {
			t.Errorf("%s is %v", name, d[name])
		}
	}
	routes := map[string]string{
		"authorization_endpoint": provider.PathAuthorize, "token_endpoint": provider.PathToken, "userinfo_endpoint": provider.PathUserInfo,
		"end_session_endpoint": provider.PathEnd, "introspection_endpoint": provider.PathIntro, "revocation_endpoint": provider.PathRevoke,
		"device_authorization_endpoint": provider.PathDeviceReq,
	}
	for name, value := range d {
		if strings.HasSuffix(name, "_endpoint") && value != issuer+routes[name] {
			t.Errorf("there is no %s", name)
		}
		delete(routes, name)
	}
	if len(routes) > 0 {
		t.Errorf("not told: %v", routes)
	}
	keys, err := l.tokens().GetKeys(t.Context(), &identityv1.GetKeysRequest{}, grpc.Header(&header))
	must(t, err)
	set, err := authn.ParseJWKS(keys.GetJson())
	must(t, err)
	if len(set) != 2 || set[l.s.keys.signerID(t)] == nil || strings.Contains(string(keys.GetJson()), `"d"`) {
		t.Errorf("keys: %s", keys.GetJson())
	}
	if got := header.Get("cache-control"); !slices.Equal(got, []string{"public, max-age=300"}) {
		t.Errorf("cache-control: %v", got)
	}
}

func TestIssueToken(t *testing.T) { // A1
	l := newLab(t)
	id, secret := l.robot("robot")
	other, otherSecret := l.robot("other")
	res, err := l.clientToken(id, secret)
	must(t, err)
	if res.GetTokenType() != "Bearer" || res.GetExpiresIn().AsDuration() != time.Hour || !res.GetExpireTime().AsTime().Equal(l.now().Add(time.Hour)) {
		t.Errorf("token: %v until %v", res.GetTokenType(), res.GetExpireTime())
	}
	c := l.claims(res.GetAccessToken(), issuer)
	if c.Subject != id || c.ClientID != id || c.PrincipalType != authn.ServicePrincipal || !strings.HasPrefix(c.SessionID, "sec_") {
		t.Errorf("claims: %+v", c)
	}
	if who, err := l.whoAmI(res.GetAccessToken()); err != nil || who.GetPrincipal() != "servicePrincipals/robot" {
		t.Errorf("who am I: %v, %v", who, err)
	}
	ok := identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: id, ClientSecret: secret}
	for _, c := range []struct {
		name        string
		grant       string
		id, secret  string
		scope, aud  string
		code        codes.Code
		oauth       string
		description faultv1.Reason
	}{
		{"no grant", "", id, secret, "", "", codes.InvalidArgument, "invalid_request", faultv1.Reason_REQUEST_INVALID},
		{"password grant", "password", id, secret, "", "", codes.InvalidArgument, "unsupported_grant_type", faultv1.Reason_REQUEST_INVALID},
		{"no client", ok.GetGrantType(), "", secret, "", "", codes.Unauthenticated, "invalid_client", faultv1.Reason_CREDENTIAL_INVALID},
		{"no secret", ok.GetGrantType(), id, "", "", "", codes.Unauthenticated, "invalid_client", faultv1.Reason_CREDENTIAL_INVALID},
		{"wrong secret", ok.GetGrantType(), id, secret + "x", "", "", codes.Unauthenticated, "invalid_client", faultv1.Reason_CREDENTIAL_INVALID},
		{"another's secret", ok.GetGrantType(), id, otherSecret, "", "", codes.Unauthenticated, "invalid_client", faultv1.Reason_CREDENTIAL_INVALID},
		{"unknown client", ok.GetGrantType(), "spn_none", secret, "", "", codes.Unauthenticated, "invalid_client", faultv1.Reason_CREDENTIAL_INVALID},
		{"name for id", ok.GetGrantType(), "servicePrincipals/robot", secret, "", "", codes.Unauthenticated, "invalid_client", faultv1.Reason_CREDENTIAL_INVALID},
		{"a user's name", ok.GetGrantType(), "admin", adminPassword, "", "", codes.Unauthenticated, "invalid_client", faultv1.Reason_CREDENTIAL_INVALID},
		{"scope", ok.GetGrantType(), id, secret, "admin", "", codes.InvalidArgument, "invalid_scope", faultv1.Reason_REQUEST_INVALID},
		{"a service's audience", ok.GetGrantType(), id, secret, "", "spiffe://redoubt.test/service/keyvault", codes.InvalidArgument, "invalid_target", faultv1.Reason_REQUEST_INVALID},
	} {
		_, err := l.tokens().IssueToken(t.Context(), &identityv1.IssueTokenRequest{
			GrantType: c.grant, ClientId: c.id, ClientSecret: c.secret, Scope: c.scope, Audience: c.aud,
		})
		want(t, c.name, err, c.code, c.description)
		if got := oauthCode(err); got != c.oauth {
			t.Errorf("%s: oauth_error is %q", c.name, got)
		}
	}

	ctx, directory := l.asAdmin()
	_, err = directory.DeleteServicePrincipal(ctx, &identityv1.DeleteServicePrincipalRequest{Name: "servicePrincipals/robot"})
	must(t, err)
	_, err = l.whoAmI(res.GetAccessToken())
	want(t, "its token after the removal", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.clientToken(id, secret)
	want(t, "its secret after the removal", err, codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID)
	if again, _ := l.robot("robot"); again == id {
		t.Error("one of the same name has the old uid")
	}
	l.advance(clientSecretLife)
	_, err = l.clientToken(other, otherSecret)
	want(t, "a secret that is over", err, codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID)
}

func TestExchange(t *testing.T) { // A3: exact audience, ancestors, and never more than the parent
	l := newLab(t)
	l.addUser("alice")
	user := l.signIn("alice", "password of alice").GetAccessToken()
	parent := l.claims(user, issuer)
	spiffe := func(name string) string { return "spiffe://redoubt.test/service/" + name }

	first, err := l.exchange("compute", user, "workspace")
	must(t, err)
	c := l.claims(first, spiffe("workspace"))
	if c.Subject != parent.Subject || c.SessionID != parent.SessionID || c.ClientID != parent.ClientID || !slices.Equal(c.AMR, parent.AMR) ||
		c.Confirmation != "" || c.ID == parent.ID || !slices.Equal(c.Ancestors, []string{parent.ID}) ||
		c.Actor.Depth() != 1 || c.Actor.Subject != spiffe("compute") || c.Expiry.Sub(c.IssuedAt) != 5*time.Minute {
		t.Errorf("claims: %+v", c)
	}
	second, err := l.exchange("workspace", first, "keyvault")
	must(t, err)
	c2 := l.claims(second, spiffe("keyvault"))
	if !slices.Equal(actors(&c2), []string{spiffe("workspace"), spiffe("compute")}) || !slices.Equal(c2.Ancestors, []string{parent.ID, c.ID}) {
		t.Errorf("claims of the second: %+v", c2)
	}

	for _, c := range []struct {
		name, service, subject, audience string
		code                             codes.Code
		reason                           faultv1.Reason
	}{
		{"another service's token", "inference", first, "telemetry", codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE},
		{"the token it was given itself", "compute", first, "telemetry", codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE},
		{"no service", "compute", user, "nobody", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"a SPIFFE ID", "compute", user, spiffe("workspace"), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"the installation", "compute", user, issuer, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"itself", "compute", user, "compute", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"the gateway", "compute", user, "gateway", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"by the gateway", "gateway", user, "workspace", codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED},
		{"not a token", "compute", "x.y.z", "workspace", codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID},
	} {
		_, err := l.exchange(c.service, c.subject, c.audience)
		want(t, c.name, err, c.code, c.reason)
	}
	for _, path := range []string{"operator/" + parent.Subject, "agent/agt_1", "workspace/ws_1/run/r1"} {
		_, err := identityv1.NewTokenServiceClient(l.as(path)).ExchangeToken(t.Context(), &identityv1.ExchangeTokenRequest{SubjectToken: user, Audience: "workspace"})
		want(t, path, err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	}

	// Four services may act, and no more.
	chain := []string{"compute", "workspace", "keyvault", "telemetry", "inference"}
	token := user
	for i := range 4 {
		token, err = l.exchange(chain[i], token, chain[i+1])
		must(t, err)
	}
	_, err = l.exchange("inference", token, "compute")
	want(t, "a fifth actor", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)

	// Towards its end the parent bounds the child.
	l.advance(time.Hour - 30*time.Second)
	late, err := l.exchange("compute", user, "workspace")
	must(t, err)
	if got := l.claims(late, spiffe("workspace")); !got.Expiry.Equal(parent.Expiry) {
		t.Errorf("the child ends %v after its parent", got.Expiry.Sub(parent.Expiry))
	}
	l.advance(30 * time.Second)
	_, err = l.exchange("compute", user, "workspace")
	want(t, "an expired token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED)
}

func TestServiceTokensOpenOneServiceFromOnePeer(t *testing.T) { // A3: at identity, as at every other service
	l := newLab(t)
	user := l.signIn("admin", adminPassword).GetAccessToken()
	ours, err := l.exchange("compute", user, "identity")
	must(t, err)
	others, err := l.exchange("compute", user, "workspace")
	must(t, err)
	for _, c := range []struct {
		name, peer, token string
		reason            faultv1.Reason
	}{
		{"from the peer that it was made for", "compute", ours, faultv1.Reason_REASON_UNSPECIFIED},
		{"from another service", "workspace", ours, faultv1.Reason_PEER_MAY_NOT_FORWARD},
		{"through the gateway", "gateway", ours, faultv1.Reason_TOKEN_AUDIENCE},
		{"another service's", "compute", others, faultv1.Reason_TOKEN_AUDIENCE},
		{"a user's, from a service", "compute", user, faultv1.Reason_TOKEN_AUDIENCE},
	} {
		_, err := identityv1.NewSignInServiceClient(l.service(c.peer)).WhoAmI(bearer(t.Context(), c.token), &identityv1.WhoAmIRequest{})
		if got := fault.ReasonOf(fault.FromStatus(err)); got != c.reason {
			t.Errorf("%s: %v (%v)", c.name, got, err)
		}
	}
}

func TestRevokingAParentKillsTheDescent(t *testing.T) { // A3
	l := newLab(t)
	l.addUser("alice")
	user := l.signIn("alice", "password of alice").GetAccessToken()
	other := l.signIn("alice", "password of alice").GetAccessToken()
	child, err := l.exchange("compute", user, "workspace")
	must(t, err)
	grandchild, err := l.exchange("workspace", child, "keyvault")
	must(t, err)
	revoke := func(by, token string) error {
		_, err := l.tokens().RevokeToken(bearer(t.Context(), by), &identityv1.RevokeTokenRequest{Token: token})
		return err
	}
	// The child alone first: what does not descend from it lives on.
	must(t, revoke(user, child))
	for name, c := range map[string]struct{ token, audience string }{"child": {child, "workspace"}, "grandchild": {grandchild, "keyvault"}} {
		_, err := l.s.verifier.Verify(t.Context(), c.token, "spiffe://redoubt.test/service/"+c.audience)
		want(t, name, err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	}
	_, err = l.exchange("workspace", child, "keyvault")
	want(t, "exchange of a revoked token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if _, err := l.whoAmI(user); err != nil {
		t.Errorf("the parent died with its child: %v", err)
	}

	adminToken := l.signIn("admin", adminPassword).GetAccessToken()
	err = revoke(user, adminToken)
	want(t, "another's", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	if _, err := l.whoAmI(adminToken); err != nil {
		t.Errorf("the administrator's token died of it: %v", err)
	}
	must(t, revoke(adminToken, user))
	_, err = l.whoAmI(user)
	want(t, "revoked by an administrator", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if _, err := l.whoAmI(other); err != nil {
		t.Errorf("another token of the same user died too: %v", err)
	}
	must(t, revoke(adminToken, user)) // again is fine
	want(t, "not a token", revoke(adminToken, "nothing"), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	forged := user[:len(user)-8] + "AAAAAAAA"
	want(t, "a forged token", revoke(adminToken, forged), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	l.advance(50 * time.Minute)
	late := l.signIn("admin", adminPassword).GetAccessToken()
	l.advance(20 * time.Minute)
	must(t, revoke(late, other)) // it is over
}

func TestActAs(t *testing.T) {
	l := newLab(t)
	alice := l.addUser("alice")
	ctx, directory := l.asAdmin()
	group, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: "people"})
	must(t, err)
	token, err := l.actAs("compute", alice.GetUid(), "workspace")
	must(t, err)
	c := l.claims(token, "spiffe://redoubt.test/service/workspace")
	if c.Subject != alice.GetUid() || c.PrincipalType != authn.User || c.SessionID != "" || c.Actor.Depth() != 1 ||
		c.Actor.Subject != "spiffe://redoubt.test/service/compute" || c.Expiry.Sub(c.IssuedAt) != 5*time.Minute {
		t.Errorf("claims: %+v", c)
	}
	for _, c := range []struct {
		name, service, principal, audience string
		code                               codes.Code
		reason                             faultv1.Reason
	}{
		{"nobody", "compute", "usr_none", "workspace", codes.FailedPrecondition, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"a group", "compute", group.GetUid(), "workspace", codes.FailedPrecondition, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"by name", "compute", "users/alice", "workspace", codes.FailedPrecondition, faultv1.Reason_RUN_SUBMITTER_DENIED},
		{"for the gateway", "compute", alice.GetUid(), "gateway", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"for the vault", "compute", alice.GetUid(), "keyvault", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"for itself", "compute", alice.GetUid(), "compute", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"by workspace", "workspace", alice.GetUid(), "keyvault", codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED},
		{"by the gateway", "gateway", alice.GetUid(), "keyvault", codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED},
	} {
		_, err := l.actAs(c.service, c.principal, c.audience)
		want(t, c.name, err, c.code, c.reason)
	}
	recorded := 0
	for _, ev := range l.events() {
		if ev.GetMethod() == identityv1.TokenService_ActAs_FullMethodName && ev.GetCode() == "OK" {
			recorded++
			if d := ev.GetDetails(); d["subject"] != alice.GetUid() || d["run_uid"] != "run_1" || d["audience"] != "workspace" {
				t.Errorf("recorded as %v", ev)
			}
		}
	}
	if recorded != 1 {
		t.Errorf("%d records of one token", recorded)
	}
}

// interposed does something after the first query that passes through it.
type interposed struct {
	sqldb.DBTX
	once sync.Once
	do   func()
}

func (b *interposed) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	row := b.DBTX.QueryRowContext(ctx, query, args...)
	b.once.Do(b.do)
	return row
}

// A2, A3: an account that ends while a token is made for it has none that outlives its end, whenever it happens.
func TestNoTokenOutlivesItsAccountsEnd(t *testing.T) {
	for name, end := range map[string]func(ctx context.Context, d identityv1.DirectoryServiceClient, sp *identityv1.ServicePrincipal) error{
		"disabled": func(ctx context.Context, d identityv1.DirectoryServiceClient, sp *identityv1.ServicePrincipal) error {
			_, err := d.SetServicePrincipalDisabled(ctx, &identityv1.SetServicePrincipalDisabledRequest{Name: sp.GetName(), Disabled: true})
			return err
		},
		"deleted": func(ctx context.Context, d identityv1.DirectoryServiceClient, sp *identityv1.ServicePrincipal) error {
			_, err := d.DeleteServicePrincipal(ctx, &identityv1.DeleteServicePrincipalRequest{Name: sp.GetName()})
			return err
		},
	} {
		for _, when := range []string{"after it was looked up", "after its token was dated"} {
			t.Run(name+" "+when, func(t *testing.T) {
				l := newLab(t)
				ctx, d := l.asAdmin()
				sp, err := d.CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "robot"})
				must(t, err)
				ends := func() {
					must(t, end(ctx, d, sp))
					l.advance(2 * time.Second) // what is dated now is later than what was revoked
				}
				q := l.db.Reader()
				if when == "after its token was dated" {
					q = &interposed{DBTX: q, do: ends}
				} else {
					ends()
				}
				c := authn.Claims{Audience: []string{issuer}, Subject: sp.GetUid(), PrincipalType: authn.ServicePrincipal, ClientID: sp.GetUid()}
				if _, got, err := l.s.mint(t.Context(), q, c, time.Hour); err == nil {
					t.Errorf("a token was made, dated %v", got.IssuedAt)
				}
			})
		}
	}
}
