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

// A second installation of Redoubt is the home: its people are guests of the first.
func TestGuestOfAnotherRedoubt(t *testing.T) {
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

	const callback = issuer + "/oauth2/home/sister"
	us := home.app("us", func(r *identityv1.CreateApplicationRequest) { r.RedirectUris = []string{callback} })
	user := home.addUser("bob")
	ctx, _ := here.asAdmin()
	made, err := here.federation().CreateIssuer(ctx, &identityv1.CreateIssuerRequest{
		IssuerId: "sister", IssuerUrl: front.URL, Class: identityv1.HomeClass_HOME_CLASS_GUEST, ClientSecret: us.secret,
		Settings: &identityv1.IssuerSettings{
			DisplayName: "Sister", ClientId: us.id, Scopes: []string{"profile"}, AllowedAlgorithms: []string{"ES256"}, AllowPrivateHosts: []string{"127.0.0.1"}, TrustMfa: true,
			TrustedRootsPem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})),
		},
	})
	must(t, err)
	if made.GetRedirectUri() != callback {
		t.Errorf("people come back to %s", made.GetRedirectUri())
	}
	a := here.apiApp()
	walk := func(change ...string) authn.Claims {
		t.Helper()
		b := here.browser()
		to, r := b.depart(a.ask(append([]string{"scope", "openid redoubt"}, change...)...), "sister")
		if !strings.HasPrefix(to, front.URL+provider.PathAuthorize+"?") {
			t.Fatalf("he is sent to %q: %s", to, r.text())
		}
		u, err := url.Parse(to)
		must(t, err)
		there := home.browser().signInTo(u.Query(), "bob")
		if !strings.HasPrefix(there.GetLocation(), callback+"?") {
			t.Fatalf("the home answers %d %s %s %v", there.GetStatus(), there.GetLocation(), there.text(), there.err)
		}
		r = b.arrive("sister", there.query())
		code := r.query().Get("code")
		if code == "" {
			t.Fatalf("he is not let in: %d %s", r.GetStatus(), r.text())
		}
		out := here.token(a.redeem(code), nil)
		must(t, out.err)
		return here.claims(str(out.json(t), "access_token"), issuer)
	}
	c := walk()
	if c.HomeIssuer != front.URL || c.HomeSubject != user.GetUid() || c.HomeClass != authn.Guest || c.ACR != authn.ACRHome {
		t.Errorf("the token says %+v", c)
	}
	again := walk("prompt", "login")
	if again.Subject != c.Subject || again.AuthTime.Unix() != home.now().Unix() {
		t.Errorf("a second sign-in, anew, says %+v", again)
	}
}
