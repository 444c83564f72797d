package identity

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

func types(r reply, t *testing.T, kind, code string) url.Values {
	t.Helper()
	return url.Values{"request": {r.sealed(t)}, "factor": {kind}, "code": {code}, "action": {"factor"}}
}

func TestPagesAskForAFactor(t *testing.T) { // A1, A2
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	a := l.app("board", nil)
	b := l.browser()
	before := b.cookie
	r := b.signInTo(a.ask(), "alice")
	if r.GetStatus() != http.StatusOK || !strings.Contains(r.text(), `value="recovery_code"`) || strings.Contains(r.text(), p.secret) || strings.Contains(strings.ToLower(r.text()), "<script") {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	// Between password and factor nobody is signed in.
	if x := b.get(provider.PathAuthorize, a.ask("prompt", "none")); x.query().Get("error") != "login_required" {
		t.Errorf("%s", x.GetLocation())
	}
	if x := b.post(provider.PathSignIn, url.Values{"request": {r.sealed(t)}, "action": {"continue"}}); x.GetStatus() != http.StatusOK || x.GetLocation() != "" {
		t.Errorf("continue without the factor: %d %s", x.GetStatus(), x.GetLocation())
	}
	// Another browser does not go on with the page, nor does another site.
	other := l.browser()
	if x := other.post(provider.PathSignIn, types(r, t, "totp", l.totp(p.secret, 0))); x.GetLocation() != "" || x.GetStatus() != http.StatusOK {
		t.Errorf("another browser: %d %s", x.GetStatus(), x.GetLocation())
	}
	b.site = "cross-site"
	if x := b.post(provider.PathSignIn, types(r, t, "totp", l.totp(p.secret, 0))); x.GetStatus() != http.StatusForbidden {
		t.Errorf("another site: %d", x.GetStatus())
	}
	b.site = "same-origin"

	x := b.post(provider.PathSignIn, types(r, t, "totp", "000000"))
	if x.GetStatus() != http.StatusUnauthorized || !strings.Contains(x.text(), "wrong") {
		t.Fatalf("%d %s", x.GetStatus(), x.text())
	}
	x = b.post(provider.PathSignIn, types(x, t, "totp", l.totp(p.secret, 0)))
	code := x.query().Get("code")
	if code == "" || b.cookie == before {
		t.Fatalf("%d %s %s %v", x.GetStatus(), x.GetLocation(), x.text(), x.err)
	}
	id := payload(t, str(l.token(a.redeem(code), nil).json(t), "id_token"))
	amr, _ := id["amr"].([]any)
	if id["acr"] != authn.ACRMFA || !slices.Contains(amr, any("otp")) {
		t.Errorf("%v", id)
	}
	// A recovery code does too, and after five wrong ones the password is asked for again.
	b = l.browser()
	r = b.signInTo(a.ask(), "alice")
	for range stateTries - 1 {
		r = b.post(provider.PathSignIn, types(r, t, "recovery_code", "0"))
	}
	if r = b.post(provider.PathSignIn, types(r, t, "totp", "000000")); r.GetStatus() != http.StatusUnauthorized || !strings.Contains(r.text(), `name="password"`) {
		t.Errorf("%d %s", r.GetStatus(), r.text())
	}
	r = b.signInTo(a.ask(), "alice")
	if r = b.post(provider.PathSignIn, types(r, t, "recovery_code", p.recovery[0])); r.GetStatus() != http.StatusTooManyRequests {
		t.Errorf("%d %s", r.GetStatus(), r.text())
	}
	must(t, l.forget("alice"))
	r = b.signInTo(a.ask(), "alice")
	if r = b.post(provider.PathSignIn, types(r, t, "recovery_code", p.recovery[0])); r.query().Get("code") == "" {
		t.Errorf("%d %s", r.GetStatus(), r.text())
	}
}

func TestPagesEnrolARequiredFactor(t *testing.T) { // A1, A2
	l := newLab(t)
	l.addUser("alice")
	a := l.app("board", nil)
	in := l.browser()
	in.code(a, "alice")
	ctx, _ := l.asAdmin()
	_, err := l.factors().UpdateSignInPolicy(ctx, &identityv1.UpdateSignInPolicyRequest{RequireMfa: true})
	must(t, err)
	if x := in.get(provider.PathAuthorize, a.ask("prompt", "none")); x.query().Get("error") != "login_required" {
		t.Errorf("a browser by a password alone is signed in still: %s", x.GetLocation())
	}
	b := l.browser()
	r := b.signInTo(a.ask(), "alice")
	m := regexp.MustCompile(`<p class="code">([A-Z2-7]{32})</p>`).FindStringSubmatch(r.text())
	if m == nil || !strings.Contains(r.text(), `href="otpauth://totp/`) {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	x := b.post(provider.PathSignIn, types(r, t, "totp", "000000"))
	if x.GetStatus() != http.StatusUnauthorized || !strings.Contains(x.text(), m[1]) {
		t.Errorf("%d %s", x.GetStatus(), x.text())
	}
	x = b.post(provider.PathSignIn, types(x, t, "totp", l.totp(m[1], 0)))
	shown := regexp.MustCompile(`[0-9a-z]{5}(?:-[0-9a-z]{5}){3}`).FindAllString(x.text(), -1)
	if x.GetStatus() != http.StatusOK || len(shown) != 10 || x.GetLocation() != "" {
		t.Fatalf("%d %s", x.GetStatus(), x.text())
	}
	if x = b.post(provider.PathSignIn, url.Values{"request": {x.sealed(t)}, "action": {"continue"}}); x.query().Get("code") == "" || strings.Contains(x.text(), shown[0]) {
		t.Errorf("%d %s", x.GetStatus(), x.text())
	}
	if _, err := l.answer(l.asked("alice").GetState(), "recovery_code", shown[0]); err != nil {
		t.Error(err)
	}
}

// A2: a state opens what it was made for, and nothing else.
func TestStateIsForOnePurpose(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	p := l.enrols(l.signIn("alice", "password of alice").GetAccessToken())
	finish := func(context.Context, *sqldb.Tx, login.Proven) error { return nil }
	_, err := l.s.continueSignIn(t.Context(), &identityv1.ContinueSignInRequest{State: l.asked("alice").GetState(), Factor: "recovery_code", Response: p.recovery[0]}, forPages, finish)
	want(t, "a session's state on a page", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
}
