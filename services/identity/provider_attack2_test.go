package identity

import (
	"crypto/ecdsa"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// refreshAttacks are those with refresh tokens and keys.
func (l *lab) refreshAttacks(a, other app, b *browser, key, thief *ecdsa.PrivateKey) []attack {
	is := func(r reply, code string) string { return gave(r, r.err == nil || r.code != code) }
	given := func(t *testing.T, k *ecdsa.PrivateKey) map[string]any {
		return l.token(a.redeem(b.code(a, "alice")), k).json(t)
	}
	return []attack{
		{"refresh: of nothing", func(*testing.T) string { return is(l.token(a.refresh(prefixed("rdr_")), nil), "invalid_grant") }},
		{"refresh: missing", func(*testing.T) string { return is(l.token(a.refresh(""), nil), "invalid_request") }},
		{"refresh: by another client", func(t *testing.T) string {
			return is(l.token(other.refresh(str(given(t, nil), "refresh_token")), nil), "invalid_grant")
		}},
		{"refresh: an access token", func(t *testing.T) string {
			return is(l.token(a.refresh(str(given(t, nil), "access_token")), nil), "invalid_grant")
		}},
		{"refresh: an ID token", func(t *testing.T) string {
			return is(l.token(a.refresh(str(given(t, nil), "id_token")), nil), "invalid_grant")
		}},
		{"refresh: a code", func(*testing.T) string { return is(l.token(a.refresh(b.code(a, "alice")), nil), "invalid_grant") }},
		{"refresh: as a code", func(t *testing.T) string {
			return is(l.token(a.redeem(str(given(t, nil), "refresh_token")), nil), "invalid_grant")
		}},
		{"refresh: for more", func(t *testing.T) string {
			return is(l.token(a.refresh(str(given(t, nil), "refresh_token"), "scope", "openid redoubt"), nil), "invalid_scope")
		}},
		{"refresh: reuse after the grace", func(t *testing.T) string {
			first := given(t, nil)
			l.token(a.refresh(str(first, "refresh_token")), nil)
			l.advance(11 * time.Second)
			return is(l.token(a.refresh(str(first, "refresh_token")), nil), "invalid_grant")
		}},
		{"refresh: unused for days", func(t *testing.T) string {
			first := given(t, nil)
			l.advance(73 * time.Hour)
			return is(l.token(a.refresh(str(first, "refresh_token")), nil), "invalid_grant")
		}},
		{"refresh: past the grant's end", func(t *testing.T) string {
			b.cookie = "" // that of before has run out
			token := str(given(t, nil), "refresh_token")
			for range 4 {
				l.advance(48 * time.Hour)
				r := l.token(a.refresh(token), nil)
				if r.err != nil {
					return is(r, "invalid_grant")
				}
				token = str(r.json(t), "refresh_token")
			}
			return "it lives for more than a week"
		}},
		{"key: refresh without it", func(t *testing.T) string {
			b.cookie = ""
			return is(l.token(a.refresh(str(given(t, key), "refresh_token")), nil), "invalid_grant")
		}},
		{"key: refresh with another", func(t *testing.T) string {
			return is(l.token(a.refresh(str(given(t, key), "refresh_token")), thief), "invalid_grant")
		}},
		{"key: a proof twice", func(t *testing.T) string {
			proof := l.proof(key, "POST", provider.PathToken, "")
			use := func() reply {
				return l.browser().send(provider.PathToken, posted(a.redeem(b.code(a, "alice")), func(x *identityv1.Exchange) { x.Dpop = proof }))
			}
			if r := use(); r.err != nil {
				t.Errorf("the first time: %v", r.err)
			}
			return is(use(), "invalid_dpop_proof")
		}},
		{"key: a proof for another endpoint", func(*testing.T) string {
			return is(l.browser().send(provider.PathToken, posted(a.redeem(b.code(a, "alice")), func(x *identityv1.Exchange) { x.Dpop = l.proof(key, "POST", provider.PathUserInfo, "") })), "invalid_dpop_proof")
		}},
		{"key: a proof for another method", func(*testing.T) string {
			return is(l.browser().send(provider.PathToken, posted(a.redeem(b.code(a, "alice")), func(x *identityv1.Exchange) { x.Dpop = l.proof(key, "GET", provider.PathToken, "") })), "invalid_dpop_proof")
		}},
		{"key: a proof that is none", func(*testing.T) string {
			return is(l.browser().send(provider.PathToken, posted(a.redeem(b.code(a, "alice")), func(x *identityv1.Exchange) { x.Dpop = "a.b.c" })), "invalid_dpop_proof")
		}},
		{"key: an old proof", func(*testing.T) string {
			proof := l.proof(key, "POST", provider.PathToken, "")
			l.advance(2 * time.Minute)
			return is(l.browser().send(provider.PathToken, posted(a.redeem(b.code(a, "alice")), func(x *identityv1.Exchange) { x.Dpop = proof })), "invalid_dpop_proof")
		}},
		{"key: the command line without one", func(*testing.T) string {
			return is(l.token(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"x"}, "client_id": {provider.CommandLine}}, nil), "invalid_dpop_proof")
		}},
		{"key: the command line's device without one", func(*testing.T) string {
			return is(l.browser().send(provider.PathDeviceReq, posted(url.Values{"client_id": {provider.CommandLine}}, nil)), "invalid_dpop_proof")
		}},
	}
}

// resourceAttacks are those at userinfo, introspection and revocation.
func (l *lab) resourceAttacks(a, other, public app, b *browser, key, thief *ecdsa.PrivateKey) []attack {
	is := func(r reply, code string) string { return gave(r, r.err == nil || r.code != code) }
	given := func(t *testing.T, k *ecdsa.PrivateKey) map[string]any {
		return l.token(a.redeem(b.code(a, "alice")), k).json(t)
	}
	info := func(x *identityv1.Exchange) reply {
		if x.GetMethod() == "" {
			x.Method = http.MethodGet
		}
		return b.send(provider.PathUserInfo, x)
	}
	ask := func(c app, path, token string) reply {
		q := url.Values{"client_id": {c.id}, "token": {token}}
		if c.secret != "" {
			q.Set("client_secret", c.secret)
		}
		return b.send(path, posted(q, nil))
	}
	inactive := func(t *testing.T, r reply) string {
		if r.err != nil {
			return fmt.Sprint(r.err)
		}
		return gave(r, fmt.Sprint(r.json(t)) != "map[active:false]")
	}
	return []attack{
		{"userinfo: nobody", func(*testing.T) string { return is(info(&identityv1.Exchange{}), "invalid_token") }},
		{"userinfo: an ID token", func(t *testing.T) string {
			return is(info(&identityv1.Exchange{Authorization: "Bearer " + str(given(t, nil), "id_token")}), "invalid_token")
		}},
		{"userinfo: a refresh token", func(t *testing.T) string {
			return is(info(&identityv1.Exchange{Authorization: "Bearer " + str(given(t, nil), "refresh_token")}), "invalid_token")
		}},
		{"userinfo: a token in the URL", func(t *testing.T) string {
			return is(info(&identityv1.Exchange{Query: "access_token=" + str(given(t, nil), "access_token")}), "invalid_token")
		}},
		{"userinfo: a token in URL and header", func(t *testing.T) string {
			token := str(given(t, nil), "access_token")
			return is(info(&identityv1.Exchange{Query: "access_token=" + token, Authorization: "Bearer " + token}), "invalid_token")
		}},
		{"userinfo: a bound token as bearer", func(t *testing.T) string {
			return is(info(&identityv1.Exchange{Authorization: "Bearer " + str(given(t, key), "access_token")}), "invalid_token")
		}},
		{"userinfo: a bound token without a proof", func(t *testing.T) string {
			return is(info(&identityv1.Exchange{Authorization: "DPoP " + str(given(t, key), "access_token")}), "invalid_dpop_proof")
		}},
		{"userinfo: a bound token with another's proof", func(t *testing.T) string {
			token := str(given(t, key), "access_token")
			return is(info(&identityv1.Exchange{Authorization: "DPoP " + token, Dpop: l.proof(thief, "GET", provider.PathUserInfo, token)}), "invalid_dpop_proof")
		}},
		{"userinfo: a proof for another token", func(t *testing.T) string {
			token := str(given(t, key), "access_token")
			return is(info(&identityv1.Exchange{Authorization: "DPoP " + token, Dpop: l.proof(key, "GET", provider.PathUserInfo, "other")}), "invalid_dpop_proof")
		}},
		{"userinfo: a bearer token as DPoP", func(t *testing.T) string {
			token := str(given(t, nil), "access_token")
			return is(info(&identityv1.Exchange{Authorization: "DPoP " + token, Dpop: l.proof(key, "GET", provider.PathUserInfo, token)}), "invalid_token")
		}},
		{"userinfo: a revoked token", func(t *testing.T) string {
			token := str(given(t, nil), "access_token")
			if r := ask(a, provider.PathRevoke, token); r.err != nil || r.GetStatus() != 200 {
				t.Errorf("revoke: %v", r.err)
			}
			return is(info(&identityv1.Exchange{Authorization: "Bearer " + token}), "invalid_token")
		}},
		{"userinfo: a token without openid", func(*testing.T) string {
			return is(info(&identityv1.Exchange{Authorization: "Bearer " + l.signIn("admin", adminPassword).GetAccessToken()}), "insufficient_scope")
		}},
		{"introspection: by nobody", func(t *testing.T) string {
			return is(ask(app{}, provider.PathIntro, str(given(t, nil), "access_token")), "invalid_client")
		}},
		{"introspection: by a public client", func(t *testing.T) string {
			return is(ask(public, provider.PathIntro, str(given(t, nil), "access_token")), "invalid_client")
		}},
		{"introspection: another's token", func(t *testing.T) string {
			return inactive(t, ask(other, provider.PathIntro, str(given(t, nil), "access_token")))
		}},
		{"introspection: another's refresh token", func(t *testing.T) string {
			return inactive(t, ask(other, provider.PathIntro, str(given(t, nil), "refresh_token")))
		}},
		{"introspection: a session's token", func(t *testing.T) string {
			return inactive(t, ask(a, provider.PathIntro, l.signIn("admin", adminPassword).GetAccessToken()))
		}},
		{"introspection: an ID token", func(t *testing.T) string {
			return inactive(t, ask(a, provider.PathIntro, str(given(t, nil), "id_token")))
		}},
		{"introspection: a used refresh token", func(t *testing.T) string {
			token := str(given(t, nil), "refresh_token")
			l.token(a.refresh(token), nil)
			return inactive(t, ask(a, provider.PathIntro, token))
		}},
		{"introspection: by GET", func(t *testing.T) string {
			return is(b.send(provider.PathIntro, &identityv1.Exchange{Method: "GET", Query: "token=" + str(given(t, nil), "access_token")}), "invalid_request")
		}},
		{"revocation: another's token", func(t *testing.T) string {
			token := str(given(t, nil), "access_token")
			if got := is(ask(other, provider.PathRevoke, token), "unauthorized_client"); got != "" {
				return got
			}
			return gave(info(&identityv1.Exchange{Authorization: "Bearer " + token}), info(&identityv1.Exchange{Authorization: "Bearer " + token}).err != nil)
		}},
		{"revocation: another's refresh token", func(t *testing.T) string {
			return is(ask(other, provider.PathRevoke, str(given(t, nil), "refresh_token")), "unauthorized_client")
		}},
		{"revocation: a refresh token takes its family", func(t *testing.T) string {
			g := given(t, nil)
			ask(a, provider.PathRevoke, str(g, "refresh_token"))
			if _, err := l.s.verifier.Verify(t.Context(), str(g, "access_token"), issuer+provider.PathUserInfo); err == nil {
				return "the access token lives"
			}
			return is(l.token(a.refresh(str(g, "refresh_token")), nil), "invalid_grant")
		}},
	}
}

// A1: devices (RFC 8628 section 5).
func TestAttackDevices(t *testing.T) {
	long(t)
	l := newLab(t)
	alice := l.addUser("alice")
	l.addUser("mallory")
	a, other := l.app("board", nil), l.app("other", nil)
	is := func(r reply, code string) string { return gave(r, r.err == nil || r.code != code) }
	begin := func(t *testing.T) map[string]any {
		t.Helper()
		return l.browser().send(provider.PathDeviceReq, posted(url.Values{"client_id": {a.id}, "client_secret": {a.secret}, "scope": {"openid offline_access"}}, nil)).json(t)
	}
	poll := func(c app, code string) reply {
		return l.token(url.Values{"grant_type": {provider.GrantDevice}, "device_code": {code}, "client_id": {c.id}, "client_secret": {c.secret}}, nil)
	}
	// typed gives the page that follows a code.
	typed := func(t *testing.T, b *browser, code string) reply {
		t.Helper()
		return b.post(provider.PathDevice, url.Values{"request": {b.get(provider.PathDevice, nil).sealed(t)}, "user_code": {code}})
	}
	// askedAs gives the page that asks whether to let the device in.
	askedAs := func(t *testing.T, b *browser, code, user string) reply {
		t.Helper()
		r := typed(t, b, code)
		r = b.post(provider.PathSignIn, url.Values{"request": {r.sealed(t)}, "user": {user}, "password": {"password of " + user}, "action": {"sign-in"}})
		if !strings.Contains(r.text(), "Let the device in") || !strings.Contains(r.text(), "The board") {
			t.Fatalf("the page that asks: %d %s", r.GetStatus(), r.text())
		}
		return r
	}
	asked := func(t *testing.T, b *browser, code string) reply { return askedAs(t, b, code, "alice") }
	answer := func(t *testing.T, b *browser, code, action string) reply {
		t.Helper()
		r := asked(t, b, code)
		return b.post(provider.PathSignIn, url.Values{"request": {r.sealed(t)}, "action": {action}})
	}
	attacks(t, []attack{
		{"a device code of nothing", func(*testing.T) string { return is(poll(a, prefixed("rdv_")), "invalid_grant") }},
		{"before anybody has typed", func(t *testing.T) string { return is(poll(a, str(begin(t), "device_code")), "authorization_pending") }},
		{"too often", func(t *testing.T) string {
			code := str(begin(t), "device_code")
			poll(a, code)
			l.advance(time.Second)
			if got := is(poll(a, code), "slow_down"); got != "" {
				return got
			}
			l.advance(6 * time.Second) // now it is ten
			return is(poll(a, code), "slow_down")
		}},
		{"by another client", func(t *testing.T) string {
			d := begin(t)
			answer(t, l.browser(), str(d, "user_code"), "continue")
			return is(poll(other, str(d, "device_code")), "invalid_grant")
		}},
		{"twice", func(t *testing.T) string {
			d := begin(t)
			answer(t, l.browser(), str(d, "user_code"), "continue")
			if r := poll(a, str(d, "device_code")); r.err != nil {
				t.Errorf("the first time: %v", r.err)
			}
			l.advance(6 * time.Second)
			return is(poll(a, str(d, "device_code")), "invalid_grant")
		}},
		{"after no", func(t *testing.T) string {
			d := begin(t)
			answer(t, l.browser(), str(d, "user_code"), "cancel")
			return is(poll(a, str(d, "device_code")), "access_denied")
		}},
		{"after signing in alone", func(t *testing.T) string {
			d, b := begin(t), l.browser()
			r := typed(t, b, str(d, "user_code"))
			b.post(provider.PathSignIn, url.Values{"request": {r.sealed(t)}, "user": {"alice"}, "password": {"password of alice"}, "action": {"sign-in"}})
			return is(poll(a, str(d, "device_code")), "authorization_pending")
		}},
		{"after the person has signed out", func(t *testing.T) string {
			d, b := begin(t), l.browser()
			answer(t, b, str(d, "user_code"), "continue")
			b.post(provider.PathEnd, url.Values{"request": {b.get(provider.PathEnd, nil).sealed(t)}})
			return is(poll(a, str(d, "device_code")), "invalid_grant")
		}},
		{"too late", func(t *testing.T) string {
			d := begin(t)
			l.advance(11 * time.Minute)
			return is(poll(a, str(d, "device_code")), "expired_token")
		}},
		{"a code too late", func(t *testing.T) string {
			d := begin(t)
			l.advance(11 * time.Minute)
			r := typed(t, l.browser(), str(d, "user_code"))
			return gave(r, r.GetStatus() != 400)
		}},
		{"a code that was answered", func(t *testing.T) string {
			d := begin(t)
			answer(t, l.browser(), str(d, "user_code"), "continue")
			r := typed(t, l.browser(), str(d, "user_code"))
			return gave(r, r.GetStatus() != 400)
		}},
		{"two answers: yes after no", func(t *testing.T) string {
			d, b := begin(t), l.browser()
			page := asked(t, b, str(d, "user_code"))
			answer(t, l.browser(), str(d, "user_code"), "cancel")
			if r := b.post(provider.PathSignIn, url.Values{"request": {page.sealed(t)}, "action": {"continue"}}); !strings.Contains(r.text(), "does not wait") {
				return gave(r, true)
			}
			return is(poll(a, str(d, "device_code")), "access_denied")
		}},
		{"two answers: somebody else's yes after hers", func(t *testing.T) string {
			d, b := begin(t), l.browser()
			page := askedAs(t, b, str(d, "user_code"), "mallory")
			answer(t, l.browser(), str(d, "user_code"), "continue")
			if r := b.post(provider.PathSignIn, url.Values{"request": {page.sealed(t)}, "action": {"continue"}}); !strings.Contains(r.text(), "does not wait") {
				return gave(r, true)
			}
			r := poll(a, str(d, "device_code"))
			return gave(r, r.err != nil || payload(t, str(r.json(t), "id_token"))["sub"] != alice.GetUid())
		}},
		{"guessing", func(t *testing.T) string {
			d, b := begin(t), l.browser()
			sealed, through := b.get(provider.PathDevice, nil).sealed(t), 0
			guess := func(code string) reply {
				l.advance(time.Second / 4) // the chain's own rate is not what is tried here
				return b.post(provider.PathDevice, url.Values{"request": {sealed}, "user_code": {code}})
			}
			for range 30 {
				if guess("BCDF-GHJK").GetStatus() != http.StatusTooManyRequests {
					through++
				}
			}
			r := guess(str(d, "user_code"))
			return gave(r, through > 14 || r.GetStatus() != http.StatusTooManyRequests)
		}},
		{"the page of another site", func(t *testing.T) string {
			d, b := begin(t), l.browser()
			q := url.Values{"request": {b.get(provider.PathDevice, nil).sealed(t)}, "user_code": {str(d, "user_code")}}
			b.site = "cross-site"
			r := b.post(provider.PathDevice, q)
			return gave(r, r.GetStatus() != 403)
		}},
		{"the page of another browser", func(t *testing.T) string {
			d, b := begin(t), l.browser()
			r := b.post(provider.PathDevice, url.Values{"request": {l.browser().get(provider.PathDevice, nil).sealed(t)}, "user_code": {str(d, "user_code")}})
			return gave(r, r.GetStatus() != 400)
		}},
		{"the code in a link", func(t *testing.T) string {
			d := begin(t)
			r := l.browser().get(provider.PathDevice, url.Values{"user_code": {str(d, "user_code")}})
			return gave(r, strings.Contains(r.text(), str(d, "user_code")))
		}},
		{"a scope without leave", func(*testing.T) string {
			return is(l.browser().send(provider.PathDeviceReq, posted(url.Values{"client_id": {a.id}, "client_secret": {a.secret}, "scope": {"redoubt"}}, nil)), "invalid_scope")
		}},
		{"a client without the grant", func(*testing.T) string {
			c := l.app("nodevice", func(r *identityv1.CreateApplicationRequest) { r.GrantTypes = []string{provider.GrantCode} })
			return is(l.browser().send(provider.PathDeviceReq, posted(url.Values{"client_id": {c.id}, "client_secret": {c.secret}}, nil)), "unauthorized_client")
		}},
		{"without the secret", func(*testing.T) string {
			return is(l.browser().send(provider.PathDeviceReq, posted(url.Values{"client_id": {a.id}}, nil)), "invalid_client")
		}},
	})
}
