package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"html"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// elsewhere is a foreign issuer that can be made to lie.
type elsewhere struct {
	l      *lab
	server *httptest.Server
	url    string
	admin  context.Context // of who enters it
	rsa    *rsa.PrivateKey
	ec     *ecdsa.PrivateKey

	mu       sync.Mutex
	claims   map[string]any                                // of the next ID tokens; nil values are left out
	document func(map[string]any)                          // changes the document
	handle   func(http.ResponseWriter, *http.Request) bool // true where it has answered
	sign     func(payload []byte) string                   // another signature than ES256
	used     map[string]url.Values                         // codes, and what they were asked for with
	spent    map[string]bool
	asked    int // token requests
}

func (l *lab) foreign() *elsewhere {
	l.t.Helper()
	e := &elsewhere{l: l, used: make(map[string]url.Values), spent: make(map[string]bool), claims: make(map[string]any)}
	var err error
	e.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	must(l.t, err)
	e.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(l.t, err)
	e.server = httptest.NewUnstartedServer(http.HandlerFunc(e.serve))
	e.server.Config.ErrorLog = log.New(&bytes.Buffer{}, "", 0)
	e.server.StartTLS()
	l.t.Cleanup(e.server.Close)
	e.url = e.server.URL
	return e
}

func (e *elsewhere) roots() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.server.Certificate().Raw}))
}

func (e *elsewhere) lie(claims map[string]any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.claims = claims
}

func (e *elsewhere) serve(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.handle != nil && e.handle(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// What stands under /moved is as good as what does not: only that somebody was led there is wrong.
	switch strings.TrimPrefix(r.URL.Path, "/moved") {
	case "/.well-known/openid-configuration":
		doc := map[string]any{
			"issuer": e.url, "authorization_endpoint": e.url + "/auth", "token_endpoint": e.url + "/token", "jwks_uri": e.url + "/keys",
			"authorization_response_iss_parameter_supported": true, "code_challenge_methods_supported": []string{"S256"},
		}
		if e.document != nil {
			e.document(doc)
		}
		_ = json.NewEncoder(w).Encode(doc)
	case "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: &e.ec.PublicKey, KeyID: "ec", Algorithm: "ES256", Use: "sig"}, {Key: &e.rsa.PublicKey, KeyID: "rsa", Algorithm: "RS256", Use: "sig"},
		}})
	case "/token":
		e.asked++
		_ = r.ParseForm()
		id, secret, _ := r.BasicAuth()
		q, known := e.used[r.Form.Get("code")]
		if !known || e.spent[r.Form.Get("code")] || id != "us" || secret != "our-secret" || challengeOf(r.Form.Get("code_verifier")) != q.Get("code_challenge") || r.Form.Get("redirect_uri") != q.Get("redirect_uri") {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
			return
		}
		e.spent[r.Form.Get("code")] = true
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "at", "token_type": "Bearer", "expires_in": 60, "id_token": e.token(q)})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (e *elsewhere) token(q url.Values) string {
	now := e.l.now()
	c := map[string]any{
		"iss": e.url, "aud": "us", "sub": "alice", "nonce": q.Get("nonce"), "iat": now.Unix(), "exp": now.Unix() + 300,
		"name": "Alice", "email": "alice@partner.example", "email_verified": true,
	}
	maps.Copy(c, e.claims)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	if e.sign != nil {
		return e.sign(payload)
	}
	return signed(jose.ES256, e.ec, "ec", payload)
}

func signed(alg jose.SignatureAlgorithm, key any, kid string, payload []byte) string {
	return typed("JWT", alg, key, kid, payload)
}

// byHand makes a JWT with any header.
func byHand(header string, payload []byte, sign func(input string) []byte) string {
	in := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	return in + "." + base64.RawURLEncoding.EncodeToString(sign(in))
}

// authorize plays the person at the issuer: it gives the query of the answer.
func (e *elsewhere) authorize(away string) url.Values {
	u, err := url.Parse(away)
	must(e.l.t, err)
	q := u.Query()
	var bits [16]byte
	_, _ = rand.Read(bits[:])
	code := base64.RawURLEncoding.EncodeToString(bits[:])
	e.mu.Lock()
	defer e.mu.Unlock()
	e.used[code] = q
	return url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {e.url}}
}

func (l *lab) federation() identityv1.FederationServiceClient {
	return identityv1.NewFederationServiceClient(l.gateway())
}

// trust enters the issuer.
func (e *elsewhere) trust(id string, change func(*identityv1.CreateIssuerRequest)) *identityv1.Issuer {
	e.l.t.Helper()
	i, err := e.tryTrust(id, change)
	must(e.l.t, err)
	return i
}

func (e *elsewhere) tryTrust(id string, change func(*identityv1.CreateIssuerRequest)) (*identityv1.Issuer, error) {
	e.l.t.Helper()
	if e.admin == nil {
		e.admin, _ = e.l.asAdmin()
	}
	req := &identityv1.CreateIssuerRequest{
		IssuerId: id, IssuerUrl: e.url, Class: identityv1.HomeClass_HOME_CLASS_GUEST, ClientSecret: "our-secret",
		Settings: &identityv1.IssuerSettings{DisplayName: "Partner", ClientId: "us", AllowPrivateHosts: []string{"127.0.0.1"}, TrustedRootsPem: e.roots()},
	}
	if change != nil {
		change(req)
	}
	return e.l.federation().CreateIssuer(e.admin, req)
}

var away = regexp.MustCompile(`<a href="([^"]*)"`)

// depart clicks on the issuer's button on the page of a request, and gives the URL that the browser is sent to.
func (b *browser) depart(q url.Values, issuer string) (string, reply) {
	b.l.t.Helper()
	r := b.get(provider.PathAuthorize, q)
	r = b.post(provider.PathSignIn, url.Values{"request": {r.sealed(b.l.t)}, "home": {issuer}})
	m := away.FindStringSubmatch(r.text())
	if m == nil {
		return "", r
	}
	return html.UnescapeString(m[1]), r
}

// arrive brings an answer to the callback of an issuer.
func (b *browser) arrive(issuer string, q url.Values) reply {
	b.l.t.Helper()
	ctx := metadata.AppendToOutgoingContext(b.l.t.Context(), rpc.AddressHeader, b.address)
	page, err := identityv1.NewProviderServiceClient(b.l.gateway()).ReturnHome(ctx, &identityv1.ReturnHomeRequest{
		Issuer: issuer, Http: &identityv1.Exchange{Method: http.MethodGet, Query: q.Encode(), Cookie: b.cookie, SecFetchSite: "cross-site"},
	})
	r := reply{Page: page, err: fault.FromStatus(err)}
	if err == nil && page.GetCookie() != "" {
		b.cookie = page.GetCookie()
	}
	return r
}

// guest signs somebody in from elsewhere to an application, and gives the reply of the callback.
func (e *elsewhere) guest(b *browser, a app, id string, change ...string) reply {
	e.l.t.Helper()
	to, r := b.depart(a.ask(change...), id)
	if to == "" {
		return r
	}
	return b.arrive(id, e.authorize(to))
}

// enter is guest, and the tokens that come of it.
func (e *elsewhere) enter(a app, id string) map[string]any {
	e.l.t.Helper()
	r := e.guest(e.l.browser(), a, id, "scope", "openid profile redoubt")
	code := r.query().Get("code")
	if code == "" {
		e.l.t.Fatalf("no code: %d %s %v", r.GetStatus(), r.text(), r.err)
	}
	out := e.l.token(a.redeem(code), nil)
	if out.err != nil {
		e.l.t.Fatal(out.err)
	}
	return out.json(e.l.t)
}

func (l *lab) apiApp() app {
	return l.app("api", func(r *identityv1.CreateApplicationRequest) { r.ApiAccess = true })
}

// said is what a page says went wrong.
func (r reply) said() string {
	_, rest, _ := strings.Cut(r.text(), `role="alert">`)
	text, _, _ := strings.Cut(rest, "<")
	return html.UnescapeString(text)
}
