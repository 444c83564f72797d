package identity

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
)

// hops are the tokens that services make of one another, from a parent on, with who makes each and for whom.
func (l *lab) hops(parent string) (child, grandchild string) {
	l.t.Helper()
	child, err := l.exchange("compute", parent, "workspace")
	must(l.t, err)
	grandchild, err = l.exchange("workspace", child, "keyvault")
	must(l.t, err)
	return child, grandchild
}

// A4: an exchanged token is never longer nor wider than its parent, at any hop, and has one audience, which no other service is.
func TestExchangeIsNeverMore(t *testing.T) {
	l := newLab(t)
	alice := l.addUser("alice")
	for name, parent := range map[string]string{
		"of a session": l.signIn("alice", "password of alice").GetAccessToken(), "of a run": l.enrolledAgent(alice.GetUid(), "run_1").token,
	} {
		t.Run(name, func(t *testing.T) {
			top := l.claims(parent, issuer)
			child, grandchild := l.hops(parent)
			above := top
			for _, hop := range []struct{ token, service string }{{child, "workspace"}, {grandchild, "keyvault"}} {
				c := l.claims(hop.token, l.s.serviceID(hop.service))
				if !slices.Equal(c.Audience, []string{l.s.serviceID(hop.service)}) {
					t.Errorf("for %v", c.Audience)
				}
				if c.Expiry.After(above.Expiry) || c.Expiry.After(l.now().Add(exchangedLife)) || c.IssuedAt.Before(top.IssuedAt) {
					t.Errorf("at %s it lives from %v to %v, its parent to %v", hop.service, c.IssuedAt, c.Expiry, above.Expiry)
				}
				if c.Subject != top.Subject || c.PrincipalType != top.PrincipalType || c.Run != top.Run || c.Workspace != top.Workspace || !slices.Equal(c.Actions, top.Actions) ||
					c.Scope != top.Scope || c.SessionID != top.SessionID || c.ACR != top.ACR || !c.AuthTime.Equal(top.AuthTime) {
					t.Errorf("at %s it is another's, or more: %+v", hop.service, c)
				}
				if c.Actor.Depth() != above.Actor.Depth()+1 || !slices.Equal(c.Ancestors, append(slices.Clone(above.Ancestors), above.ID)) {
					t.Errorf("at %s its descent is %v, %v", hop.service, actors(&c), c.Ancestors)
				}
				for _, other := range []string{"compute", "workspace", "keyvault", "telemetry", "inference", "identity"} {
					if other == hop.service {
						continue
					}
					_, err := l.s.verifier.Verify(t.Context(), hop.token, l.s.serviceID(other))
					want(t, "at "+other, err, codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE)
				}
				_, err := l.s.verifier.Verify(t.Context(), hop.token, issuer)
				want(t, "at the gateway", err, codes.Unauthenticated, faultv1.Reason_TOKEN_AUDIENCE)
				above = c
			}
		})
	}
	// Of a token that ends soon comes one that ends no later, also by way of one that was made when it had time.
	agent := l.enrolledAgent(alice.GetUid(), "run_2")
	top := l.claims(agent.token, issuer)
	l.advance(maxRunLife - 20*time.Second)
	child, grandchild := l.hops(agent.token)
	for service, token := range map[string]string{"workspace": child, "keyvault": grandchild} {
		if c := l.claims(token, l.s.serviceID(service)); !c.Expiry.Equal(top.Expiry) {
			t.Errorf("at %s it ends %v after the run token", service, c.Expiry.Sub(top.Expiry))
		}
	}
	l.advance(20 * time.Second)
	_, err := l.exchange("workspace", child, "keyvault")
	want(t, "after its end", err, codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED)
}

// A4: whatever ends a token ends all that was exchanged from it, at every hop, and nothing more is made of them.
func TestExchangeDiesWithItsParent(t *testing.T) {
	type living struct {
		l     *lab
		alice *identityv1.User
		token string
	}
	revoke := func(v living) error {
		admin := v.l.signIn("admin", adminPassword).GetAccessToken()
		_, err := v.l.tokens().RevokeToken(bearer(v.l.t.Context(), admin), &identityv1.RevokeTokenRequest{Token: v.token})
		return err
	}
	for name, tc := range map[string]struct {
		run bool
		end func(living) error
	}{
		"the token is revoked":     {false, revoke},
		"the run token is revoked": {true, revoke},
		"the run has ended": {true, func(v living) error {
			_, err := identityv1.NewTokenServiceClient(v.l.service("compute")).RevokeRun(t.Context(), &identityv1.RevokeRunRequest{RunUid: "run_1", WorkspaceUid: "ws_1"})
			return err
		}},
		"signed out": {false, func(v living) error {
			_, err := identityv1.NewSignInServiceClient(v.l.gateway()).SignOut(bearer(t.Context(), v.token), &identityv1.SignOutRequest{})
			return err
		}},
		"disabled": {false, func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: v.alice.GetName(), Disabled: true})
			return err
		}},
		"disabled, of a run": {true, func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: v.alice.GetName(), Disabled: true})
			return err
		}},
		"deleted, of a run": {true, func(v living) error {
			ctx, d := v.l.asAdmin()
			_, err := d.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: v.alice.GetName()})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			v := living{l: l, alice: l.addUser("alice")}
			if v.token = l.enrolledAgent(v.alice.GetUid(), "run_1").token; !tc.run {
				v.token = l.signIn("alice", "password of alice").GetAccessToken()
			}
			child, grandchild := l.hops(v.token)
			l.advance(time.Second)
			must(t, tc.end(v))
			for service, token := range map[string]string{"workspace": child, "keyvault": grandchild} {
				_, err := l.s.verifier.Verify(t.Context(), token, l.s.serviceID(service))
				want(t, "at "+service, err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
				if c := authn.BearerOf(err); c == nil || c.Subject != v.alice.GetUid() {
					t.Errorf("whose it was: %v", c)
				}
			}
			_, err := l.exchange("compute", v.token, "workspace")
			want(t, "another child", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
			_, err = l.exchange("workspace", child, "keyvault")
			want(t, "another grandchild", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
		})
	}
}
