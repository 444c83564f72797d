package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// browser is somebody's at an address, with the provider's cookie. It speaks to the provider as the gateway does.
type browser struct {
	l       *lab
	cookie  string
	address string
	site    string // Sec-Fetch-Site
}

func (l *lab) browser() *browser {
	n := people.Add(1) // each at an address of its own: limits by address are another test's
	return &browser{l: l, address: fmt.Sprintf("10.1.%d.%d", n/250, 1+n%250), site: "same-origin"}
}

var people atomic.Int32

// reply is what the provider said: a page, or an error of the protocol.
type reply struct {
	*identityv1.Page
	code string // oauth_error
	err  error
}

func (r reply) text() string { return string(r.GetBody()) }

// query is the query of the redirect.
func (r reply) query() url.Values {
	u, err := url.Parse(r.GetLocation())
	if err != nil {
		return nil
	}
	return u.Query()
}

func (r reply) json(t testing.TB) map[string]any {
	t.Helper()
	m := make(map[string]any)
	if err := json.Unmarshal(r.GetBody(), &m); err != nil {
		t.Fatalf("no JSON: %v %q (%v)", err, r.text(), r.err)
	}
	return m
}

var hidden = regexp.MustCompile(`name="request" value="([^"]*)"`)

// sealed is the request in the page.
func (r reply) sealed(t testing.TB) string {
	t.Helper()
	m := hidden.FindStringSubmatch(r.text())
	if m == nil {
		t.Fatalf("no form in %d %q %v", r.GetStatus(), r.text(), r.err)
	}
	return html.UnescapeString(m[1])
}

// send sends a request as it is.
func (b *browser) send(path string, x *identityv1.Exchange) reply {
	b.l.t.Helper()
	ctx := metadata.AppendToOutgoingContext(b.l.t.Context(), rpc.AddressHeader, b.address)
	c := identityv1.NewProviderServiceClient(b.l.gateway())
	call := map[string]func(context.Context) (*identityv1.Page, error){
		provider.PathAuthorize: func(ctx context.Context) (*identityv1.Page, error) {
			return c.Authorize(ctx, &identityv1.AuthorizeRequest{Http: x})
		},
		provider.PathSignIn: func(ctx context.Context) (*identityv1.Page, error) {
			return c.SubmitSignIn(ctx, &identityv1.SubmitSignInRequest{Http: x})
		},
		provider.PathToken: func(ctx context.Context) (*identityv1.Page, error) {
			return c.RequestToken(ctx, &identityv1.RequestTokenRequest{Http: x})
		},
		provider.PathIntro: func(ctx context.Context) (*identityv1.Page, error) {
			return c.IntrospectToken(ctx, &identityv1.IntrospectTokenRequest{Http: x})
		},
		provider.PathRevoke: func(ctx context.Context) (*identityv1.Page, error) {
			return c.WithdrawToken(ctx, &identityv1.WithdrawTokenRequest{Http: x})
		},
		provider.PathUserInfo: func(ctx context.Context) (*identityv1.Page, error) {
			return c.GetUserInfo(ctx, &identityv1.GetUserInfoRequest{Http: x})
		},
		provider.PathEnd: func(ctx context.Context) (*identityv1.Page, error) {
			return c.EndSession(ctx, &identityv1.EndSessionRequest{Http: x})
		},
		provider.PathDeviceReq: func(ctx context.Context) (*identityv1.Page, error) {
			return c.RequestDevice(ctx, &identityv1.RequestDeviceRequest{Http: x})
		},
		provider.PathDevice: func(ctx context.Context) (*identityv1.Page, error) {
			return c.VisitDevice(ctx, &identityv1.VisitDeviceRequest{Http: x})
		},
		provider.PathFactors: func(ctx context.Context) (*identityv1.Page, error) {
			return c.VisitFactors(ctx, &identityv1.VisitFactorsRequest{Http: x})
		},
	}[path]
	page, err := call(ctx)
	r := reply{Page: page, err: fault.FromStatus(err)}
	if err != nil {
		r.code = fault.Describe(r.err).Metadata()["oauth_error"]
		return r
	}
	if page.GetClearCookie() {
		b.cookie = ""
	}
	if c := page.GetCookie(); c != "" {
		b.cookie = c
	}
	return r
}

func (b *browser) get(path string, q url.Values) reply {
	b.l.t.Helper()
	return b.send(path, &identityv1.Exchange{Method: http.MethodGet, Query: q.Encode(), Cookie: b.cookie, SecFetchSite: "cross-site"})
}

func (b *browser) post(path string, q url.Values) reply {
	b.l.t.Helper()
	return b.send(path, posted(q, func(x *identityv1.Exchange) { x.Cookie, x.SecFetchSite = b.cookie, b.site }))
}

func posted(q url.Values, change func(*identityv1.Exchange)) *identityv1.Exchange {
	x := &identityv1.Exchange{Method: http.MethodPost, Body: []byte(q.Encode()), ContentType: "application/x-www-form-urlencoded"}
	if change != nil {
		change(x)
	}
	return x
}

const (
	board  = "https://board.example/callback"
	verify = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk" // RFC 7636 appendix B
)

func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// app is a registered application.
type app struct {
	id, secret string
}

func (l *lab) app(id string, change func(*identityv1.CreateApplicationRequest)) app {
	l.t.Helper()
	ctx, _ := l.asAdmin()
	c := identityv1.NewApplicationServiceClient(l.gateway())
	req := &identityv1.CreateApplicationRequest{
		ApplicationId: id, DisplayName: "The " + id, RedirectUris: []string{board}, PostLogoutRedirectUris: []string{"https://board.example/bye"}, Confidential: true,
		GrantTypes: []string{provider.GrantCode, provider.GrantRefresh, provider.GrantDevice},
	}
	if change != nil {
		change(req)
	}
	a, err := c.CreateApplication(ctx, req)
	must(l.t, err)
	out := app{id: a.GetUid()}
	if a.GetConfidential() {
		s, err := c.AddApplicationSecret(ctx, &identityv1.AddApplicationSecretRequest{Name: a.GetName()})
		must(l.t, err)
		out.secret = s.GetSecret()
	}
	return out
}

// ask is a good authorization request of the application.
func (a app) ask(change ...string) url.Values {
	q := url.Values{
		"client_id": {a.id}, "redirect_uri": {board}, "response_type": {"code"}, "scope": {"openid profile offline_access"}, "state": {"st-1"}, "nonce": {"no-1"},
		"code_challenge": {challengeOf(verify)}, "code_challenge_method": {"S256"},
	}
	return with(q, change...)
}

// with changes values; an empty one takes the name away.
func with(q url.Values, change ...string) url.Values {
	out := url.Values{}
	for k, v := range q {
		out[k] = v
	}
	for i := 0; i+1 < len(change); i += 2 {
		if change[i+1] == "" {
			out.Del(change[i])
		} else {
			out.Set(change[i], change[i+1])
		}
	}
	return out
}

// signInTo walks through the page of a request as a user, and gives the answer's redirect.
func (b *browser) signInTo(q url.Values, user string) reply {
	b.l.t.Helper()
	r := b.get(provider.PathAuthorize, q)
	if r.GetStatus() == http.StatusSeeOther {
		return r
	}
	return b.post(provider.PathSignIn, url.Values{"request": {r.sealed(b.l.t)}, "user": {user}, "password": {"password of " + user}, "action": {"sign-in"}})
}

// code is one that the user has just been given for the application.
func (b *browser) code(a app, user string, change ...string) string {
	b.l.t.Helper()
	r := b.signInTo(a.ask(change...), user)
	code := r.query().Get("code")
	if code == "" {
		b.l.t.Fatalf("no code: %d %s %s %v", r.GetStatus(), r.GetLocation(), r.text(), r.err)
	}
	return code
}

// redeem is a good request of the token endpoint for the code.
func (a app) redeem(code string, change ...string) url.Values {
	q := url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {board}, "code_verifier": {verify}, "client_id": {a.id},
	}
	if a.secret != "" {
		q.Set("client_secret", a.secret)
	}
	return with(q, change...)
}

func (a app) refresh(token string, change ...string) url.Values {
	q := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}, "client_id": {a.id}}
	if a.secret != "" {
		q.Set("client_secret", a.secret)
	}
	return with(q, change...)
}

// token asks the token endpoint, with a proof by the key if there is one.
func (l *lab) token(q url.Values, key *ecdsa.PrivateKey) reply {
	l.t.Helper()
	return l.browser().send(provider.PathToken, posted(q, func(x *identityv1.Exchange) {
		if key != nil {
			x.Dpop = l.proof(key, "POST", provider.PathToken, "")
		}
	}))
}

func (l *lab) proof(key *ecdsa.PrivateKey, method, path, token string) string {
	l.t.Helper()
	prover, err := authn.NewProver(key, l.now)
	must(l.t, err)
	proof, err := prover.Proof(method, issuer+path, token, "")
	must(l.t, err)
	return proof
}

func str(m map[string]any, name string) string {
	s, _ := m[name].(string)
	return s
}

// payload is what a JWT says, unverified.
func payload(t testing.TB, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no JWT", token)
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	must(t, err)
	m := make(map[string]any)
	must(t, json.Unmarshal(raw, &m))
	return m
}
