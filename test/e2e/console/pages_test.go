package console

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

const cookieName = "__Host-redoubt-session"

// browser keeps cookies and follows no redirect. cookie is the session's.
type browser struct {
	t      *testing.T
	http   *http.Client
	cookie *http.Cookie
	others map[string]*http.Cookie
}

func newBrowser(t *testing.T) *browser {
	roots := mesh.TLS().RootCAs
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	return &browser{t: t, others: make(map[string]*http.Cookie), http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// do sends a request, and takes the cookie that comes back. Header pairs follow the form.
func (b *browser) do(method, path string, form url.Values, headers ...string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, mesh.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	if b.cookie != nil {
		req.AddCookie(b.cookie)
	}
	for _, c := range b.others {
		req.AddCookie(c)
	}
	res, err := b.http.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range res.Cookies() {
		switch {
		case c.Name == cookieName && c.MaxAge < 0:
			b.cookie = nil
		case c.Name == cookieName:
			b.cookie = c
		case c.MaxAge < 0:
			delete(b.others, c.Name)
		default:
			b.others[c.Name] = c
		}
	}
	return res, string(body)
}

func code(t *testing.T, token string) string {
	t.Helper()
	c, err := identityv1.NewSignInServiceClient(mesh.Dial(t, token)).CreateSignInCode(t.Context(), &identityv1.CreateSignInCodeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return c.GetCode()
}

// enter signs a browser in.
func enter(t *testing.T, token string) *browser {
	t.Helper()
	b := newBrowser(t)
	if res, body := b.do(http.MethodPost, "/console/enter", url.Values{"code": {code(t, token)}}, "Origin", mesh.URL); res.StatusCode != http.StatusSeeOther || b.cookie == nil {
		t.Fatalf("entering: %s\n%s", res.Status, body)
	}
	return b
}

func workspace(t *testing.T, id string) *workspacev1.Workspace {
	t.Helper()
	w, err := workspacev1.NewResourceServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{
		Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: id, DisplayName: "<script>alert(1)</script>",
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestEnteringTakesACodeOnce(t *testing.T) {
	_, token := mesh.User(t, "erin")
	b := newBrowser(t)
	if res, body := b.do(http.MethodGet, "/console/enter", nil); res.StatusCode != http.StatusOK || !strings.Contains(body, "redoubt console") {
		t.Errorf("without a code: %s\n%s", res.Status, body)
	}
	c := code(t, token)
	// Looking at the link, as programs do ahead of people, uses nothing up.
	for range 2 {
		if res, body := b.do(http.MethodGet, "/console/enter?code="+c, nil); res.StatusCode != http.StatusOK || b.cookie != nil || !strings.Contains(body, c) {
			t.Errorf("the page of the link: %s, cookie %v", res.Status, b.cookie)
		}
	}
	for name, headers := range map[string][]string{
		"another site's form":           {"Origin", "https://example.org"},
		"a form of a site beside":       {"Sec-Fetch-Site", "same-site"},
		"a form of a site far away":     {"Sec-Fetch-Site", "cross-site"},
		"a form without a site at all":  {"Origin", "null"},
		"another site's, on our domain": {"Origin", "http://" + strings.TrimPrefix(mesh.URL, "https://") + ".example.org"},
	} {
		if res, _ := b.do(http.MethodPost, "/console/enter", url.Values{"code": {c}}, headers...); res.StatusCode != http.StatusForbidden || b.cookie != nil {
			t.Errorf("%s: %s", name, res.Status)
		}
	}
	res, _ := b.do(http.MethodPost, "/console/enter", url.Values{"code": {c}}, "Origin", mesh.URL, "Sec-Fetch-Site", "same-origin")
	if res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/console/" || b.cookie == nil {
		t.Fatalf("entering: %s to %q", res.Status, res.Header.Get("Location"))
	}
	if k := b.cookie; !k.HttpOnly || !k.Secure || k.SameSite != http.SameSiteStrictMode || k.Path != "/" || k.Domain != "" {
		t.Errorf("the cookie is %v", k)
	}
	for _, again := range []string{c, "", "rdl_nothing", strings.Repeat("x", 600)} {
		other := newBrowser(t)
		if res, _ := other.do(http.MethodPost, "/console/enter", url.Values{"code": {again}}, "Origin", mesh.URL); res.StatusCode == http.StatusSeeOther || other.cookie != nil {
			t.Errorf("the code %.8q… again: %s", again, res.Status)
		}
	}
}

func TestPagesShowWhatTheCallerMayRead(t *testing.T) {
	ws := workspace(t, "pages")
	base := "/console/w/default/default/pages"
	admin := enter(t, mesh.Admin(t))
	if _, err := computev1.NewComputeServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: ws.GetName(), ComputeId: "c", Kind: computev1.Compute_KIND_LOCAL}); err != nil {
		t.Fatal(err)
	}
	for path, wants := range map[string]string{
		"/console/":         "&lt;script&gt;alert(1)&lt;/script&gt;",
		base + "/":          "There are no runs yet",
		base + "/models":    "There are no models yet",
		base + "/endpoints": "There are no endpoints yet",
		base + "/activity":  "CreateCompute",
	} {
		res, body := admin.do(http.MethodGet, path, nil)
		for tries := 0; tries < 100 && !strings.Contains(body, wants) && strings.HasSuffix(path, "/activity"); tries++ { // records travel in the background
			time.Sleep(50 * time.Millisecond)
			res, body = admin.do(http.MethodGet, path, nil)
		}
		if res.StatusCode != http.StatusOK || !strings.Contains(body, wants) || strings.Contains(body, "<script>alert") {
			t.Errorf("%s: %s, and not %q in\n%s", path, res.Status, wants, body)
		}
		if csp := res.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'self'; script-src 'self';") {
			t.Errorf("%s: Content-Security-Policy %q", path, csp)
		}
		if strings.Contains(body, admin.cookie.Value) {
			t.Errorf("%s shows the token", path)
		}
	}
	for path, status := range map[string]int{
		base + "/runs/none":              http.StatusNotFound,
		base + "/runs/none/live":         http.StatusNotFound,
		base + "/runs/none/chart.svg":    http.StatusBadRequest, // no metric is named
		base + "/endpoints/none":         http.StatusNotFound,
		"/console/w/default/default/no/": http.StatusNotFound,
		"/console/w/de%2ffault/x/y/":     http.StatusBadRequest,
		"/console/w/default/default/Ｐ/":  http.StatusBadRequest,
		"/console/nothing":               http.StatusNotFound,
		base + "/?page=nonsense":         http.StatusBadRequest,
	} {
		if res, body := admin.do(http.MethodGet, path, nil); res.StatusCode != status {
			t.Errorf("%s: %s, want %d\n%s", path, res.Status, status, body)
		}
	}
	_, token := mesh.User(t, "frank")
	frank := enter(t, token)
	for _, path := range []string{base + "/", base + "/models", base + "/endpoints", base + "/activity"} {
		if res, body := frank.do(http.MethodGet, path, nil); res.StatusCode != http.StatusNotFound || strings.Contains(body, "CreateCompute") {
			t.Errorf("%s for one who may not see it: %s", path, res.Status)
		}
	}
	// Signing out ends the session at the command line too.
	old := *frank.cookie
	if res, _ := frank.do(http.MethodPost, "/console/leave", url.Values{}, "Sec-Fetch-Site", "cross-site"); res.StatusCode != http.StatusForbidden {
		t.Errorf("another site signs out: %s", res.Status)
	}
	if res, _ := frank.do(http.MethodPost, "/console/leave", url.Values{}, "Origin", mesh.URL); res.StatusCode != http.StatusOK || frank.cookie != nil {
		t.Errorf("signing out: %s, cookie %v", res.Status, frank.cookie)
	}
	status := 0
	for end := time.Now().Add(10 * time.Second); status != http.StatusUnauthorized && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		frank.cookie = &old // the end of a session reaches other services than identity within milliseconds
		res, _ := frank.do(http.MethodGet, "/console/", nil)
		status = res.StatusCode
	}
	if status != http.StatusUnauthorized || frank.cookie != nil {
		t.Errorf("after signing out: %d, cookie %v", status, frank.cookie)
	}
	if _, err := identityv1.NewSignInServiceClient(mesh.Dial(t, token)).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{}); err == nil {
		t.Error("the session goes on at the command line")
	}
}
