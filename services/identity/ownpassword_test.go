package identity

import (
	"context"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

const (
	erinHas   = "password of erin"
	erinWants = "ein Reiher zählt Laternen"
)

func (l *lab) changePassword(token, current, next string) (*identityv1.ChangePasswordResponse, error) {
	return l.accounts().ChangePassword(bearer(l.t.Context(), token), &identityv1.ChangePasswordRequest{CurrentPassword: current, NewPassword: next})
}

// A1, A3: the session that it is changed with stays, and nothing else that the old password gave.
func TestOnesOwnPassword(t *testing.T) {
	l := newLab(t)
	l.addUser("erin")
	token := l.signIn("erin", erinHas).GetAccessToken()
	other := l.signIn("erin", erinHas).GetAccessToken()
	ctx, directory := l.asAdmin()
	code, err := directory.CreateUserCode(ctx, &identityv1.CreateUserCodeRequest{Name: "users/erin"})
	must(t, err)
	r, err := l.changePassword(token, erinHas, erinWants)
	must(t, err)
	if r.GetSessionsEnded() != 1 {
		t.Errorf("%d sessions were ended", r.GetSessionsEnded())
	}
	if _, err := l.whoAmI(token); err != nil {
		t.Errorf("the session that it was changed with: %v", err)
	}
	_, err = l.whoAmI(other)
	want(t, "another session", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.try("erin", erinHas, "192.0.2.2")
	want(t, "the old password", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	_, err = directory.RedeemUserCode(t.Context(), &identityv1.RedeemUserCodeRequest{Code: code.GetCode(), NewPassword: "zwölf Bojen im Nebel"})
	want(t, "a code from before", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	l.signIn("erin", erinWants)
}

// From the console the browser stays signed in as well.
func TestOnesOwnPasswordInTheConsole(t *testing.T) {
	l := newLab(t)
	l.addUser("erin")
	key, b := newKey(t), l.browser()
	token := b.consoleIn("erin", key)
	elsewhere, theirs := l.browser(), newKey(t)
	elsewhere.consoleIn("erin", theirs)
	_, err := l.accounts().ChangePassword(l.bound(t.Context(), token, key, identityv1.AccountService_ChangePassword_FullMethodName),
		&identityv1.ChangePasswordRequest{CurrentPassword: erinHas, NewPassword: erinWants})
	must(t, err)
	if r := b.get(provider.PathAuthorize, askConsole(key)); r.query().Get("code") == "" {
		t.Error("the browser in which it was changed is signed out")
	}
	if r := elsewhere.get(provider.PathAuthorize, askConsole(theirs)); r.query().Get("code") != "" {
		t.Error("another browser is signed in still")
	}
}

func TestWhoMayNotChangeAPassword(t *testing.T) { // A1, A2
	l := newLab(t)
	l.addUser("erin")
	token := l.signIn("erin", erinHas).GetAccessToken()
	for name, c := range map[string]struct {
		current, next string
		code          codes.Code
		reason        faultv1.Reason
	}{
		"a wrong one":          {"password of ervin", erinWants, codes.PermissionDenied, faultv1.Reason_SIGN_IN_FAILED},
		"the same again":       {erinHas, erinHas, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		"a short one":          {erinHas, "kurz", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		"one that is common":   {erinHas, "Password1234", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		"one without the old":  {"", erinWants, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		"a longer one than is": {erinHas, string(make([]byte, 1025)), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
	} {
		l.advance(time.Second)
		_, err := l.changePassword(token, c.current, c.next)
		want(t, name, err, c.code, c.reason)
	}
	if _, err := l.whoAmI(token); err != nil {
		t.Fatalf("a try that failed ended the session: %v", err)
	}

	// An application in his name, and a session that is over.
	a, b := l.apiApp(), l.browser()
	r := b.get(provider.PathAuthorize, a.ask("scope", "redoubt"))
	r = b.post(provider.PathSignIn, url.Values{"request": {r.sealed(t)}, "action": {"sign-in"}, "user": {"erin"}, "password": {erinHas}})
	got := l.token(a.redeem(r.query().Get("code")), nil)
	must(t, got.err)
	_, err := l.changePassword(str(got.json(t), "access_token"), erinHas, erinWants)
	want(t, "an application", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)

	// Whoever found a session open has not the password: tries are those of the sign-in, and share its lock.
	l.addUser("mallet")
	found := l.signIn("mallet", "password of mallet").GetAccessToken()
	locked := false
	for range 12 {
		l.advance(200 * time.Millisecond)
		if _, err = l.changePassword(found, "a guess at it", erinWants); fault.ReasonOf(fault.FromStatus(err)) == faultv1.Reason_RATE_LIMITED {
			locked = true
			break
		}
	}
	if !locked {
		t.Errorf("guesses are not counted: %v", err)
	}
	_, err = l.try("mallet", "password of mallet", "192.0.2.77")
	want(t, "signing in meanwhile", err, codes.ResourceExhausted, faultv1.Reason_RATE_LIMITED)
}

// Who has a second factor proves it anew: a session that was left open is no account.
func TestAPasswordChangesWithTheFactor(t *testing.T) { // A2
	l := newLab(t)
	l.addUser("erin")
	p := l.enrols(l.signIn("erin", erinHas).GetAccessToken())
	had := p.session.GetAccessToken()
	l.advance(freshFor + time.Second)
	_, err := l.changePassword(had, erinHas, erinWants)
	want(t, "an old proof", err, codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED)
	r, err := l.steps(had, "totp", l.totp(p.secret, 0))
	must(t, err)
	if got := l.claims(r.GetAccessToken(), issuer).ACR; got != authn.ACRMFA {
		t.Fatalf("acr %q", got)
	}
	if _, err := l.changePassword(r.GetAccessToken(), erinHas, erinWants); err != nil {
		t.Fatal(err)
	}
	if _, err := l.whoAmI(had); err != nil {
		t.Errorf("the session that it was changed in: %v", err)
	}
}

// meanwhile is a hasher beside whose checks something else happens.
type meanwhile struct {
	hasher
	happens func()
}

func (m meanwhile) Verify(ctx context.Context, stored string, pw redact.Secret) (ok, again bool, err error) {
	m.happens()
	return m.hasher.Verify(ctx, stored, pw)
}

// What was checked has to be so still when the new password is stored, and a check that was not made is no try.
func TestOnesOwnPasswordBesideOthers(t *testing.T) { // A1
	l := newLab(t)
	l.addUser("erin")
	token := l.signIn("erin", erinHas).GetAccessToken()
	plain := l.s.hasher
	l.s.hasher = failing{plain, fault.Unavailable("dead")}
	for range 6 {
		l.advance(200 * time.Millisecond)
		_, err := l.changePassword(token, erinHas, erinWants)
		want(t, "without a worker", err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
	}
	phc, err := plain.Hash(t.Context(), redact.FromString("was ein Verwalter setzt"))
	must(t, err)
	l.s.hasher = meanwhile{plain, func() {
		must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error {
			p, _, err := l.s.store.Find(ctx, tx, store.User, "erin")
			must(t, err)
			return l.s.store.SetPassword(ctx, tx, p.UID, phc, l.now())
		}))
	}}
	_, err = l.changePassword(token, erinHas, erinWants)
	want(t, "set by an administrator meanwhile", err, codes.Aborted, faultv1.Reason_CONFLICT)
	l.s.hasher = plain
	_, err = l.try("erin", erinWants, "192.0.2.3")
	want(t, "the password that came too late", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
}
