package federation

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/memory"
	"golang.org/x/crypto/bcrypt"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

var mesh *testmesh.Mesh

func TestMain(m *testing.M) {
	testmesh.Child()
	var err error
	if mesh, err = testmesh.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

const (
	client, secret = "redoubt", "dex-knows-us"
	board          = "https://board.example/callback"
	verifier       = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	challenge      = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
)

// dex is Dex with a directory of its own, on TLS.
func dex(t *testing.T, callback string) *httptest.Server {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("password of alice"), bcrypt.DefaultCost) // Dex takes no cheaper one
	must(t, err)
	quiet := slog.New(slog.DiscardHandler)
	store := storage.WithStaticClients(memory.New(quiet), []storage.Client{{ID: client, Secret: secret, RedirectURIs: []string{callback}, Name: "Redoubt"}})
	store = storage.WithStaticPasswords(store, []storage.Password{{Email: "alice@partner.example", Hash: hash, Username: "alice", UserID: "08a8684b-db88-4b73-90a9-3cd1661f5466"}}, quiet)
	store = storage.WithStaticConnectors(store, []storage.Connector{{ID: server.LocalConnector, Type: server.LocalConnector, Name: "Directory", ResourceVersion: "1"}})
	// Its pages are files beside its source, which the module has.
	web := os.DirFS(filepath.Join(moduleDir(t), "web"))
	var handler http.Handler
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	handler, err = server.NewServer(t.Context(), server.Config{
		Issuer: s.URL + "/dex", Storage: store, SkipApprovalScreen: true, Web: server.WebConfig{WebFS: web, Issuer: "Partner"}, Logger: quiet,
	})
	must(t, err)
	return s
}

// person is a browser that follows no redirect by itself.
func person(t *testing.T, dex *httptest.Server) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	must(t, err)
	conf := mesh.TLS()
	conf.NextProtos = nil
	conf.RootCAs = conf.RootCAs.Clone()
	conf.RootCAs.AddCert(dex.Certificate())
	transport := &http.Transport{TLSClientConfig: conf}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func visit(t *testing.T, c *http.Client, address string, form url.Values) (page string, to *url.URL) {
	t.Helper()
	method := http.MethodGet
	if form != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	must(t, err)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := c.Do(req)
	must(t, err)
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	must(t, err)
	if l := res.Header.Get("Location"); l != "" {
		to, err = req.URL.Parse(l)
		must(t, err)
	}
	return string(b), to
}

func find(t *testing.T, page, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no %s in %s", pattern, page)
	}
	return html.UnescapeString(m[1])
}

// A6: somebody whose home is Dex signs in through the gateway, and is who he is there, in the token.
func TestGuestOfDex(t *testing.T) {
	admin := mesh.Dial(t, mesh.Admin(t))
	callback := mesh.URL + "/oauth2/home/dex"
	home := dex(t, callback)
	made, err := identityv1.NewFederationServiceClient(admin).CreateIssuer(t.Context(), &identityv1.CreateIssuerRequest{
		IssuerId: "dex", IssuerUrl: home.URL + "/dex", Class: identityv1.HomeClass_HOME_CLASS_GUEST, ClientSecret: secret,
		Settings: &identityv1.IssuerSettings{
			DisplayName: "Partner", ClientId: client, Scopes: []string{"profile", "email"}, AllowedDomains: []string{"partner.example"}, AllowPrivateHosts: []string{"127.0.0.1"},
			TrustedRootsPem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: home.Certificate().Raw})),
		},
	})
	must(t, err)
	if made.GetRedirectUri() != callback {
		t.Errorf("people come back to %s", made.GetRedirectUri())
	}
	apps := identityv1.NewApplicationServiceClient(admin)
	app, err := apps.CreateApplication(t.Context(), &identityv1.CreateApplicationRequest{ApplicationId: "board", DisplayName: "The board", RedirectUris: []string{board}, Confidential: true, ApiAccess: true})
	must(t, err)
	key, err := apps.AddApplicationSecret(t.Context(), &identityv1.AddApplicationSecretRequest{Name: app.GetName()})
	must(t, err)

	enter := func() map[string]any {
		t.Helper()
		web := person(t, home)
		page, _ := visit(t, web, mesh.URL+"/oauth2/authorize?"+url.Values{
			"client_id": {app.GetUid()}, "redirect_uri": {board}, "response_type": {"code"}, "scope": {"openid redoubt"}, "state": {"s"},
			"code_challenge": {challenge}, "code_challenge_method": {"S256"},
		}.Encode(), nil)
		page, _ = visit(t, web, mesh.URL+"/oauth2/sign-in", url.Values{"request": {find(t, page, `name="request" value="([^"]*)"`)}, "home": {"dex"}})
		refresh := find(t, page, `http-equiv="refresh" content="0;url=([^"]*)"`)
		if link := find(t, page, `<a href="([^"]*)"`); link != refresh {
			t.Errorf("the page leads to %q by itself and to %q by a click", refresh, link)
		}
		at := refresh
		for range 10 { // Dex's own walk, to its form
			var to *url.URL
			if page, to = visit(t, web, at, nil); to == nil {
				break
			}
			at = to.String()
		}
		action := find(t, page, `<form method="post" action="([^"]*)"`)
		u, err := url.Parse(at)
		must(t, err)
		u, err = u.Parse(action)
		must(t, err)
		_, to := visit(t, web, u.String(), url.Values{"login": {"alice@partner.example"}, "password": {"password of alice"}})
		for range 10 {
			if to == nil {
				t.Fatal("Dex does not let her go on")
			}
			if strings.HasPrefix(to.String(), board) {
				break
			}
			if page, to = visit(t, web, to.String(), nil); to == nil {
				t.Fatalf("stopped at %s", page)
			}
		}
		form := url.Values{
			"grant_type": {"authorization_code"}, "code": {to.Query().Get("code")}, "redirect_uri": {board}, "code_verifier": {verifier}, "client_id": {app.GetUid()}, "client_secret": {key.GetSecret()},
		}
		answer, _ := visit(t, web, mesh.URL+"/oauth2/token", form)
		var tokens struct {
			Access string `json:"access_token"`
		}
		must(t, json.NewDecoder(bytes.NewReader([]byte(answer))).Decode(&tokens))
		parts := strings.Split(tokens.Access, ".")
		if len(parts) != 3 {
			t.Fatalf("no token: %s", answer)
		}
		raw, err := base64.RawURLEncoding.DecodeString(parts[1])
		must(t, err)
		out := make(map[string]any)
		must(t, json.Unmarshal(raw, &out))
		return out
	}
	c := enter()
	if c["home_iss"] != home.URL+"/dex" || c["home_class"] != "guest" || c["home_sub"] == "" || c["acr"] != "urn:redoubt:acr:home" {
		t.Errorf("the token says %v", c)
	}
	u, err := identityv1.NewDirectoryServiceClient(admin).ListUsers(t.Context(), &identityv1.ListUsersRequest{})
	must(t, err)
	for _, u := range u.GetUsers() {
		if u.GetUid() == c["sub"] && (u.GetHome().GetEmail() != "alice@partner.example" || u.GetDisplayName() != "alice · Partner") {
			t.Errorf("she is %v", u)
		}
	}
	if again := enter(); again["sub"] != c["sub"] || again["home_sub"] != c["home_sub"] {
		t.Errorf("the second time she is %v", again)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// moduleDir is where the source of Dex is.
func moduleDir(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/dexidp/dex")
	out, err := cmd.Output()
	must(t, err)
	return strings.TrimSpace(string(out))
}
