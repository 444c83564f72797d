package e2e

import (
	"context"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

const boardCallback = "https://board.example/callback"

// person is somebody with a browser that follows no redirect by itself.
type person struct {
	t   *testing.T
	web *http.Client
}

func newPerson(t *testing.T) *person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig := mesh.TLS()
	tlsConfig.NextProtos = nil
	transport := &http.Transport{TLSClientConfig: tlsConfig}
	t.Cleanup(transport.CloseIdleConnections)
	return &person{t, &http.Client{Transport: transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// visit gives the page, and where it leads.
func (p *person) visit(address string, form url.Values) (page string, to *url.URL) {
	p.t.Helper()
	method, body := http.MethodGet, ""
	if form != nil {
		method, body = http.MethodPost, form.Encode()
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", mesh.URL)
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	res, err := p.web.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if l := res.Header.Get("Location"); l != "" {
		if to, err = url.Parse(l); err != nil {
			p.t.Fatal(err)
		}
	}
	return string(b), to
}

var sealedRequest = regexp.MustCompile(`name="request" value="([^"]*)"`)

func (p *person) request(page string) string {
	p.t.Helper()
	m := sealedRequest.FindStringSubmatch(page)
	if m == nil {
		p.t.Fatalf("no form in %s", page)
	}
	return html.UnescapeString(m[1])
}

// signIn signs in at an authorization URL and gives the answer that the application gets.
func (p *person) signIn(authorize, user, password string) url.Values {
	p.t.Helper()
	page, to := p.visit(authorize, nil)
	if to == nil {
		_, to = p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "user": {user}, "password": {password}, "action": {"sign-in"}})
	}
	if to == nil {
		p.t.Fatal("the sign-in led nowhere")
	}
	return to.Query()
}

// A1: x/oauth2 and coreos/go-oidc, unmodified, from discovery alone: code grant with PKCE, ID token with nonce and at_hash, userinfo, refresh.
func TestStandardClientsSignPeopleIn(t *testing.T) {
	admin := mesh.Dial(t, mesh.Admin(t))
	apps := identityv1.NewApplicationServiceClient(admin)
	app, err := apps.CreateApplication(t.Context(), &identityv1.CreateApplicationRequest{
		ApplicationId: "board", DisplayName: "Board", RedirectUris: []string{boardCallback}, Confidential: true, ApiAccess: true,
		GrantTypes: []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"},
	})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := apps.AddApplicationSecret(t.Context(), &identityv1.AddApplicationSecretRequest{Name: app.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	web := newPerson(t).web
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, web)
	provider, err := oidc.NewProvider(ctx, mesh.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
		endpoint := provider.Endpoint()
		endpoint.AuthStyle = style
		cfg := oauth2.Config{
			ClientID: app.GetUid(), ClientSecret: secret.GetSecret(), Endpoint: endpoint, RedirectURL: boardCallback,
			Scopes: []string{"openid", "profile", "offline_access", "redoubt"},
		}
		verifier := oauth2.GenerateVerifier()
		answer := newPerson(t).signIn(cfg.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier), oidc.Nonce("nonce")), "admin", mesh.Password())
		if answer.Get("state") != "state" || answer.Get("iss") != mesh.URL {
			t.Fatalf("the answer: %v", answer)
		}
		token, err := cfg.Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(verifier))
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := token.Extra("id_token").(string)
		id, err := provider.Verifier(&oidc.Config{ClientID: app.GetUid()}).Verify(ctx, raw)
		if err != nil {
			t.Fatal(err)
		}
		if id.Nonce != "nonce" || id.VerifyAccessToken(token.AccessToken) != nil {
			t.Errorf("the ID token: %+v", id)
		}
		info, err := provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
		if err != nil || info.Subject != id.Subject {
			t.Errorf("userinfo: %+v %v", info, err)
		}
		who, err := identityv1.NewSignInServiceClient(mesh.Dial(t, token.AccessToken)).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
		if err != nil || who.GetUid() != id.Subject {
			t.Errorf("with the scope redoubt it is the person: %v %v", who, err)
		}
		token.Expiry = time.Now().Add(-time.Hour)
		again, err := cfg.TokenSource(ctx, token).Token()
		if err != nil || again.RefreshToken == token.RefreshToken || again.AccessToken == token.AccessToken {
			t.Errorf("refresh: %v", err)
		}
	}
	t.Run("device", func(t *testing.T) {
		endpoint := provider.Endpoint()
		cfg := oauth2.Config{ClientID: app.GetUid(), ClientSecret: secret.GetSecret(), Endpoint: endpoint, Scopes: []string{"openid", "offline_access"}}
		// x/oauth2 sends no secret with this request, so this client cannot be confidential: it sends it as a parameter.
		device, err := cfg.DeviceAuth(ctx, oauth2.SetAuthURLParam("client_secret", secret.GetSecret()))
		if err != nil {
			t.Fatal(err)
		}
		p := newPerson(t)
		page, _ := p.visit(device.VerificationURI, nil)
		page, _ = p.visit(device.VerificationURI, url.Values{"request": {p.request(page)}, "user_code": {strings.ToLower(device.UserCode)}})
		if !strings.Contains(page, "Board") || !strings.Contains(page, device.UserCode) {
			t.Fatalf("the page does not name the device: %s", page)
		}
		page, _ = p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "user": {"admin"}, "password": {mesh.Password()}, "action": {"sign-in"}})
		page, _ = p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "action": {"continue"}})
		if !strings.Contains(page, "let in") {
			t.Fatalf("not let in: %s", page)
		}
		device.Interval = 1
		token, err := cfg.DeviceAccessToken(ctx, device)
		if err != nil || token.RefreshToken == "" {
			t.Fatalf("the device's token: %v", err)
		}
	})
}
