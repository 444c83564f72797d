package identity

import (
	"bytes"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
)

// sisters are two installations of Redoubt: the people of one are guests of the other.
type sisters struct {
	home, here *lab
	front      *httptest.Server // the home's gateway
	us         app              // as what the other is registered at home
	a          app
}

const sisterCallback = issuer + "/oauth2/home/sister"

func newSisters(t *testing.T, trustMFA bool) *sisters {
	t.Helper()
	var home *lab
	var up atomic.Bool
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		body, _ := io.ReadAll(r.Body)
		tokens := identityv1.NewTokenServiceClient(home.gateway())
		var out []byte
		var doc *identityv1.Document
		var err error
		switch {
		case strings.HasSuffix(r.URL.Path, "/openid-configuration"):
			doc, err = tokens.GetDiscovery(r.Context(), &identityv1.GetDiscoveryRequest{})
			out = doc.GetJson()
		case r.URL.Path == provider.PathToken:
			var page *identityv1.Page
			page, err = identityv1.NewProviderServiceClient(home.gateway()).RequestToken(r.Context(), &identityv1.RequestTokenRequest{Http: &identityv1.Exchange{
				Method: r.Method, Query: r.URL.RawQuery, Body: body, ContentType: r.Header.Get("Content-Type"), Authorization: r.Header.Get("Authorization"),
			}})
			out = page.GetBody()
		default:
			doc, err = tokens.GetKeys(r.Context(), &identityv1.GetKeysRequest{})
			out = doc.GetJson()
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			out = []byte(`{"error":"invalid_grant"}`)
		}
		_, _ = w.Write(out)
	}))
	front.Config.ErrorLog = log.New(&bytes.Buffer{}, "", 0)
	front.StartTLS()
	t.Cleanup(front.Close)
	home = newLabOf(t, func(c *Config) { c.Issuer = front.URL })
	up.Store(true)
	here := newLab(t)

	us := home.app("us", func(r *identityv1.CreateApplicationRequest) { r.RedirectUris = []string{sisterCallback} })
	ctx, _ := here.asAdmin()
	made, err := here.federation().CreateIssuer(ctx, &identityv1.CreateIssuerRequest{
		IssuerId: "sister", IssuerUrl: front.URL, Class: identityv1.HomeClass_HOME_CLASS_GUEST, ClientSecret: us.secret,
		Settings: &identityv1.IssuerSettings{
			DisplayName: "Sister", ClientId: us.id, Scopes: []string{"profile"}, AllowedAlgorithms: []string{"ES256"}, AllowPrivateHosts: []string{"127.0.0.1"}, TrustMfa: trustMFA,
			TrustedRootsPem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})),
		},
	})
	must(t, err)
	if made.GetRedirectUri() != sisterCallback {
		t.Errorf("people come back to %s", made.GetRedirectUri())
	}
	return &sisters{home: home, here: here, front: front, us: us, a: here.apiApp()}
}

// walk signs a user of the home in here, by his password and what factor gives for the page that asks for one, and gives the token of it.
func (s *sisters) walk(user string, factor func() string, change ...string) authn.Claims {
	t := s.here.t
	t.Helper()
	b := s.here.browser()
	to, r := b.depart(s.a.ask(append([]string{"scope", "openid redoubt"}, change...)...), "sister")
	if !strings.HasPrefix(to, s.front.URL+provider.PathAuthorize+"?") {
		t.Fatalf("he is sent to %q: %s", to, r.text())
	}
	u, err := url.Parse(to)
	must(t, err)
	at := s.home.browser()
	there := at.signInTo(u.Query(), user)
	if factor != nil {
		there = at.post(provider.PathSignIn, types(there, t, "totp", factor()))
	}
	if !strings.HasPrefix(there.GetLocation(), sisterCallback+"?") {
		t.Fatalf("the home answers %d %s %s %v", there.GetStatus(), there.GetLocation(), there.text(), there.err)
	}
	r = b.arrive("sister", there.query())
	code := r.query().Get("code")
	if code == "" {
		t.Fatalf("he is not let in: %d %s", r.GetStatus(), r.text())
	}
	out := s.here.token(s.a.redeem(code), nil)
	must(t, out.err)
	return s.here.claims(str(out.json(t), "access_token"), issuer)
}

func TestGuestOfAnotherRedoubt(t *testing.T) {
	s := newSisters(t, true)
	user := s.home.addUser("bob")
	c := s.walk("bob", nil)
	if c.HomeIssuer != s.front.URL || c.HomeSubject != user.GetUid() || c.HomeClass != authn.Guest || c.ACR != authn.ACRHome {
		t.Errorf("the token says %+v", c)
	}
	again := s.walk("bob", nil, "prompt", "login")
	if again.Subject != c.Subject || again.AuthTime.Unix() != s.home.now().Unix() {
		t.Errorf("a second sign-in, anew, says %+v", again)
	}
}

// What the home says of a factor counts where it is trusted with it, and is what its own pages asked for: of the same person by his password alone,
// it does not.
func TestFactorOfAnotherRedoubt(t *testing.T) { // A2, A6
	for _, trusted := range []bool{true, false} {
		s := newSisters(t, trusted)
		s.home.addUser("carol")
		if c := s.walk("carol", nil); c.ACR != authn.ACRHome || strings.Join(c.AMR, " ") != authn.ByHome {
			t.Errorf("trusted %v, by a password at home: %s, %v", trusted, c.ACR, c.AMR)
		}
		p := s.home.enrols(s.home.signIn("carol", "password of carol").GetAccessToken())
		acr, amr := authn.ACRHome, authn.ByHome
		if trusted {
			acr, amr = authn.ACRMFA, authn.ByHome+" "+authn.ByTwo
		}
		c := s.walk("carol", func() string { return s.home.totp(p.secret, 0) })
		if c.ACR != acr || strings.Join(c.AMR, " ") != amr || c.AuthTime.After(s.here.now()) {
			t.Errorf("trusted %v, by a factor at home: %s, %v at %v", trusted, c.ACR, c.AMR, c.AuthTime)
		}
	}
}
