package identity

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

var codesShown = regexp.MustCompile(`[0-9a-z]{5}(?:-[0-9a-z]{5}){3}`)

// toKeys signs a browser in to the page of its own factors.
func (b *browser) toKeys(user string) reply {
	b.l.t.Helper()
	r := b.get(provider.PathFactors, nil)
	r = b.post(provider.PathSignIn, url.Values{"request": {r.sealed(b.l.t)}, "user": {user}, "password": {"password of " + user}, "action": {"sign-in"}})
	if r.GetStatus() == http.StatusOK && strings.Contains(r.text(), `name="factor"`) {
		return r // a factor is asked for first
	}
	if r.GetStatus() != http.StatusSeeOther || r.GetLocation() != provider.PathFactors {
		b.l.t.Fatalf("%d %s %s %v", r.GetStatus(), r.GetLocation(), r.text(), r.err)
	}
	return b.get(provider.PathFactors, nil)
}

func adds(t testing.TB, page reply, name, answer string) url.Values {
	t.Helper()
	return url.Values{"request": {page.sealed(t)}, "action": {"add"}, "name": {name}, "code": {answer}}
}

// registers gives a user a key, as the first factor or a further one, and the recovery codes that came with it.
func (l *lab) registers(user string, d *device) (recovery []string) {
	l.t.Helper()
	b := l.browser()
	page := b.toKeys(user)
	r := b.post(provider.PathFactors, adds(l.t, page, "blue key", d.creates(page.asksKey(l.t))))
	if r.GetStatus() != http.StatusOK {
		l.t.Fatalf("%d %s %v", r.GetStatus(), r.text(), r.err)
	}
	return codesShown.FindAllString(r.text(), -1)
}

func answers(t testing.TB, page reply, answer string) url.Values {
	t.Helper()
	return url.Values{"request": {page.sealed(t)}, "factor": {"webauthn"}, "code": {answer}, "action": {"factor"}}
}

// A2: a security key is registered on a page as the first factor, asked for at a sign-in and for a step up, listed and removed.
func TestKeyOnPages(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	old := l.signIn("alice", "password of alice")
	a := l.app("board", nil)
	d := newDevice(t)
	d.count = 7
	if n := len(l.registers("alice", d)); n != 10 {
		t.Fatalf("%d recovery codes", n)
	}
	if _, err := l.whoAmI(old.GetAccessToken()); err == nil {
		t.Error("a session by the password alone outlived the first factor")
	}
	if c := l.asked("alice"); !slices.Equal(c.GetFactors(), []string{"webauthn", "recovery_code"}) {
		t.Errorf("%v", c.GetFactors())
	}
	b := l.browser()
	page := b.signInTo(a.ask(), "alice")
	o := page.asksKey(t)
	if o.PublicKey.RPID != "redoubt.test" || len(o.PublicKey.Allow) != 1 || o.PublicKey.Allow[0].ID != b64.EncodeToString(d.id) || len(o.PublicKey.Challenge) < 43 {
		t.Errorf("%+v", o)
	}
	if csp := page.GetContentSecurityPolicy(); !strings.Contains(csp, "; script-src "+issuer+provider.PathScript) || strings.Contains(csp, "unsafe") {
		t.Errorf("%s", csp)
	}
	if strings.Contains(strings.ReplaceAll(page.text(), `<script src="/oauth2/key.js"></script>`, ""), "<script") {
		t.Errorf("a script on the page: %s", page.text())
	}
	d.count++
	r := b.post(provider.PathSignIn, answers(t, page, d.signs(o)))
	code := r.query().Get("code")
	if code == "" {
		t.Fatalf("%d %s %v", r.GetStatus(), r.text(), r.err)
	}
	id := payload(t, str(l.token(a.redeem(code), nil).json(t), "id_token"))
	if amr, _ := json.Marshal(id["amr"]); id["acr"] != authn.ACRMFA || string(amr) != `["pwd","hwk","user","mfa"]` {
		t.Errorf("%v", id)
	}
	// An application asks for a fresh proof: the password and the key are asked for once more.
	l.advance(time.Minute)
	if page = b.signInTo(a.ask("max_age", "0"), "alice"); page.GetLocation() != "" {
		t.Fatalf("max_age=0 was answered without a sign-in: %s", page.GetLocation())
	}
	d.count++
	if r = b.post(provider.PathSignIn, answers(t, page, d.signs(page.asksKey(t)))); r.query().Get("code") == "" {
		t.Fatalf("%d %s %v", r.GetStatus(), r.text(), r.err)
	}
	if at, _ := payload(t, str(l.token(a.redeem(r.query().Get("code")), nil).json(t), "id_token"))["auth_time"].(float64); int64(at) != l.now().Unix() {
		t.Errorf("auth_time %v", at)
	}
	// A further one, which is synchronised and knows its user; the page wants the first one before.
	e := newDevice(t)
	e.flags = flagUP | flagUV | flagBE
	in := l.browser()
	page = in.toKeys("alice")
	d.count++
	if r = in.post(provider.PathSignIn, answers(t, page, d.signs(page.asksKey(t)))); r.GetLocation() != provider.PathFactors {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	page = in.get(provider.PathFactors, nil)
	if r = in.post(provider.PathFactors, adds(t, page, "phone", e.creates(page.asksKey(t)))); r.GetLocation() != provider.PathFactors {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	l.advance(time.Second)
	page = b.signInTo(a.ask("max_age", "0"), "alice")
	if r = b.post(provider.PathSignIn, answers(t, page, e.signs(page.asksKey(t)))); r.query().Get("code") == "" {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	if amr, _ := json.Marshal(payload(t, str(l.token(a.redeem(r.query().Get("code")), nil).json(t), "id_token"))["amr"]); string(amr) != `["pwd","swk","user","mfa"]` {
		t.Errorf("%s", amr)
	}
	if r = in.get(provider.PathFactors, nil); !strings.Contains(r.text(), "<strong>phone</strong>") {
		t.Errorf("%s", r.text())
	}
	// The page is for the last minutes, as the RPCs are.
	l.advance(freshFor + time.Second)
	if r = in.get(provider.PathFactors, nil); !strings.Contains(r.text(), `name="password"`) || strings.Contains(r.text(), "phone") {
		t.Errorf("%s", r.text())
	}
}

// A2: where a factor is required and there is none, a key can be registered instead of an app.
func TestKeyEnrolsWhereRequired(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	a := l.app("board", nil)
	ctx, _ := l.asAdmin()
	_, err := l.factors().UpdateSignInPolicy(ctx, &identityv1.UpdateSignInPolicyRequest{RequireMfa: true})
	must(t, err)
	b := l.browser()
	page := b.signInTo(a.ask(), "alice")
	d := newDevice(t)
	r := b.post(provider.PathSignIn, answers(t, page, d.signs(page.asksKey(t)))) // no registration at all
	if r.GetStatus() != http.StatusUnauthorized {
		t.Fatalf("%d %s", r.GetStatus(), r.text())
	}
	r = b.post(provider.PathSignIn, answers(t, r, d.creates(r.asksKey(t))))
	recovery := codesShown.FindAllString(r.text(), -1)
	if r.GetStatus() != http.StatusOK || len(recovery) != 10 {
		t.Fatalf("%d %s %v", r.GetStatus(), r.text(), r.err)
	}
	if r = b.post(provider.PathSignIn, url.Values{"request": {r.sealed(t)}, "action": {"continue"}}); r.query().Get("code") == "" {
		t.Errorf("%d %s", r.GetStatus(), r.text())
	}
	// FactorService shows and removes it; the app that was offered beside it is not there.
	in, err := l.answer(l.asked("alice").GetState(), "recovery_code", recovery[0])
	must(t, err)
	id := in.GetSession().GetAccessToken()
	list, err := l.factors().ListFactors(bearer(t.Context(), id), &identityv1.ListFactorsRequest{})
	must(t, err)
	if f := list.GetFactors(); len(f) != 1 || f[0].GetKind() != "webauthn" || !f[0].GetProved() || list.GetRecoveryCodes() != 9 {
		t.Fatalf("%v", list)
	}
	_, err = l.factors().DeleteFactor(bearer(t.Context(), id), &identityv1.DeleteFactorRequest{FactorId: list.GetFactors()[0].GetFactorId()})
	want(t, "the last one where one is required", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	must(t, l.db.Write(t.Context(), func(ctx context.Context, tx *sqldb.Tx) error { return l.s.store.SetRequireMFA(ctx, tx, false) }))
	_, err = l.factors().DeleteFactor(bearer(t.Context(), id), &identityv1.DeleteFactorRequest{FactorId: list.GetFactors()[0].GetFactorId()})
	must(t, err)
	// It is free again: of anybody.
	l.addUser("bob")
	if n := len(l.registers("bob", d)); n != 10 {
		t.Errorf("%d recovery codes", n)
	}
}
