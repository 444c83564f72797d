package identity

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// A1, A4: token exchange gives nobody what the token that is brought does not, and nothing to who is no client that exchanges.
func TestAttackExchange(t *testing.T) {
	long(t)
	l := newLab(t)
	alice, bob := l.addUser("alice"), l.addUser("bob")
	a, broker := l.apiApp(), l.broker("broker", nil)
	modest := l.broker("modest", func(r *identityv1.CreateApplicationRequest) { r.ApiAccess = false })
	public := l.app("public", func(r *identityv1.CreateApplicationRequest) { r.Confidential = false })
	robotID, robotSecret := l.robot("robot")
	robot := app{robotID, robotSecret}
	key, thief := newKey(t), newKey(t)

	parent, bound := l.apiToken(a, "alice", nil), l.apiToken(a, "alice", key)
	b := l.browser()
	identity := l.token(a.redeem(b.code(a, "alice")), nil).json(t) // no API: userinfo alone
	own := l.signIn("alice", "password of alice").GetAccessToken() // Redoubt's own, without scope
	run := l.enrolledAgent(alice.GetUid(), "run_1")
	service, err := l.exchange("compute", parent, "workspace")
	must(t, err)
	acts, err := l.actAs("compute", alice.GetUid(), "workspace")
	must(t, err)
	revoked := l.apiToken(a, "alice", nil)
	must(t, l.browser().post(provider.PathRevoke, url.Values{"token": {revoked}, "client_id": {a.id}, "client_secret": {a.secret}}).err)
	disabled := l.apiToken(a, "bob", nil)
	ctx, d := l.asAdmin()
	_, err = d.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: bob.GetName(), Disabled: true})
	must(t, err)
	child := str(l.token(broker.exchanges(parent), nil).json(t), "access_token")
	narrow := str(l.token(broker.exchanges(parent, "scope", "redoubt"), nil).json(t), "access_token")
	runKeyed := func(q url.Values) reply { return l.token(q, run.key) }

	refused := func(name, code string, q url.Values, key *ecdsa.PrivateKey) attack {
		return attack{name, func(*testing.T) string {
			r := l.token(q, key)
			return gave(r, r.err == nil || r.code != code)
		}}
	}
	at := func(name, value string, code string) attack {
		return refused(fmt.Sprintf("%s %s", name, value), code, broker.exchanges(parent, name, value), nil)
	}
	twice := broker.exchanges(parent)
	twice.Add("audience", issuer)
	twice.Add("audience", "spiffe://redoubt.test/service/keyvault")
	all := []attack{
		// Who asks.
		refused("nobody", "invalid_client", broker.exchanges(parent, "client_id", "", "client_secret", ""), nil),
		refused("no secret", "invalid_client", broker.exchanges(parent, "client_secret", ""), nil),
		refused("a wrong secret", "invalid_client", broker.exchanges(parent, "client_secret", "rdt_wrong"), nil),
		refused("another client's secret", "invalid_client", broker.exchanges(parent, "client_secret", robot.secret), nil),
		refused("a public client", "unauthorized_client", public.exchanges(parent, "client_secret", ""), nil),
		refused("the command line", "unauthorized_client", app{id: provider.CommandLine}.exchanges(parent, "client_secret", ""), key),
		refused("the console", "unauthorized_client", app{id: provider.Console}.exchanges(parent, "client_secret", ""), key),
		refused("an application without the grant", "unauthorized_client", a.exchanges(parent), nil),
		// What is brought.
		at("subject_token", "", "invalid_request"), at("subject_token_type", "", "invalid_request"),
		at("subject_token_type", "urn:ietf:params:oauth:token-type:jwt", "invalid_request"), at("subject_token_type", "urn:ietf:params:oauth:token-type:refresh_token", "invalid_request"),
		at("subject_token_type", "urn:ietf:params:oauth:token-type:id_token", "invalid_request"), at("subject_token", "abc", "invalid_request"), at("subject_token", strings.Repeat(".", 10000), "invalid_request"),
		at("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token", "invalid_request"), at("requested_token_type", "urn:ietf:params:oauth:token-type:id_token", "invalid_request"),
		refused("a refresh token", "invalid_request", broker.exchanges(str(identity, "refresh_token")), nil),
		refused("an ID token", "invalid_request", broker.exchanges(str(identity, "id_token")), nil),
		refused("a token for userinfo alone", "invalid_request", broker.exchanges(str(identity, "access_token")), nil),
		refused("a revoked token", "invalid_request", broker.exchanges(revoked), nil),
		refused("a token of somebody disabled", "invalid_request", broker.exchanges(disabled), nil),
		refused("a service's token", "invalid_request", broker.exchanges(service), nil),
		refused("a token for background work", "invalid_request", broker.exchanges(acts), nil),
		refused("a run's token", "invalid_request", broker.exchanges(run.token), nil),
		{"a run's token with its key", func(*testing.T) string {
			r := runKeyed(broker.exchanges(run.token))
			return gave(r, r.code != "invalid_request")
		}},
		refused("a token with another signature", "invalid_request", broker.exchanges(parent[:strings.LastIndexByte(parent, '.')]+child[strings.LastIndexByte(child, '.'):]), nil),
		refused("a bound token without its key", "invalid_request", broker.exchanges(bound), nil),
		refused("a bound token with another key", "invalid_request", broker.exchanges(bound), thief),
		{"a proof for another endpoint", func(*testing.T) string {
			r := l.browser().send(provider.PathToken, posted(broker.exchanges(bound), func(x *identityv1.Exchange) { x.Dpop = l.proof(key, "POST", provider.PathUserInfo, "") }))
			return gave(r, r.code != "invalid_dpop_proof")
		}},
		{"a proof again", func(*testing.T) string {
			proof := l.proof(key, "POST", provider.PathToken, "")
			send := func() reply {
				return l.browser().send(provider.PathToken, posted(broker.exchanges(bound), func(x *identityv1.Exchange) { x.Dpop = proof }))
			}
			if r := send(); r.err != nil {
				return "not even once: " + r.err.Error()
			}
			r := send()
			return gave(r, r.code != "invalid_dpop_proof")
		}},
		// For whom, and how much.
		at("audience", "spiffe://redoubt.test/service/keyvault", "invalid_target"), at("audience", "keyvault", "invalid_target"), at("audience", issuer+"/", "invalid_target"),
		at("audience", strings.ToUpper(issuer), "invalid_target"), at("resource", "https://other.example", "invalid_target"), at("resource", issuer+provider.PathToken, "invalid_target"),
		refused("two targets", "invalid_target", broker.exchanges(parent, "audience", issuer, "resource", issuer+provider.PathUserInfo), nil),
		refused("an audience twice", "invalid_request", twice, nil),
		refused("the API without its scope", "invalid_target", broker.exchanges(parent, "scope", "openid", "audience", issuer), nil),
		at("scope", "openid profile redoubt admin", "invalid_scope"), at("scope", "offline_access", "invalid_scope"), at("scope", "openid openid", "invalid_scope"), at("scope", "profile", "invalid_scope"),
		at("scope", "openid  redoubt", "invalid_scope"),
		refused("more than the token has", "invalid_scope", broker.exchanges(narrow, "scope", "openid redoubt"), nil),
		refused("userinfo from a token without openid", "invalid_scope", broker.exchanges(narrow, "audience", issuer+provider.PathUserInfo), nil),
		refused("who somebody is from a token without scope", "invalid_scope", broker.exchanges(own, "scope", "openid"), nil),
		refused("the API for a client that was not registered for it", "invalid_scope", modest.exchanges(parent), nil),
		refused("the same from a token without scope", "invalid_scope", modest.exchanges(own), nil),
		// Who acts.
		at("actor_token", child, "invalid_request"), at("actor_token_type", accessToken, "invalid_request"),
		{"a public application that is registered for it", func(*testing.T) string {
			ctx, _ := l.asAdmin()
			_, err := identityv1.NewApplicationServiceClient(l.gateway()).CreateApplication(ctx, &identityv1.CreateApplicationRequest{
				ApplicationId: "anybody", DisplayName: "Anybody", GrantTypes: []string{provider.GrantExchange},
			})
			if c := fault.Code(fault.FromStatus(err)); c != codes.InvalidArgument {
				return fmt.Sprint(err)
			}
			return ""
		}},
		{"a refresh token with it", func(t *testing.T) string {
			if m := l.token(broker.exchanges(parent), nil).json(t); str(m, "refresh_token") != "" || str(m, "id_token") != "" {
				return fmt.Sprint(m)
			}
			return ""
		}},
		{"a token that lives longer", func(*testing.T) string {
			p, c := l.claims(parent, issuer), l.claims(str(l.token(robot.exchanges(parent), nil).json(t), "access_token"), issuer)
			if c.Expiry.After(p.Expiry) || c.IssuedAt.After(p.IssuedAt) || c.AuthTime.After(p.AuthTime) {
				return fmt.Sprint(c)
			}
			return ""
		}},
		{"a token after its parent's end", func(t *testing.T) string {
			old := l.apiToken(a, "alice", nil)
			l.advance(l.claims(old, issuer).Expiry.Sub(l.now()))
			r := l.token(broker.exchanges(old), nil)
			return gave(r, r.code != "invalid_request")
		}},
	}
	attacks(t, all)
	for name, q := range map[string]url.Values{"an application": broker.exchanges(l.apiToken(a, "alice", nil)), "a service principal": robot.exchanges(l.apiToken(a, "alice", nil))} {
		if r := l.token(q, nil); r.err != nil {
			t.Errorf("what is right does not work: %s: %v", name, r.err)
		}
	}
}

// A2, A4: who acts for a person does nothing that only the person does: sign-out, sessions, factors, stepping up, ways into browsers, operator's certificates;
// nor does a service take a client for the peer that it was called by.
func TestAttackDelegated(t *testing.T) {
	long(t)
	l := newLab(t)
	alice := l.addUser("alice")
	broker := l.broker("broker", nil)
	// Even of Redoubt's own session, with which a person does all of that.
	phone := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	parent := phone.session.GetAccessToken()
	there, err := l.answer(l.asked("alice").GetState(), kindTOTP, l.totp(phone.secret, 0))
	must(t, err)
	other := there.GetSession().GetAccessToken()
	child := str(l.token(broker.exchanges(parent), nil).json(t), "access_token")
	ctx := bearer(t.Context(), child)
	var all []attack
	denied := func(name string, call func(context.Context) error) {
		all = append(all, attack{name, func(*testing.T) string {
			err := fault.FromStatus(call(ctx))
			if c := fault.Code(err); c == codes.FailedPrecondition || c == codes.PermissionDenied {
				return ""
			}
			return fmt.Sprint(err)
		}})
	}
	sign, factors, account := l.signIns(), l.factors(), l.accounts()
	denied("sign out", func(ctx context.Context) error { _, err := sign.SignOut(ctx, &identityv1.SignOutRequest{}); return err })
	denied("sign the browser out", func(ctx context.Context) error {
		_, err := sign.SignOut(ctx, &identityv1.SignOutRequest{Browser: true})
		return err
	})
	denied("a code for a browser", func(ctx context.Context) error {
		_, err := sign.CreateSignInCode(ctx, &identityv1.CreateSignInCodeRequest{})
		return err
	})
	denied("enrol a factor", func(ctx context.Context) error {
		_, err := factors.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
		return err
	})
	denied("list factors", func(ctx context.Context) error {
		_, err := factors.ListFactors(ctx, &identityv1.ListFactorsRequest{})
		return err
	})
	denied("new recovery codes", func(ctx context.Context) error {
		_, err := factors.RegenerateRecoveryCodes(ctx, &identityv1.RegenerateRecoveryCodesRequest{})
		return err
	})
	denied("step up", func(ctx context.Context) error {
		_, err := factors.StepUp(ctx, &identityv1.StepUpRequest{Factor: kindTOTP, Response: "123456"})
		return err
	})
	denied("list sessions", func(ctx context.Context) error {
		_, err := account.ListSessions(ctx, &identityv1.ListSessionsRequest{})
		return err
	})
	denied("end a session", func(ctx context.Context) error {
		_, err := account.RevokeSession(ctx, &identityv1.RevokeSessionRequest{SessionId: l.claims(parent, issuer).SessionID})
		return err
	})
	denied("end the other sessions", func(ctx context.Context) error {
		_, err := account.RevokeOtherSessions(ctx, &identityv1.RevokeOtherSessionsRequest{SessionId: l.claims(parent, issuer).SessionID})
		return err
	})
	denied("revoke the parent", func(ctx context.Context) error {
		_, err := l.tokens().RevokeToken(ctx, &identityv1.RevokeTokenRequest{Token: parent})
		return err
	})
	denied("revoke another token of the person's", func(ctx context.Context) error {
		_, err := l.tokens().RevokeToken(ctx, &identityv1.RevokeTokenRequest{Token: other})
		return err
	})
	denied("an operator's certificate", func(ctx context.Context) error {
		_, err := identityv1.NewOperatorServiceClient(l.gateway()).IssueOperatorCertificate(ctx, &identityv1.IssueOperatorCertificateRequest{Csr: csr(t, newKey(t))})
		return err
	})
	// A service that is not the one that acts cannot use it, whatever the client is called.
	all = append(all, attack{"sent on by a service", func(*testing.T) string {
		_, err := identityv1.NewSignInServiceClient(l.service("compute")).WhoAmI(ctx, &identityv1.WhoAmIRequest{})
		if fault.Code(fault.FromStatus(err)) == codes.Unauthenticated {
			return ""
		}
		return fmt.Sprint(err)
	}}, attack{"minted as a service's", func(*testing.T) string {
		c := l.claims(child, issuer)
		for name, change := range map[string]func(*authn.Claims){
			"for a service": func(c *authn.Claims) { c.Audience = []string{l.s.serviceID("keyvault")} },
			"after a service": func(c *authn.Claims) {
				c.Actor = &authn.Actor{Subject: broker.id, SessionID: "sec_1", Actor: &authn.Actor{Subject: l.s.serviceID("compute")}}
			},
			"without its credential":  func(c *authn.Claims) { c.Actor = &authn.Actor{Subject: broker.id} },
			"a run's, not bound":      func(c *authn.Claims) { c.Run, c.Workspace, c.Actions = "run_1", "ws_1", []string{"a"} },
			"a person as who acts":    func(c *authn.Claims) { c.Actor = &authn.Actor{Subject: alice.GetUid(), SessionID: "ses_1"} },
			"a service with a secret": func(c *authn.Claims) { c.Actor = &authn.Actor{Subject: l.s.serviceID("compute"), SessionID: "sec_1"} },
		} {
			d := c
			change(&d)
			if _, _, err := l.s.mint(t.Context(), l.db.Reader(), d, time.Minute); err == nil {
				return name
			}
		}
		return ""
	}})
	attacks(t, all)
	// Its own token it may revoke, and the person is signed in as before.
	_, err = l.tokens().RevokeToken(ctx, &identityv1.RevokeTokenRequest{Token: child})
	must(t, err)
	if _, err := l.whoAmI(child); err == nil {
		t.Error("the token that was revoked is good")
	}
	if _, err := l.whoAmI(parent); err != nil {
		t.Errorf("the person's is over too: %v", err)
	}
}
