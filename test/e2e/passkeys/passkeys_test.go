package passkeys

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
)

const (
	user     = "frida"
	password = "tulpen im regen 7"
)

func do(ctx context.Context, t *testing.T, what string, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		page, _ := chromedp.Run(short, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText`))
		t.Fatalf("%s: %v\n%s", what, err, page)
	}
}

func read(ctx context.Context, t *testing.T, expression string) string {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[string](expression))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// plugIn gives the browser a security key that is touched whenever it is asked.
func plugIn(ctx context.Context, t *testing.T) webauthn.AuthenticatorID {
	t.Helper()
	id, err := chromedp.Run(ctx, func(ctx context.Context, target *chromedp.Target) (webauthn.AuthenticatorID, error) {
		if _, err := cdp.Call(ctx, target, webauthn.Enable, webauthn.EnableParams{}); err != nil {
			return "", err
		}
		r, err := cdp.Call(ctx, target, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
			Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportUsb, AutomaticPresenceSimulation: true,
		}})
		return r.AuthenticatorID, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// signsIn types name and password, and waits for what comes.
func signsIn(user, to string) []chromedp.Action[chromedp.Void] {
	return []chromedp.Action[chromedp.Void]{
		chromedp.WaitVisible(chromedp.CSS("#password")), chromedp.SetValue(chromedp.CSS("#user"), user), chromedp.SendKeys(chromedp.CSS("#password"), password),
		chromedp.Click(chromedp.CSS(`button[value="sign-in"]`)), chromedp.WaitVisible(chromedp.CSS(to)),
	}
}

// A2: in a browser, a key is registered, asked for at a sign-in and at a step up, and refused when its count goes back.
func TestKeyInABrowser(t *testing.T) {
	catchUp(t)
	admin := mesh.Dial(t, mesh.Admin(t))
	if _, err := identityv1.NewDirectoryServiceClient(admin).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: user, Password: password}); err != nil {
		t.Fatal(err)
	}
	app, err := identityv1.NewApplicationServiceClient(admin).CreateApplication(t.Context(), &identityv1.CreateApplicationRequest{
		ApplicationId: "board", DisplayName: "Board", RedirectUris: []string{"http://127.0.0.1/callback"}, GrantTypes: []string{"authorization_code"},
	})
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan url.Values, 8)
	board := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/callback" {
			came <- r.URL.Query()
		}
		_, _ = w.Write([]byte("<p id=back>back</p>"))
	}))
	defer board.Close()
	trust := mesh.TLS()
	trust.NextProtos = nil
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: trust}}
	defer web.CloseIdleConnections()
	with := context.WithValue(t.Context(), oauth2.HTTPClient, web)
	provider, err := oidc.NewProvider(with, mesh.URL)
	if err != nil {
		t.Fatal(err)
	}
	cfg := oauth2.Config{ClientID: app.GetUid(), Endpoint: provider.Endpoint(), RedirectURL: board.URL + "/callback", Scopes: []string{"openid"}}
	type proof struct {
		ACR      string   `json:"acr"`
		AMR      []string `json:"amr"`
		AuthTime int64    `json:"auth_time"`
	}

	ctx := chromium(t)
	key := plugIn(ctx, t)
	types := func(to string) []chromedp.Action[chromedp.Void] { return signsIn(user, to) }
	do(ctx, t, "signing in to the page of factors", append([]chromedp.Action[chromedp.Void]{chromedp.Navigate(mesh.URL + "/oauth2/factors")}, types("#key button")...)...)
	do(ctx, t, "registering", chromedp.SendKeys(chromedp.CSS("#name"), "blue"), chromedp.Click(chromedp.CSS("#key button")), chromedp.WaitVisible(chromedp.CSS("pre.code")))
	if n := len(strings.Fields(read(ctx, t, `document.querySelector("pre.code").innerText`))); n != 10 {
		t.Errorf("%d recovery codes", n)
	}
	do(ctx, t, "going on", chromedp.Click(chromedp.CSS(`button[value="continue"]`)), chromedp.WaitVisible(chromedp.CSS("ul")))
	if list := read(ctx, t, `document.querySelector("ul").innerText`); !strings.Contains(list, "security key blue") {
		t.Errorf("the page shows %q", list)
	}

	// proves walks through one authorization request and gives what the ID token says.
	proves := func(what string, more ...oauth2.AuthCodeOption) proof {
		t.Helper()
		verifier := oauth2.GenerateVerifier()
		begin := cfg.AuthCodeURL("state", append(more, oauth2.S256ChallengeOption(verifier))...)
		do(ctx, t, what+": password", append([]chromedp.Action[chromedp.Void]{chromedp.Navigate(begin)}, types("#key button")...)...)
		do(ctx, t, what+": key", chromedp.Click(chromedp.CSS("#key button")), chromedp.WaitVisible(chromedp.CSS("#back")))
		token, err := cfg.Exchange(with, (<-came).Get("code"), oauth2.VerifierOption(verifier))
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := token.Extra("id_token").(string)
		id, err := provider.Verifier(&oidc.Config{ClientID: app.GetUid()}).Verify(with, raw)
		if err != nil {
			t.Fatal(err)
		}
		var p proof
		if err := id.Claims(&p); err != nil {
			t.Fatal(err)
		}
		if p.ACR != authn.ACRMFA || !slices.Equal(p.AMR, []string{"pwd", "hwk", "user", "mfa"}) {
			t.Errorf("%s: %+v", what, p)
		}
		return p
	}
	leave := func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, network.ClearBrowserCookies, cdp.Empty{})
		return chromedp.Void{}, err
	}
	do(ctx, t, "forgetting the browser", leave)
	first := proves("a sign-in")
	for time.Now().Unix() <= first.AuthTime { // max_age counts whole seconds
		time.Sleep(50 * time.Millisecond)
	}
	if second := proves("a step up", oauth2.SetAuthURLParam("max_age", "0")); second.AuthTime <= first.AuthTime {
		t.Errorf("the step up is of %d, the sign-in of %d", second.AuthTime, first.AuthTime)
	}

	// A copy of the key that was made when it had signed less: refused on the page, which asks again.
	if _, err := chromedp.Run(ctx, func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		r, err := cdp.Call(ctx, target, webauthn.GetCredentials, webauthn.GetCredentialsParams{AuthenticatorID: key})
		if err != nil {
			return chromedp.Void{}, err
		}
		c := r.Credentials[0]
		if _, err := cdp.Call(ctx, target, webauthn.ClearCredentials, webauthn.ClearCredentialsParams{AuthenticatorID: key}); err != nil {
			return chromedp.Void{}, err
		}
		// Not by cdproto's type, which always sends a member that this authenticator does not know.
		err = target.Call(ctx, webauthn.CommandAddCredential, map[string]any{"authenticatorId": key, "credential": map[string]any{
			"credentialId": c.CredentialID, "rpId": c.RpID, "privateKey": c.PrivateKey, "isResidentCredential": c.IsResidentCredential, "signCount": 1,
		}}, new(cdp.Empty))
		return chromedp.Void{}, err
	}); err != nil {
		t.Fatal(err)
	}
	do(ctx, t, "the copy: password", append([]chromedp.Action[chromedp.Void]{
		leave, chromedp.Navigate(cfg.AuthCodeURL("state", oauth2.S256ChallengeOption(oauth2.GenerateVerifier()))),
	}, types("#key button")...)...)
	do(ctx, t, "the copy: key", chromedp.Click(chromedp.CSS("#key button")), chromedp.WaitVisible(chromedp.CSS(`p.error[role="alert"]:not([hidden])`)))
	if said := read(ctx, t, `document.querySelector("p.error").innerText`); !strings.Contains(said, "does not count") {
		t.Errorf("the page says %q", said)
	}
	if len(came) != 0 {
		t.Error("the copy signed in")
	}
}
