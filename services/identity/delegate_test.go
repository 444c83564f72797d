package identity

import (
	"crypto/ecdsa"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

const accessToken = "urn:ietf:params:oauth:token-type:access_token"

// broker is a confidential application that exchanges tokens and does nothing else.
func (l *lab) broker(id string, change func(*identityv1.CreateApplicationRequest)) app {
	l.t.Helper()
	return l.app(id, func(r *identityv1.CreateApplicationRequest) {
		r.RedirectUris, r.PostLogoutRedirectUris, r.GrantTypes, r.ApiAccess = nil, nil, []string{provider.GrantExchange}, true
		if change != nil {
			change(r)
		}
	})
}

// exchanges is a good request of the token endpoint for the subject's token.
func (a app) exchanges(subject string, change ...string) url.Values {
	return with(url.Values{
		"grant_type": {provider.GrantExchange}, "subject_token": {subject}, "subject_token_type": {accessToken}, "client_id": {a.id}, "client_secret": {a.secret},
	}, change...)
}

// apiToken is one that a user has just let the application have, for the API, bound to the key if there is one.
func (l *lab) apiToken(a app, user string, key *ecdsa.PrivateKey) string {
	l.t.Helper()
	b := l.browser()
	return str(l.token(a.redeem(b.code(a, user, "scope", "openid profile offline_access redoubt")), key).json(l.t), "access_token")
}

// A1, A4: a confidential client exchanges a token that it was called with for one of its own, which says who acts for whom and is never more than the
// token that it came of; services take it, and what they exchange it for descends from both.
func TestDelegation(t *testing.T) {
	long(t)
	l := newLab(t)
	alice := l.addUser("alice")
	a, first := l.apiApp(), l.broker("first", nil)
	robot, secret := l.robot("robot")
	second := app{id: robot, secret: secret}
	parent := l.apiToken(a, "alice", nil)
	top := l.claims(parent, issuer)
	l.events()
	l.advance(10 * time.Second)

	r := l.token(first.exchanges(parent), nil)
	m := r.json(t)
	child := str(m, "access_token")
	if str(m, "issued_token_type") != accessToken || str(m, "token_type") != "Bearer" || str(m, "scope") != "openid profile redoubt" || str(m, "refresh_token") != "" || str(m, "id_token") != "" {
		t.Errorf("the answer is %v", m)
	}
	c := l.claims(child, issuer)
	if c.Subject != alice.GetUid() || c.ClientID != first.id || c.SessionID != top.SessionID || !c.AuthTime.Equal(top.AuthTime) || c.ACR != top.ACR || !slices.Equal(c.AMR, top.AMR) {
		t.Errorf("it says %+v of %+v", c, top)
	}
	if !c.IssuedAt.Equal(top.IssuedAt) || c.Expiry.After(top.Expiry) || !slices.Equal(c.Ancestors, []string{top.ID}) || c.ID == top.ID {
		t.Errorf("its times are %v %v, its parents %v", c.IssuedAt, c.Expiry, c.Ancestors)
	}
	if c.Actor == nil || c.Actor.Subject != first.id || c.Actor.SessionID == "" || c.Actor.Actor != nil {
		t.Errorf("the actor is %+v", c.Actor)
	}
	who, err := l.whoAmI(child)
	must(t, err)
	if who.GetUid() != alice.GetUid() || !slices.Equal(who.GetActors(), []string{first.id}) {
		t.Errorf("whoami: %v", who)
	}
	// The record has both tokens, the client and whom it acts for.
	for _, ev := range l.events() {
		d := ev.GetDetails()
		if !strings.HasSuffix(ev.GetMethod(), "/RequestToken") || d["grant"] != provider.GrantExchange {
			continue
		}
		if ev.GetPrincipal() != alice.GetUid() || d["client_id"] != first.id || d["subject_token"] != top.ID || d["token"] != c.ID || d["credential"] != c.Actor.SessionID {
			t.Errorf("the record says %s %v", ev.GetPrincipal(), d)
		}
		who = nil
	}
	if who != nil {
		t.Error("there is no record of the exchange")
	}
	// A second client is called with the first one's token: it acts after that one. Then there is no room for a third.
	grandchild := str(l.token(second.exchanges(child), nil).json(t), "access_token")
	g := l.claims(grandchild, issuer)
	if g.Actor == nil || g.Actor.Subject != robot || g.Actor.Actor == nil || g.Actor.Actor.Subject != first.id || !slices.Equal(g.Ancestors, []string{top.ID, c.ID}) {
		t.Errorf("of the second: %+v %v", g.Actor, g.Ancestors)
	}
	if r := l.token(first.exchanges(grandchild), nil); r.code != "invalid_request" {
		t.Errorf("a third client: %v %v", r.code, r.err)
	}
	// Inside the mesh the services come after the clients.
	onward, err := l.exchange("compute", grandchild, "workspace")
	must(t, err)
	if o := l.claims(onward, l.s.serviceID("workspace")); o.Actor.Subject != l.s.serviceID("compute") || o.Actor.Actor.Subject != robot || o.Actor.Depth() != 3 || o.Actor.Actor.SessionID != g.Actor.SessionID {
		t.Errorf("inside: %v", actors(&o))
	}
	// Narrower.
	for name, tc := range map[string]struct {
		change          []string
		scope, audience string
	}{
		"the API alone":           {[]string{"scope", "redoubt"}, "redoubt", issuer},
		"no API":                  {[]string{"scope", "openid"}, "openid", issuer + provider.PathUserInfo},
		"for userinfo":            {[]string{"audience", issuer + provider.PathUserInfo}, "openid profile", issuer + provider.PathUserInfo},
		"a resource":              {[]string{"resource", issuer}, "openid profile redoubt", issuer},
		"both, the same":          {[]string{"resource", issuer, "audience", issuer}, "openid profile redoubt", issuer},
		"the type that is wanted": {[]string{"requested_token_type", accessToken}, "openid profile redoubt", issuer},
	} {
		m := l.token(first.exchanges(parent, tc.change...), nil).json(t)
		if c := l.claims(str(m, "access_token"), tc.audience); c.Scope != tc.scope || str(m, "scope") != tc.scope {
			t.Errorf("%s: the scope is %q, %q", name, c.Scope, str(m, "scope"))
		}
	}
	// A client that was not registered for the API gets what says who somebody is.
	modest := l.broker("modest", func(r *identityv1.CreateApplicationRequest) { r.ApiAccess = false })
	said := str(l.token(modest.exchanges(parent, "scope", "openid profile"), nil).json(t), "access_token")
	info := l.browser().send(provider.PathUserInfo, &identityv1.Exchange{Method: http.MethodGet, Authorization: "Bearer " + said})
	if info.err != nil || str(info.json(t), "sub") != alice.GetUid() {
		t.Errorf("userinfo: %v", info.err)
	}
	// Who asks about it hears who acts.
	in := l.browser().post(provider.PathIntro, url.Values{"token": {child}, "client_id": {first.id}, "client_secret": {first.secret}}).json(t)
	if act, ok := in["act"].(map[string]any); !ok || act["sub"] != first.id || in["client_id"] != first.id || in["active"] != true {
		t.Errorf("introspected: %v", in)
	}
	// Bound to the client's key, and from a bound token only by that key.
	key := newKey(t)
	m = l.token(first.exchanges(parent), key).json(t)
	if c := l.claims(str(m, "access_token"), issuer); c.Confirmation != authn.Thumbprint(&key.PublicKey) || str(m, "token_type") != "DPoP" {
		t.Errorf("bound: %q %v", c.Confirmation, m)
	}
	bound := l.apiToken(a, "alice", key)
	m = l.token(second.exchanges(bound), key).json(t)
	if c := l.claims(str(m, "access_token"), issuer); c.Confirmation != authn.Thumbprint(&key.PublicKey) {
		t.Errorf("of a bound token: %q", c.Confirmation)
	}
	// Never longer, from a token that ends soon.
	l.advance(top.Expiry.Sub(l.now()) - 20*time.Second)
	if c := l.claims(str(l.token(first.exchanges(parent), nil).json(t), "access_token"), issuer); !c.Expiry.Equal(top.Expiry) {
		t.Errorf("it ends at %v, its parent at %v", c.Expiry, top.Expiry)
	}
}

// A4: what ends the token that was exchanged, its session or its subject ends what came of it, at the first hop, the second, and inside the mesh; so
// does what ends the client that acts, or the secret that it proved itself by. It is over when the call has returned.
func TestDelegationDies(t *testing.T) {
	long(t)
	type living struct {
		l                 *lab
		alice             *identityv1.User
		a, broker         app
		parent            string
		robot             *identityv1.ServicePrincipal
		credential, child string
	}
	// of says whose end it is: of the token that was brought (all die), of the application, or of the service principal that comes second.
	for name, tc := range map[string]struct {
		of  string
		end func(living) error
	}{
		"the parent is revoked": {"parent", func(v living) error {
			_, err := v.l.tokens().RevokeToken(bearer(t.Context(), v.l.signIn("admin", adminPassword).GetAccessToken()), &identityv1.RevokeTokenRequest{Token: v.parent})
			return err
		}},
		"the parent is withdrawn": {"parent", func(v living) error {
			return v.l.browser().post(provider.PathRevoke, url.Values{"token": {v.parent}, "client_id": {v.a.id}, "client_secret": {v.a.secret}}).err
		}},
		"signed out": {"parent", func(v living) error {
			_, err := v.l.signIns().SignOut(bearer(t.Context(), v.parent), &identityv1.SignOutRequest{})
			return err
		}},
		"the subject is disabled": {"parent", func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: v.alice.GetName(), Disabled: true})
			return err
		}},
		"the subject is deleted": {"parent", func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: v.alice.GetName()})
			return err
		}},
		"the application that acts is deleted": {"broker", func(v living) error {
			ctx, _ := v.l.asAdmin()
			_, err := identityv1.NewApplicationServiceClient(v.l.gateway()).DeleteApplication(ctx, &identityv1.DeleteApplicationRequest{Name: "applications/broker"})
			return err
		}},
		"the first child is withdrawn by its client": {"child", func(v living) error {
			return v.l.browser().post(provider.PathRevoke, url.Values{"token": {v.child}, "client_id": {v.broker.id}, "client_secret": {v.broker.secret}}).err
		}},
		"the service principal that acts is disabled": {"robot", func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.SetServicePrincipalDisabled(ctx, &identityv1.SetServicePrincipalDisabledRequest{Name: v.robot.GetName(), Disabled: true})
			return err
		}},
		"the service principal that acts is deleted": {"robot", func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.DeleteServicePrincipal(ctx, &identityv1.DeleteServicePrincipalRequest{Name: v.robot.GetName()})
			return err
		}},
		"the secret of the service principal is removed": {"robot", func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.DeleteServicePrincipalCredential(ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: v.robot.GetName(), CredentialId: v.credential})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			v := living{l: l, alice: l.addUser("alice"), a: l.apiApp(), broker: l.broker("broker", nil)}
			ctx, d := l.asAdmin()
			var err error
			v.robot, err = d.CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "robot"})
			must(t, err)
			secret, err := d.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: v.robot.GetName()})
			must(t, err)
			v.credential = secret.GetSecretId()
			robot := app{id: secret.GetClientId(), secret: secret.GetSecret()}
			v.parent = l.apiToken(v.a, "alice", nil)
			v.child = str(l.token(v.broker.exchanges(v.parent), nil).json(t), "access_token")
			grandchild := str(l.token(robot.exchanges(v.child), nil).json(t), "access_token")
			inside, err := l.exchange("compute", grandchild, "workspace")
			must(t, err)
			l.advance(time.Second)
			must(t, tc.end(v))
			dead := map[string]bool{"parent": tc.of == "parent", "child": tc.of != "robot", "grandchild": true, "inside": true}
			for which, token := range map[string]string{"parent": v.parent, "child": v.child, "grandchild": grandchild, "inside": inside} {
				audience := issuer
				if which == "inside" {
					audience = l.s.serviceID("workspace")
				}
				_, err := l.s.verifier.Verify(t.Context(), token, audience)
				if dead[which] {
					want(t, which, err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
				} else if err != nil {
					t.Errorf("%s is over too: %v", which, err)
				}
			}
			if r := l.token(robot.exchanges(v.child), nil); r.err == nil {
				t.Error("another one was given")
			}
		})
	}
	t.Run("a service principal that was disabled and enabled", func(t *testing.T) {
		l := newLab(t)
		l.addUser("alice")
		a := l.apiApp()
		id, secret := l.robot("robot")
		parent := l.apiToken(a, "alice", nil)
		child := str(l.token(app{id, secret}.exchanges(parent), nil).json(t), "access_token")
		l.advance(time.Second)
		ctx, d := l.asAdmin()
		for _, off := range []bool{true, false} {
			_, err := d.SetServicePrincipalDisabled(ctx, &identityv1.SetServicePrincipalDisabledRequest{Name: "servicePrincipals/robot", Disabled: off})
			must(t, err)
		}
		_, err := l.s.verifier.Verify(t.Context(), child, issuer)
		want(t, "what it had", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
		if r := l.token(app{id, secret}.exchanges(parent), nil); r.code != "invalid_request" {
			t.Errorf("of a token from before: %q %v", r.code, r.err)
		}
		l.advance(2 * time.Second)
		if r := l.token(app{id, secret}.exchanges(l.apiToken(a, "alice", nil)), nil); r.err != nil {
			t.Errorf("of a token from after: %v", r.err)
		}
	})
}
