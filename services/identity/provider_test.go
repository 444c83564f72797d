package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// A1: somebody signs in to an application with his browser.
func TestCodeGrant(t *testing.T) {
	l := newLab(t)
	uid := l.addUser("alice").GetUid()
	a := l.app("board", nil)
	b := l.browser()
	page := b.get(provider.PathAuthorize, a.ask())
	if page.GetStatus() != 200 || !strings.Contains(page.text(), "The board") || !strings.Contains(page.text(), "https://board.example") {
		t.Fatalf("the page: %d %s", page.GetStatus(), page.text())
	}
	for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'self' https://board.example", "base-uri 'none'"} {
		if !strings.Contains(page.GetContentSecurityPolicy(), part) {
			t.Errorf("the policy %q lacks %q", page.GetContentSecurityPolicy(), part)
		}
	}
	style := between(page.text(), "<style>", "</style>")
	sum := sha256.Sum256([]byte(style))
	if style == "" || !strings.Contains(page.GetContentSecurityPolicy(), "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") || strings.Contains(page.text(), "<script") {
		t.Error("the page's style does not pass its policy, or it has scripts")
	}
	before := b.cookie
	form := url.Values{"request": {page.sealed(t)}, "user": {"Alice"}, "password": {"password of alice"}, "action": {"sign-in"}}
	r := b.post(provider.PathSignIn, form)
	if r.GetStatus() != http.StatusSeeOther || !strings.HasPrefix(r.GetLocation(), board+"?") || r.query().Get("state") != "st-1" || r.query().Get("iss") != issuer {
		t.Fatalf("the answer: %d %s %v", r.GetStatus(), r.GetLocation(), r.err)
	}
	if b.cookie == before {
		t.Error("the cookie of before the sign-in goes on")
	}
	got := l.token(a.redeem(r.query().Get("code")), nil).json(t)
	if str(got, "token_type") != "Bearer" || str(got, "refresh_token") == "" {
		t.Fatalf("the tokens: %v", got)
	}
	id := payload(t, str(got, "id_token"))
	half := sha256.Sum256([]byte(str(got, "access_token")))
	for name, want := range map[string]any{
		"iss": issuer, "sub": uid, "aud": a.id, "azp": a.id, "nonce": "no-1", "preferred_username": "alice", "name": "The alice",
		"at_hash": base64.RawURLEncoding.EncodeToString(half[:16]), "auth_time": float64(l.now().Unix()),
	} {
		if id[name] != want {
			t.Errorf("the ID token says %s = %v, not %v", name, id[name], want)
		}
	}
	// What the application got opens nothing but userinfo.
	access := str(got, "access_token")
	if _, err := l.whoAmI(access); err == nil {
		t.Error("the application's token opens the API")
	}
	c := l.claims(access, issuer+provider.PathUserInfo)
	if c.ClientID != a.id || c.Subject != uid || c.SessionID == "" || c.AMR[0] != "pwd" {
		t.Errorf("the access token says %+v", c)
	}
	info := b.send(provider.PathUserInfo, &identityv1.Exchange{Method: "GET", Authorization: "Bearer " + access}).json(t)
	if info["sub"] != uid || info["preferred_username"] != "alice" {
		t.Errorf("userinfo: %v", info)
	}
	// The browser is signed in: no page the next time.
	if again := b.get(provider.PathAuthorize, a.ask()); again.GetStatus() != http.StatusSeeOther || again.query().Get("code") == "" {
		t.Errorf("the second time: %d %s", again.GetStatus(), again.text())
	}
	events := l.events()
	found := false
	for _, e := range events {
		if strings.HasSuffix(e.GetMethod(), "/RequestToken") && e.GetPrincipal() == uid && e.GetDetails()["client_id"] == a.id {
			found = true
		}
	}
	if !found {
		t.Error("the log does not know who was given tokens")
	}
}

func between(s, a, b string) string {
	_, s, _ = strings.Cut(s, a)
	s, _, _ = strings.Cut(s, b)
	return s
}

// A1, A3: each refresh token counts once; its second use ends the family, everywhere, before it is answered.
func TestRefreshRotates(t *testing.T) {
	l := newLab(t)
	l.addUser("alice")
	a := l.app("board", nil)
	first := l.token(a.redeem(l.browser().code(a, "alice")), nil).json(t)
	second := l.token(a.refresh(str(first, "refresh_token")), nil).json(t)
	if str(second, "refresh_token") == str(first, "refresh_token") || str(second, "access_token") == "" {
		t.Fatalf("not rotated: %v", second)
	}
	// An answer that was lost: the same successor, within ten seconds.
	l.advance(5 * time.Second)
	lost := l.token(a.refresh(str(first, "refresh_token")), nil).json(t)
	if str(lost, "refresh_token") != str(second, "refresh_token") {
		t.Errorf("another successor: %v", lost)
	}
	third := l.token(a.refresh(str(second, "refresh_token")), nil).json(t)
	live := str(third, "access_token")
	l.claims(live, issuer+provider.PathUserInfo)
	if r := l.token(a.refresh(str(first, "refresh_token")), nil); r.code != "invalid_grant" {
		t.Errorf("reuse: %v %v", r.code, r.err)
	}
	if _, err := l.s.verifier.Verify(t.Context(), live, issuer+provider.PathUserInfo); err == nil {
		t.Error("a token of the family is honoured after the reuse was answered")
	}
	if r := l.token(a.refresh(str(third, "refresh_token")), nil); r.code != "invalid_grant" {
		t.Errorf("the family lives: %v", r.text())
	}
}

// A1: what ends a user's sessions ends what applications were given by him.
func TestGrantsEndWithTheirPerson(t *testing.T) {
	l := newLab(t)
	a := l.app("board", nil)
	for name, end := range map[string]func(user string){
		"disabled": func(user string) {
			ctx, d := l.asAdmin()
			_, err := d.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/" + user, Disabled: true})
			must(t, err)
		},
		"a new password": func(user string) {
			ctx, d := l.asAdmin()
			_, err := d.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: "users/" + user, NewPassword: "a violet lorry by night"})
			must(t, err)
		},
	} {
		user := strings.ReplaceAll(name, " ", "-")
		l.addUser(user)
		b := l.browser()
		got := l.token(a.redeem(b.code(a, user)), nil).json(t)
		waiting := b.code(a, user)
		end(user)
		if _, err := l.s.verifier.Verify(t.Context(), str(got, "access_token"), issuer+provider.PathUserInfo); err == nil {
			t.Errorf("%s: the access token lives", name)
		}
		if r := l.token(a.refresh(str(got, "refresh_token")), nil); r.code != "invalid_grant" {
			t.Errorf("%s: the refresh token lives: %v", name, r.text())
		}
		if r := l.token(a.redeem(waiting), nil); r.code != "invalid_grant" {
			t.Errorf("%s: a code that waited lives: %v", name, r.text())
		}
		if r := b.get(provider.PathAuthorize, a.ask("prompt", "none")); r.query().Get("error") != "login_required" {
			t.Errorf("%s: the browser is signed in: %s", name, r.GetLocation())
		}
	}
}
