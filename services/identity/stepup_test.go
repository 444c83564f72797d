package identity

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

func (l *lab) steps(token, kind, response string) (*identityv1.StepUpResponse, error) {
	return l.factors().StepUp(bearer(l.elsewhere(), token), &identityv1.StepUpRequest{Factor: kind, Response: response})
}

// A2: a code and the token in hand give that token with another time, and nothing more.
func TestStepUpInPlace(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("admin", adminPassword).GetAccessToken())
	had := p.session.GetAccessToken()
	reset := &identityv1.ResetFactorsRequest{Name: "users/alice"}
	l.advance(15 * time.Minute)
	_, err := l.factors().ResetFactors(bearer(t.Context(), had), reset)
	want(t, "an old sign-in", err, codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED)
	_, err = l.steps(had, "totp", "000000")
	want(t, "a wrong code", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	code := l.totp(p.secret, 0)
	r, err := l.steps(had, "totp", code)
	must(t, err)
	_, err = l.factors().ResetFactors(bearer(t.Context(), r.GetAccessToken()), reset)
	must(t, err)
	_, err = l.steps(had, "totp", code)
	want(t, "the same code", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	was, is := l.claims(had, issuer), l.claims(r.GetAccessToken(), issuer)
	if is.SessionID != was.SessionID || is.ClientID != was.ClientID || is.Scope != was.Scope || is.Expiry.After(was.Expiry) || is.Confirmation != was.Confirmation ||
		is.ACR != authn.ACRMFA || !is.AuthTime.Equal(l.now().Truncate(time.Second)) || !slices.Equal(is.AMR, []string{"pwd", "otp", "mfa"}) || !slices.Contains(is.Ancestors, was.ID) {
		t.Errorf("%+v of %+v", is, was)
	}
	// The session is not lifted: what it had it has.
	_, err = l.factors().ResetFactors(bearer(t.Context(), had), reset)
	want(t, "the token of before", err, codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED)
	// Revoking the one that it came of takes it along.
	_, err = identityv1.NewTokenServiceClient(l.gateway()).RevokeToken(bearer(t.Context(), r.GetAccessToken()), &identityv1.RevokeTokenRequest{Token: had})
	must(t, err)
	_, err = l.whoAmI(r.GetAccessToken())
	want(t, "a revoked parent", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
}

// A2: what does not step up.
func TestAttackStepUp(t *testing.T) {
	long(t)
	l := newLab(t)
	for _, user := range []string{"alice", "bob", "carol"} {
		l.addUser(user)
	}
	alice := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	bob := l.enrols(l.signIn("bob", "password of bob").GetAccessToken())
	carol := l.signIn("carol", "password of carol").GetAccessToken()
	token := alice.session.GetAccessToken()
	none := func(name, token, kind string, response func() string) attack {
		return attack{name, func(*testing.T) string {
			must(t, l.forget("alice"))
			l.advance(2 * time.Second) // the limit by principal is another test's
			r, err := l.steps(token, kind, response())
			if err == nil || fault.ReasonOf(fault.FromStatus(err)) == faultv1.Reason_RATE_LIMITED {
				return fmt.Sprint(r, err)
			}
			return ""
		}}
	}
	said := func(s string) func() string { return func() string { return s } }
	robot, secret := l.robot("robot")
	program, err := identityv1.NewTokenServiceClient(l.gateway()).IssueToken(l.elsewhere(), &identityv1.IssueTokenRequest{GrantType: "client_credentials", ClientId: robot, ClientSecret: secret})
	must(t, err)
	service, err := identityv1.NewTokenServiceClient(l.service("workspace")).ExchangeToken(t.Context(), &identityv1.ExchangeTokenRequest{SubjectToken: token, Audience: "identity"})
	must(t, err)
	app := l.app("board", nil)
	b := l.browser()
	page := b.signInTo(app.ask(), "alice")
	r := b.post(provider.PathSignIn, types(page, t, "recovery_code", alice.recovery[9]))
	boards := str(l.token(app.redeem(r.query().Get("code")), nil).json(t), "access_token")
	l.advance(time.Minute)
	all := []attack{
		none("another user's code", token, "totp", func() string { return l.totp(bob.secret, 0) }),
		none("another user's recovery code", token, "recovery_code", said(bob.recovery[0])),
		none("a used recovery code", token, "recovery_code", said(alice.recovery[9])),
		none("a security key", token, "webauthn", said("{}")),
		none("the password", token, "pwd", said("password of alice")),
		none("no code", token, "totp", said(" ")),
		none("a code of long ago", token, "totp", func() string { return l.totp(alice.secret, -4) }),
		none("a code that is to come", token, "totp", func() string { return l.totp(alice.secret, 4) }),
		none("without a factor", carol, "totp", func() string { return l.totp(alice.secret, 0) }),
		none("a program", program.GetAccessToken(), "totp", func() string { return l.totp(alice.secret, 0) }),
		none("an application", boards, "totp", func() string { return l.totp(alice.secret, 0) }),
		none("without a token", "", "totp", func() string { return l.totp(alice.secret, 0) }),
		none("a token that is none", "x.y.z", "totp", func() string { return l.totp(alice.secret, 0) }),
		{"a service in his name", func(t *testing.T) string {
			r, err := identityv1.NewFactorServiceClient(l.service("workspace")).StepUp(bearer(t.Context(), service.GetAccessToken()), &identityv1.StepUpRequest{Factor: "totp", Response: l.totp(alice.secret, 0)})
			if err == nil {
				return r.String()
			}
			return ""
		}},
		{"again and again", func(t *testing.T) string {
			must(t, l.forget("alice"))
			tok := token
			for i := range maxStepUps + 1 {
				l.advance(2 * time.Second)
				r, err := l.steps(tok, "recovery_code", alice.recovery[i])
				if err != nil {
					if i == maxStepUps {
						return ""
					}
					t.Fatal(i, err)
				}
				tok = r.GetAccessToken()
			}
			return "one more"
		}},
		{"guessing", func(t *testing.T) string {
			must(t, l.forget("alice"))
			for range freeTries + 1 {
				l.advance(time.Second)
				_, _ = l.steps(token, "totp", "000000")
			}
			// The right one waits now too, here and at a sign-in.
			if r, err := l.steps(token, "totp", l.totp(alice.secret, 0)); err == nil {
				return r.String()
			}
			if r, err := l.answer(l.asked("alice").GetState(), "totp", l.totp(alice.secret, 0)); err == nil {
				return r.String()
			}
			return ""
		}},
		{"after signing out", func(t *testing.T) string {
			must(t, l.forget("alice"))
			_, err := l.signIns().SignOut(bearer(l.elsewhere(), token), &identityv1.SignOutRequest{})
			must(t, err)
			if r, err := l.steps(token, "totp", l.totp(alice.secret, 0)); err == nil {
				return r.String()
			}
			return ""
		}},
	}
	attacks(t, all)
	in, err := l.answer(l.asked("alice").GetState(), "totp", l.totp(alice.secret, 0))
	must(t, err)
	l.advance(time.Minute)
	if _, err := l.steps(in.GetSession().GetAccessToken(), "totp", l.totp(alice.secret, 0)); err != nil {
		t.Error(err)
	}
}
