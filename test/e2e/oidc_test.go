package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// A1: standard libraries sign a service principal in, from discovery alone, and verify what they get.
func TestStandardClients(t *testing.T) {
	dir := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t)))
	sp, err := dir.CreateServicePrincipal(t.Context(), &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "robot"})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := dir.AddServicePrincipalSecret(t.Context(), &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig := mesh.TLS()
	tlsConfig.NextProtos = nil // an HTTP client's own choice
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true}}
	defer web.CloseIdleConnections()
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, web)
	provider, err := oidc.NewProvider(ctx, mesh.URL)
	if err != nil {
		t.Fatalf("discovery: %v", err)
	}
	for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
		cfg := clientcredentials.Config{ClientID: secret.GetClientId(), ClientSecret: secret.GetSecret(), TokenURL: provider.Endpoint().TokenURL, AuthStyle: style}
		token, err := cfg.Token(ctx)
		if err != nil {
			t.Fatalf("token: %v", err)
		}
		verified, err := provider.Verifier(&oidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: []string{"ES256"}}).Verify(ctx, token.AccessToken)
		if err != nil || verified.Subject != sp.GetUid() || len(verified.Audience) != 1 || verified.Audience[0] != mesh.URL {
			t.Errorf("verified: %+v %v", verified, err)
		}
		who, err := identityv1.NewSignInServiceClient(mesh.Dial(t, token.AccessToken)).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
		if err != nil || who.GetUid() != sp.GetUid() {
			t.Errorf("who: %v %v", who, err)
		}
	}
	wrong := clientcredentials.Config{ClientID: secret.GetClientId(), ClientSecret: "rdt_wrong", TokenURL: provider.Endpoint().TokenURL}
	var refused *oauth2.RetrieveError
	if _, err := wrong.Token(ctx); !errors.As(err, &refused) || refused.ErrorCode != "invalid_client" || refused.Response.StatusCode != http.StatusUnauthorized {
		t.Errorf("a wrong secret: %v", err)
	}
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"an unknown route", "GET", "/oauth2/nothing", "", 404, "not_found"},
		{"the wrong method", "GET", "/oauth2/token", "", 404, "not_found"},
		{"another grant", "POST", "/oauth2/token", "grant_type=password", 400, "unsupported_grant_type"},
		{"a parameter twice", "POST", "/oauth2/token", "grant_type=client_credentials&client_id=a&client_id=b", 400, "invalid_request"},
		{"nothing", "POST", "/oauth2/token", "", 400, "error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, mesh.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			res, err := web.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			b, _ := io.ReadAll(res.Body)
			if res.StatusCode != c.status || !strings.Contains(string(b), c.says) {
				t.Errorf("%d %s", res.StatusCode, b)
			}
		})
	}
	if _, err := url.Parse(provider.Endpoint().TokenURL); err != nil {
		t.Error(err)
	}
}
