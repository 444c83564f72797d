package identity

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// What a hostile issuer, or somebody between the two, may try. Each case is tried against one that works, before and after it, so that none is
// refused for another reason.
func TestAttackForeignIssuer(t *testing.T) {
	long(t)
	l := newLab(t)
	e := l.foreign()
	a := l.app("board", nil)
	version := 0
	// fresh forgets what is cached of the issuer, by a change of its entry.
	update := func(change func(*identityv1.IssuerSettings)) {
		t.Helper()
		s := &identityv1.IssuerSettings{DisplayName: fmt.Sprintf("Partner %d", version), ClientId: "us", AllowPrivateHosts: []string{"127.0.0.1"}, TrustedRootsPem: e.roots()}
		version++
		if change != nil {
			change(s)
		}
		_, err := l.federation().UpdateIssuer(e.admin, &identityv1.UpdateIssuerRequest{Name: "issuers/partner", Settings: s})
		must(t, err)
	}
	e.trust("partner", nil)
	now := func() int64 { return l.now().Unix() }
	claims := func(c map[string]any) func() { return func() { e.claims = c } }
	document := func(change func(map[string]any)) func() { return func() { e.document = change } }
	signs := func(sign func([]byte) string) func() { return func() { e.sign = sign } }
	handles := func(path string, h http.HandlerFunc) func() {
		return func() {
			e.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != path {
					return false
				}
				h(w, r)
				return true
			}
		}
	}
	spki, err := x509.MarshalPKIXPublicKey(&e.rsa.PublicKey)
	must(t, err)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	const discovery = "/.well-known/openid-configuration"
	elsewhere := l.foreign()
	stranger := l.foreign()

	tried, accepted := 0, 0
	for _, c := range []struct {
		name     string
		lie      func()
		settings func(*identityv1.IssuerSettings)
	}{
		{"another iss", claims(map[string]any{"iss": "https://evil.example"}), nil},
		{"iss with a slash behind", claims(map[string]any{"iss": e.url + "/"}), nil},
		{"iss in capitals", claims(map[string]any{"iss": strings.ToUpper(e.url)}), nil},
		{"no iss", claims(map[string]any{"iss": nil}), nil},
		{"another aud", claims(map[string]any{"aud": "them"}), nil},
		{"no aud", claims(map[string]any{"aud": nil}), nil},
		{"ours and a strange aud", claims(map[string]any{"aud": []string{"us", "them"}, "azp": "us"}), nil},
		{"two aud without azp", claims(map[string]any{"aud": []string{"us", "also"}}), func(s *identityv1.IssuerSettings) { s.AllowedAudiences = []string{"also"} }},
		{"another azp", claims(map[string]any{"azp": "them"}), nil},
		{"another nonce", claims(map[string]any{"nonce": "another"}), nil},
		{"no nonce", claims(map[string]any{"nonce": nil}), nil},
		{"expired", claims(map[string]any{"exp": now() - 1, "iat": now() - 300}), nil},
		{"no exp", claims(map[string]any{"exp": nil}), nil},
		{"future iat", claims(map[string]any{"iat": now() + 3600, "exp": now() + 7200}), nil},
		{"old iat", claims(map[string]any{"iat": now() - 86400}), nil},
		{"no iat", claims(map[string]any{"iat": nil}), nil},
		{"future nbf", claims(map[string]any{"nbf": now() + 3600}), nil},
		{"future auth_time", claims(map[string]any{"auth_time": now() + 3600}), nil},
		{"no sub", claims(map[string]any{"sub": nil}), nil},
		{"empty sub", claims(map[string]any{"sub": ""}), nil},
		{"sub of 10 KiB", claims(map[string]any{"sub": strings.Repeat("a", 10<<10)}), nil},
		{"sub of 256 bytes", claims(map[string]any{"sub": strings.Repeat("a", 256)}), nil},
		{"sub that looks like alice", claims(map[string]any{"sub": "\u0430lice"}), nil}, // a Cyrillic letter
		{"sub with a control", claims(map[string]any{"sub": "alice\x00"}), nil},
		{"sub that is a number", claims(map[string]any{"sub": 7}), nil},
		{"another at_hash", claims(map[string]any{"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}), nil},
		{"groups without end", claims(map[string]any{"groups": make([]string, 5000)}), func(s *identityv1.IssuerSettings) { s.GroupsClaim = "groups" }},
		{"an address of another domain", nil, func(s *identityv1.IssuerSettings) { s.AllowedDomains = []string{"other.example"} }},
		{"an address of a subdomain", claims(map[string]any{"email": "a@evil.partner.example"}), func(s *identityv1.IssuerSettings) { s.AllowedDomains = []string{"partner.example"} }},
		{"an address with two @", claims(map[string]any{"email": "a@evil.example@partner.example"}), func(s *identityv1.IssuerSettings) { s.AllowedDomains = []string{"partner.example"} }},
		{"an address that is not verified", claims(map[string]any{"email_verified": false}), func(s *identityv1.IssuerSettings) { s.AllowedDomains = []string{"partner.example"} }},
		{"an address verified in words", claims(map[string]any{"email_verified": "true"}), func(s *identityv1.IssuerSettings) { s.AllowedDomains = []string{"partner.example"} }},
		{"alg none", signs(func(p []byte) string { return byHand(`{"alg":"none"}`, p, func(string) []byte { return nil }) }), nil},
		{"alg None", signs(func(p []byte) string {
			return byHand(`{"alg":"None","kid":"rsa"}`, p, func(string) []byte { return nil })
		}), nil},
		{"HS256 with the public key", signs(func(p []byte) string {
			return byHand(`{"alg":"HS256","kid":"rsa"}`, p, func(in string) []byte { h := hmac.New(sha256.New, public); h.Write([]byte(in)); return h.Sum(nil) })
		}), nil},
		{"HS256 with the client secret", signs(func(p []byte) string {
			return byHand(`{"alg":"HS256"}`, p, func(in string) []byte {
				h := hmac.New(sha256.New, []byte("our-secret"))
				h.Write([]byte(in))
				return h.Sum(nil)
			})
		}), nil},
		{"an alg that is not allowed", signs(func(p []byte) string { return signed(jose.PS256, e.rsa, "rsa", p) }), nil},
		{"a stranger's key", signs(func(p []byte) string { return signed(jose.ES256, stranger.ec, "ec", p) }), nil},
		{"a key in the header", signs(func(p []byte) string {
			s, _ := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: stranger.ec}, &jose.SignerOptions{EmbedJWK: true})
			o, _ := s.Sign(p)
			text, _ := o.CompactSerialize()
			return text
		}), nil},
		{"no ID token", signs(func([]byte) string { return "" }), nil},
		{"a huge ID token", claims(map[string]any{"more": strings.Repeat("x", 100<<10)}), nil},
		{"a document of another issuer", document(func(d map[string]any) { d["issuer"] = "https://evil.example" }), nil},
		{"a document whose issuer has a slash behind", document(func(d map[string]any) { d["issuer"] = e.url + "/" }), nil},
		{"a token endpoint in the clear", document(func(d map[string]any) { d["token_endpoint"] = "http://127.0.0.1/token" }), nil},
		{"keys in the clear", document(func(d map[string]any) { d["jwks_uri"] = "http://127.0.0.1/keys" }), nil},
		{"an authorization endpoint that is a script", document(func(d map[string]any) { d["authorization_endpoint"] = "javascript:alert(1)" }), nil},
		{"keys on a private address", document(func(d map[string]any) { d["jwks_uri"] = strings.Replace(e.url, "127.0.0.1", "127.0.0.2", 1) + "/keys" }), nil},
		{"a token endpoint by a name of our own machine", document(func(d map[string]any) {
			d["token_endpoint"] = strings.Replace(e.url, "127.0.0.1", "localhost", 1) + "/token"
		}), nil},
		{"only plain PKCE", document(func(d map[string]any) { d["code_challenge_methods_supported"] = []string{"plain"} }), nil},
		{"discovery that redirects", handles(discovery, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, e.url+"/moved"+discovery, http.StatusFound)
		}), nil},
		{"discovery that redirects to another issuer", handles(discovery, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.url+discovery, http.StatusMovedPermanently)
		}), nil},
		{"a huge document", handles(discovery, func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]any{"issuer": e.url, "authorization_endpoint": e.url + "/auth", "token_endpoint": e.url + "/token", "jwks_uri": e.url + "/keys", "x": strings.Repeat("x", 1<<20)})
		}), nil},
		{"a document that is none", handles(discovery, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }), nil},
		{"huge headers", handles(discovery, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 100<<10)) }), nil},
		{"huge keys", handles("/keys", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(strings.Repeat(" ", 1<<20) + "{}"))
		}), nil},
		{"keys that redirect", handles("/keys", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, e.url+"/moved/keys", http.StatusFound)
		}), nil},
		{"a token endpoint that redirects", handles("/token", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, e.url+"/moved/token", http.StatusTemporaryRedirect)
		}), nil},
		{"a huge answer of the token endpoint", handles("/token", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(strings.Repeat("x", 1<<20))) }), nil},
		{"a private address", nil, func(s *identityv1.IssuerSettings) { s.AllowPrivateHosts = nil }},
		{"a private address, another host allowed", nil, func(s *identityv1.IssuerSettings) { s.AllowPrivateHosts = []string{"localhost"} }},
		{"a certificate of nobody", nil, func(s *identityv1.IssuerSettings) { s.TrustedRootsPem = "" }},
	} {
		e.mu.Lock()
		e.claims, e.document, e.sign, e.handle = nil, nil, nil, nil
		if c.lie != nil {
			c.lie()
		}
		e.mu.Unlock()
		update(c.settings)
		r := e.guest(l.browser(), a, "partner")
		e.mu.Lock()
		e.claims, e.document, e.sign, e.handle = nil, nil, nil, nil
		e.mu.Unlock()
		verdict := "refused"
		tried++
		if r.query().Get("code") != "" || r.err != nil || r.said() == "" {
			verdict = "ACCEPTED"
			accepted++
			t.Errorf("%s: %d %s %v", c.name, r.GetStatus(), r.text(), r.err)
		}
		t.Logf("%-50s %s: %d %s", c.name, verdict, r.GetStatus(), r.said())
	}
	fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), tried, accepted)
	update(nil)
	if r := e.guest(l.browser(), a, "partner"); r.query().Get("code") == "" {
		t.Errorf("what is good is refused: %d %s %v", r.GetStatus(), r.said(), r.err)
	}
	update(func(s *identityv1.IssuerSettings) {
		s.AllowedDomains, s.AllowedAudiences = []string{"partner.example"}, []string{"also"}
	})
	e.lie(map[string]any{"aud": []string{"us", "also"}, "azp": "us"})
	if r := e.guest(l.browser(), a, "partner"); r.query().Get("code") == "" {
		t.Errorf("what is good and allowed is refused: %d %s %v", r.GetStatus(), r.said(), r.err)
	}
	ctx, directory := l.asAdmin()
	users, err := directory.ListUsers(ctx, &identityv1.ListUsersRequest{})
	must(t, err)
	if n := len(users.GetUsers()); n != 2 { // the administrator, and alice
		t.Errorf("there are %d users: a refused sign-in made one", n)
	}
}

// Answers that nobody asked for, of another browser, of another issuer, twice.
func TestAttackForeignAnswers(t *testing.T) {
	long(t)
	l := newLab(t)
	a := l.app("board", nil)
	good, evil := l.foreign(), l.foreign()
	good.trust("good", nil)
	evil.trust("evil", func(r *identityv1.CreateIssuerRequest) { r.Settings.DisplayName = "Evil" })
	sent, accepted := 0, 0 // of those that must be refused
	tried := func(name string, r reply, accept bool) {
		t.Helper()
		in := r.query().Get("code") != "" && r.query().Get("state") == "st-1"
		verdict := map[bool]string{true: "accepted", false: "refused"}[in]
		t.Logf("%-50s %s: %d %s %s", name, verdict, r.GetStatus(), r.code, r.said())
		if !accept {
			sent++
			if in {
				accepted++
			}
		}
		if in != accept {
			t.Errorf("%s: %s: %d %s %v", name, verdict, r.GetStatus(), r.text(), r.err)
		}
	}
	// begin is a sign-in at the good issuer that is about to come back.
	begin := func() (*browser, url.Values) {
		b := l.browser()
		to, r := b.depart(a.ask(), "good")
		if to == "" {
			t.Fatalf("no way out: %d %s %v", r.GetStatus(), r.text(), r.err)
		}
		return b, good.authorize(to)
	}
	b, q := begin()
	tried("as it should be", b.arrive("good", q), true)

	b, q = begin()
	old := b.cookie
	tried("the first time", b.arrive("good", q), true)
	asked := good.asked
	tried("the same answer again", b.arrive("good", q), false)
	b.cookie = old
	tried("the same answer again, with the cookie of then", b.arrive("good", q), false)
	if good.asked != asked {
		t.Error("a code was shown to the issuer twice")
	}
	b, q = begin()
	q.Set("code", "made-up")
	tried("a code that never was", b.arrive("good", q), false)

	b, q = begin()
	tried("in another browser", l.browser().arrive("good", q), false)
	other := l.browser()
	other.depart(a.ask(), "good")
	tried("in another browser, which is signing in too", other.arrive("good", q), false)
	victim, vq := begin()
	vq.Set("state", q.Get("state"))
	tried("with the state of another browser", victim.arrive("good", vq), false)
	tried("after all that, where it belongs", b.arrive("good", q), true)

	b, q = begin()
	q.Set("code", codeAt(good, l, a))
	tried("with the code of another's sign-in", b.arrive("good", q), false)

	for name, change := range map[string]func(url.Values){
		"without a state":          func(q url.Values) { q.Del("state") },
		"with a made-up state":     func(q url.Values) { q.Set("state", "AAAA") },
		"with a state cut short":   func(q url.Values) { q.Set("state", q.Get("state")[:40]) },
		"with two states":          func(q url.Values) { q.Add("state", q.Get("state")) },
		"without a code":           func(q url.Values) { q.Del("code") },
		"with a huge code":         func(q url.Values) { q.Set("code", strings.Repeat("x", 8000)) },
		"without iss":              func(q url.Values) { q.Del("iss") },
		"with another iss":         func(q url.Values) { q.Set("iss", evil.url) },
		"with iss and a slash":     func(q url.Values) { q.Set("iss", good.url+"/") },
		"with two iss":             func(q url.Values) { q.Add("iss", good.url) },
		"with an error and a code": func(q url.Values) { q.Set("error", "access_denied") },
	} {
		b, q := begin()
		change(q)
		tried(name, b.arrive("good", q), false)
	}

	// Mix-up: the person chose the evil one, which sends him on to the good one with our client there; the code comes back to us.
	b = l.browser()
	to, _ := b.depart(a.ask(), "evil")
	stolen := good.authorize(to) // with the redirect URI of the evil one, which the good one would refuse; suppose it does not
	asked = evil.asked
	tried("a good code to evil's callback", b.arrive("evil", stolen), false)
	tried("a good code to good's callback with evil's state", b.arrive("good", stolen), false)
	stolen.Del("iss")
	tried("the same without iss", b.arrive("good", stolen), false)
	stolen.Set("iss", evil.url)
	tried("the same with evil's iss", b.arrive("good", stolen), false)
	if evil.asked != asked {
		t.Error("the evil issuer got a code of the good one")
	}
	// A state is no form, and a form no state.
	b, q = begin()
	r := b.post(provider.PathSignIn, url.Values{"request": {q.Get("state")}, "action": {"continue"}})
	tried("a state as a form", r, false)
	form := b.get(provider.PathAuthorize, a.ask()).sealed(t)
	q.Set("state", form)
	tried("a form as a state", b.arrive("good", q), false)

	// Late.
	b, q = begin()
	l.advance(11 * 60 * 1e9)
	tried("after eleven minutes", b.arrive("good", q), false)
	b = l.browser()
	to, _ = b.depart(a.ask("prompt", "login"), "good")
	if u, _ := url.Parse(to); u.Query().Get("prompt") != "login" || u.Query().Get("max_age") != "0" || u.Query().Get("code_challenge_method") != "S256" || u.Query().Get("code_challenge") == "" || u.Query().Get("nonce") == "" {
		t.Errorf("the way out is %s", to)
	}
	tried("a sign-in anew that does not say so", b.arrive("good", good.authorize(to)), false)
	good.lie(map[string]any{"auth_time": l.now().Unix() - 3600})
	tried("a sign-in anew of an hour ago", good.guest(l.browser(), a, "good", "prompt", "login"), false)
	good.lie(map[string]any{"auth_time": l.now().Unix()})
	tried("a sign-in anew", good.guest(l.browser(), a, "good", "prompt", "login"), true)
	good.document = func(d map[string]any) { delete(d, "authorization_response_iss_parameter_supported") }
	l.advance(11 * 60 * 1e9) // the document is read again
	b, q = begin()
	q.Del("iss")
	tried("without iss of who never says it", b.arrive("good", q), true)
	b, q = begin()
	q.Set("iss", evil.url)
	tried("another iss of who never says it", b.arrive("good", q), false)
	fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), sent, accepted)
}

func codeAt(e *elsewhere, l *lab, a app) string {
	to, _ := l.browser().depart(a.ask(), "good")
	return e.authorize(to).Get("code")
}

// What may not be entered.
func TestIssuerEntries(t *testing.T) {
	l := newLab(t)
	e := l.foreign()
	for name, change := range map[string]func(*identityv1.CreateIssuerRequest){
		"http":                func(r *identityv1.CreateIssuerRequest) { r.IssuerUrl = "http://partner.example" },
		"a query":             func(r *identityv1.CreateIssuerRequest) { r.IssuerUrl = "https://partner.example?x" },
		"a user":              func(r *identityv1.CreateIssuerRequest) { r.IssuerUrl = "https://us@partner.example" },
		"capitals":            func(r *identityv1.CreateIssuerRequest) { r.IssuerUrl = "https://Partner.example" },
		"a lookalike":         func(r *identityv1.CreateIssuerRequest) { r.IssuerUrl = "https://p\u0430rtner.example" },
		"ourselves":           func(r *identityv1.CreateIssuerRequest) { r.IssuerUrl = issuer },
		"no class":            func(r *identityv1.CreateIssuerRequest) { r.Class = 0 },
		"a class unknown":     func(r *identityv1.CreateIssuerRequest) { r.Class = 7 },
		"HS256":               func(r *identityv1.CreateIssuerRequest) { r.Settings.AllowedAlgorithms = []string{"HS256"} },
		"none":                func(r *identityv1.CreateIssuerRequest) { r.Settings.AllowedAlgorithms = []string{"none"} },
		"no client":           func(r *identityv1.CreateIssuerRequest) { r.Settings.ClientId = "" },
		"no settings":         func(r *identityv1.CreateIssuerRequest) { r.Settings = nil },
		"a wildcard host":     func(r *identityv1.CreateIssuerRequest) { r.Settings.AllowPrivateHosts = []string{"*.partner.example"} },
		"a range of hosts":    func(r *identityv1.CreateIssuerRequest) { r.Settings.AllowPrivateHosts = []string{"10.0.0.0/8"} },
		"a wildcard domain":   func(r *identityv1.CreateIssuerRequest) { r.Settings.AllowedDomains = []string{"*"} },
		"roots that are none": func(r *identityv1.CreateIssuerRequest) { r.Settings.TrustedRootsPem = "x" },
		"a group that is not there": func(r *identityv1.CreateIssuerRequest) {
			r.Settings.GroupsClaim, r.Settings.GroupMappings = "groups", []*identityv1.GroupMapping{{Value: "x", Group: "groups/none"}}
		},
		"a display name that turns": func(r *identityv1.CreateIssuerRequest) { r.Settings.DisplayName = "Part\u202ener" },
	} {
		if _, err := e.tryTrust("partner", change); err == nil {
			t.Errorf("%s was entered", name)
		}
	}
	e.trust("partner", nil)
	if _, err := e.tryTrust("partner", func(r *identityv1.CreateIssuerRequest) { r.IssuerUrl = "https://other.example" }); err == nil {
		t.Error("an id was taken twice")
	}
	if _, err := e.tryTrust("other", nil); err == nil {
		t.Error("a URL was taken twice")
	}
	ctx, _ := l.asAdmin()
	i, err := l.federation().GetIssuer(ctx, &identityv1.GetIssuerRequest{Name: "issuers/partner"})
	must(t, err)
	if _, err := l.federation().UpdateIssuer(ctx, &identityv1.UpdateIssuerRequest{Name: i.GetName(), Settings: i.GetSettings(), Etag: `"7"`}); err == nil {
		t.Error("an update of another version was taken")
	}
	// Who is no Owner of the installation enters and reads none.
	l.addUser("bob")
	as := bearer(t.Context(), l.signIn("bob", "password of bob").GetAccessToken())
	if _, err := l.federation().ListIssuers(as, &identityv1.ListIssuersRequest{}); err == nil {
		t.Error("anybody lists issuers")
	}
	if _, err := l.federation().CreateIssuer(as, &identityv1.CreateIssuerRequest{IssuerId: "x", IssuerUrl: "https://x.example", Class: 1, Settings: &identityv1.IssuerSettings{DisplayName: "X", ClientId: "x"}}); err == nil {
		t.Error("anybody enters issuers")
	}
}
