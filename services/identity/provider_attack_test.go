package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// attack is one thing that must not work. It reports what it got that it should not have, "" for nothing.
type attack struct {
	name string
	try  func(t *testing.T) (got string)
}

// attacks runs them and counts.
func attacks(t *testing.T, all []attack) {
	t.Helper()
	accepted := 0
	for _, a := range all {
		t.Run(a.name, func(t *testing.T) {
			if got := a.try(t); got != "" {
				accepted++
				t.Errorf("accepted: %s", got)
			}
		})
	}
	fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), len(all), accepted)
}

// page is an attack that a person reads the refusal of: nothing may lead away from here.
func (l *lab) page(name string, q url.Values) attack {
	return attack{name, func(*testing.T) string {
		r := l.browser().get(provider.PathAuthorize, q)
		if r.err == nil && r.GetStatus() == http.StatusBadRequest && r.GetLocation() == "" {
			return ""
		}
		return fmt.Sprintf("%d %s %v", r.GetStatus(), r.GetLocation(), r.err)
	}}
}

// A1: where an answer may go, and what may be asked for there (RFC 9700 section 4.1, RFC 8252 section 7.3, OpenBao's CVE-2026-33757 and its like).
func TestAttackAuthorize(t *testing.T) {
	long(t)
	l := newLab(t)
	l.addUser("alice")
	a := l.app("board", nil)
	robot, _ := l.robot("robot")
	cli := app{id: provider.CommandLine}
	var all []attack
	for name, uri := range map[string]string{
		"a slash more": board + "/", "a path that climbs": "https://board.example/x/../callback", "another case of the path": "https://board.example/Callback",
		"another case of the host": "https://BOARD.example/callback", "the host as a user": "https://board.example@evil.example/callback",
		"a user before the host": "https://evil@board.example/callback", "a fragment": board + "#x", "an empty fragment": board + "#", "the default port": "https://board.example:443/callback",
		"another port": "https://board.example:8443/callback", "a dot at the end": "https://board.example./callback", "a Cyrillic letter": "https://bоard.example/callback",
		"full width": "https://ｂoard.example/callback", "punycode": "https://xn--bard-55d.example/callback", "http": "http://board.example/callback", "no scheme": "//board.example/callback",
		"a script": "javascript:alert(1)", "data": "data:text/html,x", "a query more": board + "?a=1", "an empty query": board + "?", "an escaped letter": "https://board.example/%63allback",
		"an escaped slash": "https://board.example%2fcallback", "a backslash": `https://board.example\callback`, "a backslash host": `https://evil.example\@board.example/callback`,
		"a space after": board + " ", "a space before": " " + board, "a tab": "https://board.example/call\tback", "a line": board + "\r\nSet-Cookie: a=b", "a NUL": board + "\x00",
		"a host below": "https://x.board.example/callback", "a host that goes on": "https://board.example.evil.example/callback", "no slashes": "https:board.example/callback",
		"a path that goes on": board + "x", "a part of it": "https://board.example/call", "nothing": "", "too long": board + strings.Repeat("a", 600), "another's": "https://other.example/callback",
	} {
		all = append(all, l.page("redirect: "+name, a.ask("redirect_uri", uri)))
	}
	for name, uri := range map[string]string{
		"by name": "http://localhost:1234/callback", "another path": "http://127.0.0.1:1234/other", "port 0": "http://127.0.0.1:0/callback", "a port too high": "http://127.0.0.1:65536/callback",
		"a port with a zero before": "http://127.0.0.1:01234/callback", "the address as a user": "http://127.0.0.1:1234@evil.example/callback", "an address that goes on": "http://127.0.0.1.evil.example:1/callback",
		"https": "https://127.0.0.1:1234/callback", "in short": "http://127.1:1234/callback", "all addresses": "http://0.0.0.0:1234/callback", "mapped": "http://[::ffff:127.0.0.1]:1234/callback",
		"an empty port": "http://127.0.0.1:/callback", "a query": "http://127.0.0.1:1234/callback?x=1", "a port below 0": "http://127.0.0.1:-1/callback", "decimal": "http://2130706433:1234/callback",
		"another of the block": "http://127.0.0.2:1234/callback", "a plus": "http://127.0.0.1:+80/callback",
	} {
		all = append(all, l.page("loopback: "+name, cli.ask("redirect_uri", uri, "dpop_jkt", challengeOf(verify))))
	}
	twice := a.ask()
	twice.Add("redirect_uri", "https://evil.example/")
	two := a.ask()
	two.Add("state", "b")
	all = append(all,
		l.page("an unknown client", a.ask("client_id", "app_nobody")), l.page("no client", a.ask("client_id", "")), l.page("a service principal", a.ask("client_id", robot)),
		l.page("a client_id with SQL", a.ask("client_id", "' OR 1=1 --")), l.page("two redirect URIs", twice), l.page("two states", two), l.page("a state with a line", a.ask("state", "a\r\nb")),
		attack{"a semicolon between parameters", func(*testing.T) string {
			r := l.browser().send(provider.PathAuthorize, &identityv1.Exchange{Method: "GET", Query: a.ask().Encode() + ";redirect_uri=https://evil.example"})
			return gave(r, r.GetStatus() != 400)
		}},
		attack{"parameters in URL and body", func(*testing.T) string {
			r := l.browser().send(provider.PathAuthorize, posted(a.ask(), func(x *identityv1.Exchange) { x.Query = "state=x" }))
			return gave(r, r.GetStatus() != 400)
		}},
		attack{"as JSON", func(*testing.T) string {
			r := l.browser().send(provider.PathAuthorize, posted(a.ask(), func(x *identityv1.Exchange) { x.ContentType = "application/json" }))
			return gave(r, r.GetStatus() != 400)
		}},
		attack{"too many parameters", func(*testing.T) string {
			q := a.ask()
			for i := range 100 {
				q.Set(fmt.Sprint("p", i), "1")
			}
			r := l.browser().get(provider.PathAuthorize, q)
			return gave(r, r.GetStatus() != 400)
		}},
	)
	// From here on the client and its address are known: the refusal goes there, with state and iss, and nothing else does.
	signedIn := l.browser()
	signedIn.code(a, "alice")
	for name, tc := range map[string]struct {
		code   string
		change []string
	}{
		"response_type token":             {"unsupported_response_type", []string{"response_type", "token"}},
		"response_type id_token":          {"unsupported_response_type", []string{"response_type", "id_token"}},
		"response_type code token":        {"unsupported_response_type", []string{"response_type", "code token"}},
		"response_type none":              {"unsupported_response_type", []string{"response_type", "none"}},
		"no response_type":                {"invalid_request", []string{"response_type", ""}},
		"response_mode fragment":          {"invalid_request", []string{"response_mode", "fragment"}},
		"response_mode form_post":         {"invalid_request", []string{"response_mode", "form_post"}},
		"response_mode web_message":       {"invalid_request", []string{"response_mode", "web_message"}},
		"a request object":                {"request_not_supported", []string{"request", "eyJhbGciOiJub25lIn0.e30."}},
		"a request_uri":                   {"request_uri_not_supported", []string{"request_uri", "https://169.254.169.254/"}},
		"a registration":                  {"registration_not_supported", []string{"registration", "{}"}},
		"no PKCE":                         {"invalid_request", []string{"code_challenge", "", "code_challenge_method", ""}},
		"PKCE plain":                      {"invalid_request", []string{"code_challenge_method", "plain", "code_challenge", verify}},
		"PKCE without method":             {"invalid_request", []string{"code_challenge_method", ""}},
		"PKCE s256":                       {"invalid_request", []string{"code_challenge_method", "s256"}},
		"a challenge too short":           {"invalid_request", []string{"code_challenge", "abc"}},
		"a challenge with padding":        {"invalid_request", []string{"code_challenge", challengeOf(verify) + "="}},
		"an unknown scope":                {"invalid_scope", []string{"scope", "openid admin"}},
		"the API without leave":           {"invalid_scope", []string{"scope", "openid redoubt"}},
		"an empty scope among":            {"invalid_scope", []string{"scope", "openid  profile"}},
		"another resource":                {"invalid_target", []string{"resource", "https://other.example"}},
		"another audience":                {"invalid_target", []string{"audience", "spiffe://redoubt.test/service/keyvault"}},
		"max_age below 0":                 {"invalid_request", []string{"max_age", "-1"}},
		"max_age past all":                {"invalid_request", []string{"max_age", "99999999999999999999"}},
		"prompt none and login":           {"invalid_request", []string{"prompt", "none login"}},
		"prompt unknown":                  {"invalid_request", []string{"prompt", "create"}},
		"a nonce too long":                {"invalid_request", []string{"nonce", strings.Repeat("n", 600)}},
		"a key that is none":              {"invalid_request", []string{"dpop_jkt", "abc"}},
		"prompt none, but another's hint": {"login_required", []string{"prompt", "none", "id_token_hint", "x.y.z"}},
	} {
		all = append(all, attack{name, func(*testing.T) string {
			r := signedIn.get(provider.PathAuthorize, a.ask(tc.change...))
			q := r.query()
			ok := r.err == nil && r.GetStatus() == http.StatusSeeOther && strings.HasPrefix(r.GetLocation(), board+"?") && q.Get("error") == tc.code && q.Get("code") == "" &&
				q.Get("iss") == issuer && q.Get("state") == "st-1"
			return gave(r, !ok)
		}})
	}
	all = append(all, attack{"a state too long comes back nowhere", func(*testing.T) string {
		r := signedIn.get(provider.PathAuthorize, a.ask("state", strings.Repeat("s", 3000)))
		return gave(r, r.query().Get("error") != "invalid_request" || len(r.GetLocation()) > 1000)
	}}, attack{"prompt none with nobody signed in", func(*testing.T) string {
		r := l.browser().get(provider.PathAuthorize, a.ask("prompt", "none"))
		return gave(r, r.query().Get("error") != "login_required")
	}}, attack{"a sign-in that is too old", func(*testing.T) string {
		l.advance(time.Minute)
		r := signedIn.get(provider.PathAuthorize, a.ask("prompt", "none", "max_age", "30"))
		return gave(r, r.query().Get("error") != "login_required")
	}}, attack{"a new sign-in is asked for", func(*testing.T) string {
		r := signedIn.get(provider.PathAuthorize, a.ask("prompt", "login"))
		return gave(r, r.GetStatus() != 200 || !strings.Contains(r.text(), "current-password"))
	}}, attack{"a public client without a click", func(t *testing.T) string {
		p := l.app("public", func(r *identityv1.CreateApplicationRequest) { r.Confidential = false })
		r := signedIn.get(provider.PathAuthorize, p.ask())
		if r.GetStatus() != 200 || !strings.Contains(r.text(), "Continue as") {
			return gave(r, true)
		}
		r = signedIn.get(provider.PathAuthorize, p.ask("prompt", "none"))
		return gave(r, r.query().Get("error") != "interaction_required")
	}}, attack{"the command line without a key", func(*testing.T) string {
		r := signedIn.get(provider.PathAuthorize, cli.ask("redirect_uri", "http://127.0.0.1:1234/callback"))
		return gave(r, r.query().Get("error") != "invalid_request")
	}})
	attacks(t, all)
	// And what is right does work.
	for _, uri := range []string{"http://127.0.0.1:1234/callback", "http://[::1]:65535/callback", "http://127.0.0.1/callback"} {
		if r := l.browser().get(provider.PathAuthorize, cli.ask("redirect_uri", uri, "dpop_jkt", challengeOf(verify))); r.GetStatus() != 200 {
			t.Errorf("%s: %d %s", uri, r.GetStatus(), r.GetLocation())
		}
	}
}

func gave(r reply, accepted bool) string {
	if !accepted {
		return ""
	}
	return fmt.Sprintf("%d %s %s %v", r.GetStatus(), r.GetLocation(), r.text(), r.err)
}

// A1: the pages: forged forms, guessed passwords, other people's cookies.
func TestAttackPages(t *testing.T) {
	long(t)
	l := newLab(t)
	l.addUser("alice")
	l.addUser("gone")
	ctx, d := l.asAdmin()
	_, err := d.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/gone", Disabled: true})
	must(t, err)
	a := l.app("board", nil)
	good := func(b *browser, t *testing.T) url.Values {
		return url.Values{"request": {b.get(provider.PathAuthorize, a.ask()).sealed(t)}, "user": {"alice"}, "password": {"password of alice"}, "action": {"sign-in"}}
	}
	// What asks for the password again is no acceptance.
	refused := func(r reply) string {
		return gave(r, r.GetLocation() != "" || r.err == nil && r.GetStatus() < 400 && !strings.Contains(r.text(), `name="password"`))
	}
	form := func(name string, status int32, change func(b *browser, q url.Values)) attack {
		return attack{name, func(t *testing.T) string {
			b := l.browser()
			q := good(b, t)
			change(b, q)
			r := b.post(provider.PathSignIn, q)
			if status != 0 && r.GetStatus() != status {
				return gave(r, true)
			}
			return refused(r)
		}}
	}
	attacks(t, []attack{
		form("a wrong password", 401, func(_ *browser, q url.Values) { q.Set("password", "password of bob") }),
		form("an unknown user", 401, func(_ *browser, q url.Values) { q.Set("user", "nobody") }),
		form("no password", 401, func(_ *browser, q url.Values) { q.Del("password") }),
		form("no user", 401, func(_ *browser, q url.Values) { q.Del("user") }),
		form("a password of 1 MiB", 0, func(_ *browser, q url.Values) { q.Set("password", strings.Repeat("p", 60<<10)) }),
		form("a disabled user", 403, func(_ *browser, q url.Values) { q.Set("user", "gone"); q.Set("password", "password of gone") }),
		form("from another site", 403, func(b *browser, _ url.Values) { b.site = "cross-site" }),
		form("from a site below", 403, func(b *browser, _ url.Values) { b.site = "same-site" }),
		form("by hand", 403, func(b *browser, _ url.Values) { b.site = "none" }),
		form("without the cookie", 200, func(b *browser, _ url.Values) { b.cookie = "" }),
		form("with another's cookie", 200, func(b *browser, _ url.Values) { b.cookie = prefixed("rdb_") }),
		form("without the request", 400, func(_ *browser, q url.Values) { q.Del("request") }),
		form("with a request that is none", 400, func(_ *browser, q url.Values) { q.Set("request", "AAAA") }),
		form("with a changed request", 400, func(_ *browser, q url.Values) {
			r := []byte(q.Get("request"))
			r[len(r)/2] ^= 1
			q.Set("request", string(r))
		}),
		form("with a request twice", 400, func(_ *browser, q url.Values) { q.Add("request", q.Get("request")) }),
		form("out of date", 400, func(*browser, url.Values) { l.advance(16 * time.Minute) }),
		form("without an action", 400, func(_ *browser, q url.Values) { q.Del("action") }),
		form("a factor that was not asked for", 401, func(_ *browser, q url.Values) {
			q.Set("action", "factor")
			q.Set("factor", "totp")
			q.Set("code", "000000")
		}),
		form("to go on without being signed in", 200, func(_ *browser, q url.Values) { q.Set("action", "continue"); q.Del("user"); q.Del("password") }),
		form("with another's request", 200, func(b *browser, q url.Values) {
			q.Set("request", l.browser().get(provider.PathAuthorize, a.ask()).sealed(t))
		}),
		{"by an Origin of another", func(t *testing.T) string {
			b := l.browser()
			r := b.send(provider.PathSignIn, posted(good(b, t), func(x *identityv1.Exchange) { x.Cookie, x.Origin = b.cookie, "https://evil.example" }))
			return gave(r, r.GetStatus() != 403)
		}},
		{"by the Origin null", func(t *testing.T) string {
			b := l.browser()
			r := b.send(provider.PathSignIn, posted(good(b, t), func(x *identityv1.Exchange) { x.Cookie, x.Origin = b.cookie, "null" }))
			return gave(r, r.GetStatus() != 403)
		}},
		{"in the URL", func(t *testing.T) string {
			b := l.browser()
			r := b.send(provider.PathSignIn, &identityv1.Exchange{Method: "GET", Query: good(b, t).Encode(), Cookie: b.cookie, SecFetchSite: "same-origin"})
			return gave(r, r.GetStatus() != 400)
		}},
		{"the cookie of before the sign-in (fixation)", func(t *testing.T) string {
			b := l.browser()
			q := good(b, t)
			planted := b.cookie
			b.post(provider.PathSignIn, q)
			thief := l.browser()
			thief.cookie = planted
			r := thief.get(provider.PathAuthorize, a.ask("prompt", "none"))
			return gave(r, r.query().Get("error") != "login_required")
		}},
		{"guessing, by all spellings of one name", func(t *testing.T) string {
			l.addUser("victim")
			through := 0
			for i := range 40 {
				b := l.browser()
				q := good(b, t)
				q.Set("user", []string{"victim", "VICTIM", " victim ", "ｖictim"}[i%4])
				q.Set("password", "wrong")
				if b.post(provider.PathSignIn, q).GetStatus() != http.StatusTooManyRequests {
					through++
				}
			}
			b := l.browser()
			q := good(b, t)
			q.Set("user", "victim")
			q.Set("password", "password of victim")
			r := b.post(provider.PathSignIn, q)
			if through > 5 || r.GetStatus() != http.StatusTooManyRequests {
				return fmt.Sprintf("%d tries, and then %d", through, r.GetStatus())
			}
			return ""
		}},
		{"markup in what is shown again", func(t *testing.T) string {
			b := l.browser()
			q := good(b, t)
			q.Set("user", `"><script>alert(1)</script>`)
			q.Set("password", "x")
			r := b.post(provider.PathSignIn, q)
			return gave(r, strings.Contains(r.text(), "<script>"))
		}},
		{"an unregistered address after sign-out", func(*testing.T) string {
			r := l.browser().get(provider.PathEnd, url.Values{"client_id": {a.id}, "post_logout_redirect_uri": {"https://evil.example/"}})
			return gave(r, r.GetLocation() != "")
		}},
		{"sign-out by a link", func(t *testing.T) string {
			b := l.browser()
			b.code(a, "alice")
			r := b.get(provider.PathEnd, nil)
			if r.GetClearCookie() {
				return "signed out"
			}
			r = b.get(provider.PathEnd, url.Values{"request": {r.sealed(t)}})
			return gave(r, r.GetStatus() != 403)
		}},
		{"sign-out by another's form", func(t *testing.T) string {
			b := l.browser()
			b.code(a, "alice")
			other := l.browser()
			other.code(a, "alice")
			r := b.post(provider.PathEnd, url.Values{"request": {other.get(provider.PathEnd, nil).sealed(t)}})
			return gave(r, r.GetClearCookie())
		}},
		{"sign-out by another's hint", func(t *testing.T) string {
			b := l.browser()
			b.code(a, "alice")
			id := str(l.token(a.redeem(l.browser().code(a, "alice")), nil).json(t), "id_token")
			r := b.get(provider.PathEnd, url.Values{"id_token_hint": {id}})
			return gave(r, r.GetClearCookie())
		}},
		{"a hint that is none", func(*testing.T) string {
			r := l.browser().get(provider.PathEnd, url.Values{"id_token_hint": {"eyJhbGciOiJub25lIn0.e30."}})
			return gave(r, r.GetStatus() != 400)
		}},
	})
	// And what is right does work: out with the ID token of this browser, and all that was given in it is over.
	b := l.browser()
	got := l.token(a.redeem(b.code(a, "alice")), nil).json(t)
	r := b.get(provider.PathEnd, url.Values{"id_token_hint": {str(got, "id_token")}, "post_logout_redirect_uri": {"https://board.example/bye"}, "state": {"s"}})
	if r.GetLocation() != "https://board.example/bye?state=s" || !r.GetClearCookie() {
		t.Errorf("sign-out: %d %s %s %v", r.GetStatus(), r.GetLocation(), r.text(), r.err)
	}
	if _, err := l.s.verifier.Verify(t.Context(), str(got, "access_token"), issuer+provider.PathUserInfo); err == nil {
		t.Error("the application's token outlives the sign-out")
	}
	if r := l.token(a.refresh(str(got, "refresh_token")), nil); r.code != "invalid_grant" {
		t.Errorf("the refresh token outlives the sign-out: %v", r.text())
	}
}

func prefixed(prefix string) string {
	return prefix + base64.RawURLEncoding.EncodeToString(make([]byte, 32))
}

// asserted is an assertion of a client, changed.
func (l *lab) asserted(t *testing.T, key *ecdsa.PrivateKey, client string, change map[string]any) string {
	t.Helper()
	claims := map[string]any{"iss": client, "sub": client, "aud": issuer + provider.PathToken, "jti": "jti-" + fmt.Sprint(people.Add(1)) + "-000", "iat": l.now().Unix(), "exp": l.now().Add(time.Minute).Unix()}
	for k, v := range change {
		if v == nil {
			delete(claims, k)
		} else {
			claims[k] = v
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: authn.Thumbprint(&key.PublicKey)}}, (&jose.SignerOptions{}).WithType("JWT"))
	must(t, err)
	raw, err := json.Marshal(claims)
	must(t, err)
	jws, err := signer.Sign(raw)
	must(t, err)
	out, err := jws.CompactSerialize()
	must(t, err)
	return out
}

func asserting(client, assertion string) url.Values {
	return url.Values{
		"grant_type": {"client_credentials"}, "client_id": {client}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
}

// A1, A3: the token endpoint and those beside it.
func TestAttackTokens(t *testing.T) {
	long(t)
	l := newLab(t)
	l.addUser("alice")
	a, other := l.app("board", nil), l.app("other", nil)
	public := l.app("public", func(r *identityv1.CreateApplicationRequest) { r.Confidential = false })
	robot, robotSecret := l.robot("robot")
	key, thief := newKey(t), newKey(t)
	ctx, directory := l.asAdmin()
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	_, err = directory.AddServicePrincipalKey(ctx, &identityv1.AddServicePrincipalKeyRequest{
		Name: "servicePrincipals/robot", Pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})),
	})
	must(t, err)
	b := l.browser()
	b.code(a, "alice")
	is := func(r reply, code string) string { return gave(r, r.err == nil || r.code != code) }
	redeem := func(name, code string, change ...string) attack {
		return attack{"code: " + name, func(*testing.T) string { return is(l.token(a.redeem(b.code(a, "alice"), change...), nil), code) }}
	}
	sent := func(name, code string, q func() url.Values, change func(*identityv1.Exchange)) attack {
		return attack{name, func(*testing.T) string { return is(l.browser().send(provider.PathToken, posted(q(), change)), code) }}
	}
	fresh := func() url.Values { return a.redeem(b.code(a, "alice")) }
	assertion := func(name string, make func(t *testing.T) url.Values) attack {
		return attack{"assertion: " + name, func(t *testing.T) string { return is(l.token(make(t), nil), "invalid_client") }}
	}
	changed := func(name string, change map[string]any) attack {
		return assertion(name, func(t *testing.T) url.Values { return asserting(robot, l.asserted(t, key, robot, change)) })
	}
	basic := func(id, secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
	}
	all := []attack{
		redeem("of nothing", "invalid_grant", "code", prefixed("rdc_")), redeem("missing", "invalid_request", "code", ""),
		redeem("another redirect", "invalid_grant", "redirect_uri", board+"/"), redeem("no redirect", "invalid_request", "redirect_uri", ""),
		redeem("no verifier", "invalid_request", "code_verifier", ""), redeem("another verifier", "invalid_grant", "code_verifier", verify[1:]+"a"),
		redeem("the challenge as verifier", "invalid_grant", "code_verifier", challengeOf(verify)), redeem("a verifier too short", "invalid_grant", "code_verifier", "abc"),
		redeem("a verifier of another alphabet", "invalid_grant", "code_verifier", verify[1:]+"+"), redeem("with a scope", "invalid_request", "scope", "openid redoubt"),
		redeem("another client", "invalid_grant", "client_id", other.id, "client_secret", other.secret), redeem("a public client", "invalid_grant", "client_id", public.id, "client_secret", ""),
		redeem("a wrong secret", "invalid_client", "client_secret", prefixed("rdt_")), redeem("another's secret", "invalid_client", "client_secret", other.secret),
		redeem("no secret", "invalid_client", "client_secret", ""), redeem("no client", "invalid_client", "client_id", ""), redeem("a robot's secret", "invalid_client", "client_secret", robotSecret),
		redeem("as a robot", "unauthorized_client", "client_id", robot, "client_secret", robotSecret), redeem("for another resource", "invalid_target", "resource", "https://x.example"),
		redeem("for a service", "invalid_target", "audience", "spiffe://redoubt.test/service/keyvault"),
		redeem("by password", "unsupported_grant_type", "grant_type", "password"), redeem("by exchange", "unauthorized_client", "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
		redeem("by jwt-bearer", "unsupported_grant_type", "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), redeem("implicit", "unsupported_grant_type", "grant_type", "implicit"),
		redeem("no grant", "invalid_request", "grant_type", ""), redeem("an application as itself", "unauthorized_client", "grant_type", "client_credentials"),
		{"code: too late", func(*testing.T) string {
			code := b.code(a, "alice")
			l.advance(61 * time.Second)
			return is(l.token(a.redeem(code), nil), "invalid_grant")
		}},
		{"code: after a wrong try", func(*testing.T) string {
			code := b.code(a, "alice")
			l.token(a.redeem(code, "code_verifier", strings.Repeat("a", 43)), nil)
			return is(l.token(a.redeem(code), nil), "invalid_grant")
		}},
		{"code: twice, and what the first use gave", func(t *testing.T) string {
			code := b.code(a, "alice")
			first := l.token(a.redeem(code), nil).json(t)
			if got := is(l.token(a.redeem(code), nil), "invalid_grant"); got != "" {
				return got
			}
			if _, err := l.s.verifier.Verify(t.Context(), str(first, "access_token"), issuer+provider.PathUserInfo); err == nil {
				return "the access token of the first use lives"
			}
			return is(l.token(a.refresh(str(first, "refresh_token")), nil), "invalid_grant")
		}},
		{"code: twice, by another", func(t *testing.T) string {
			code := b.code(a, "alice")
			first := l.token(a.redeem(code), nil).json(t)
			l.token(other.redeem(code), nil)
			return is(l.token(a.refresh(str(first, "refresh_token")), nil), "invalid_grant")
		}},
		{"code: bound to a key, without it", func(*testing.T) string {
			return is(l.token(a.redeem(b.code(a, "alice", "dpop_jkt", authn.Thumbprint(&key.PublicKey))), nil), "invalid_grant")
		}},
		{"code: bound to a key, with another", func(*testing.T) string {
			return is(l.token(a.redeem(b.code(a, "alice", "dpop_jkt", authn.Thumbprint(&key.PublicKey))), thief), "invalid_grant")
		}},
		sent("sent: in the URL", "invalid_request", fresh, func(x *identityv1.Exchange) { x.Query, x.Body = string(x.GetBody()), nil }),
		sent("sent: by GET", "invalid_request", fresh, func(x *identityv1.Exchange) { x.Method = "GET" }),
		sent("sent: as JSON", "invalid_request", fresh, func(x *identityv1.Exchange) { x.ContentType = "application/json" }),
		sent("sent: without a type", "invalid_request", fresh, func(x *identityv1.Exchange) { x.ContentType = "" }),
		sent("sent: a parameter twice", "invalid_request", fresh, func(x *identityv1.Exchange) { x.Body = append(x.GetBody(), "&client_id=x"...) }),
		sent("sent: two grants", "invalid_request", fresh, func(x *identityv1.Exchange) { x.Body = append(x.GetBody(), "&grant_type=refresh_token"...) }),
		sent("sent: secret by header and body", "invalid_client", fresh, func(x *identityv1.Exchange) { x.Authorization = basic(a.id, a.secret) }),
		sent("sent: header of another", "invalid_client", func() url.Values { return with(fresh(), "client_secret", "") }, func(x *identityv1.Exchange) { x.Authorization = basic(other.id, other.secret) }),
		sent("sent: a bearer token as client", "invalid_client", func() url.Values { return with(fresh(), "client_secret", "") }, func(x *identityv1.Exchange) {
			x.Authorization = "Bearer " + l.signIn("admin", adminPassword).GetAccessToken()
		}),
		sent("sent: a header that is none", "invalid_client", func() url.Values { return with(fresh(), "client_secret", "") }, func(x *identityv1.Exchange) { x.Authorization = "Basic !!!" }),
		sent("sent: a header without a secret", "invalid_client", func() url.Values { return with(fresh(), "client_secret", "") }, func(x *identityv1.Exchange) { x.Authorization = basic(a.id, "") }),
		sent("sent: a public client with a secret", "invalid_client", func() url.Values { return public.redeem("x", "client_secret", a.secret) }, nil),
		sent("sent: a NUL", "invalid_request", func() url.Values { return with(fresh(), "state", "a\x00") }, nil),

		assertion("of nobody", func(t *testing.T) url.Values { return asserting("spn_nobody", l.asserted(t, key, "spn_nobody", nil)) }),
		assertion("by another key", func(t *testing.T) url.Values { return asserting(robot, l.asserted(t, thief, robot, nil)) }),
		assertion("another client_id", func(t *testing.T) url.Values { return asserting(a.id, l.asserted(t, key, robot, nil)) }),
		assertion("of an application by the robot's key", func(t *testing.T) url.Values { return asserting(a.id, l.asserted(t, key, a.id, nil)) }),
		assertion("of a public client", func(t *testing.T) url.Values { return asserting(public.id, l.asserted(t, key, public.id, nil)) }),
		assertion("with a secret too", func(t *testing.T) url.Values {
			return with(asserting(robot, l.asserted(t, key, robot, nil)), "client_secret", robotSecret)
		}),
		assertion("another type", func(t *testing.T) url.Values {
			return with(asserting(robot, l.asserted(t, key, robot, nil)), "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")
		}),
		assertion("without a type", func(t *testing.T) url.Values {
			return with(asserting(robot, l.asserted(t, key, robot, nil)), "client_assertion_type", "")
		}),
		assertion("alg none", func(*testing.T) url.Values {
			none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+robot+`","sub":"`+robot+`"}`)) + "."
			return asserting(robot, none)
		}),
		assertion("dots", func(*testing.T) url.Values { return asserting(robot, strings.Repeat(".", 50<<10)) }),
		changed("another audience", map[string]any{"aud": "https://other.example"}), changed("two audiences", map[string]any{"aud": []string{issuer, "https://other.example"}}),
		changed("no audience", map[string]any{"aud": nil}), changed("over", map[string]any{"exp": l.now().Unix()}), changed("without an end", map[string]any{"exp": nil}),
		changed("for an hour", map[string]any{"exp": l.now().Add(time.Hour).Unix()}), changed("from the future", map[string]any{"nbf": l.now().Add(2 * time.Minute).Unix()}),
		changed("another subject", map[string]any{"sub": a.id}), changed("without an id", map[string]any{"jti": nil}), changed("a short id", map[string]any{"jti": "1"}),
		assertion("twice", func(t *testing.T) url.Values {
			q := asserting(robot, l.asserted(t, key, robot, nil))
			if r := l.token(q, nil); r.err != nil {
				t.Errorf("the first time: %v", r.err)
			}
			return q
		}),
		{"client credentials: a scope", func(*testing.T) string {
			return is(l.token(url.Values{"grant_type": {"client_credentials"}, "client_id": {robot}, "client_secret": {robotSecret}, "scope": {"admin"}}, nil), "invalid_scope")
		}},
	}
	all = append(all, l.refreshAttacks(a, other, b, key, thief)...)
	all = append(all, l.resourceAttacks(a, other, public, b, key, thief)...)
	attacks(t, all)
	// And what is right does work.
	for name, r := range map[string]reply{
		"assertion":           l.token(asserting(robot, l.asserted(t, key, robot, nil)), nil),
		"assertion to issuer": l.token(asserting(robot, l.asserted(t, key, robot, map[string]any{"aud": issuer})), nil),
		"basic": l.browser().send(provider.PathToken, posted(url.Values{"grant_type": {"client_credentials"}}, func(x *identityv1.Exchange) {
			x.Authorization = basic(robot, robotSecret)
		})),
		"public": l.token(public.redeem(l.browser().code(public, "alice")), nil),
		"bound":  l.token(a.redeem(b.code(a, "alice", "dpop_jkt", authn.Thumbprint(&key.PublicKey))), key),
	} {
		if r.err != nil || str(r.json(t), "access_token") == "" {
			t.Errorf("%s: %v", name, r.err)
		}
	}
}
