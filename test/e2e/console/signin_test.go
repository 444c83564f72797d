package console

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// person is a user with a password, and with a factor if he has enrolled one.
type person struct{ id, uid, password, secret string }

func newPerson(t *testing.T, id string) *person {
	t.Helper()
	p := &person{id: id, password: resource.NewUID("pw")}
	u, err := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: id, Password: p.password, DisplayName: "The " + id})
	if err != nil {
		t.Fatal(err)
	}
	p.uid = u.GetUid()
	return p
}

// owner makes the person an Owner of the installation.
func (p *person) owner(t *testing.T) *person {
	t.Helper()
	assign(t, p.uid, "roleDefinitions/owner")
	return p
}

// enrol gives the person a factor, and gives the step whose code was used.
func (p *person) enrol(t *testing.T) {
	t.Helper()
	c := identityv1.NewFactorServiceClient(mesh.Dial(t, mesh.SignIn(t, p.id, p.password)))
	e, err := c.EnrolFactor(t.Context(), &identityv1.EnrolFactorRequest{DisplayName: "my phone"})
	if err != nil {
		t.Fatal(err)
	}
	// One step back is taken as well, and leaves the present one for the first sign-in.
	if _, err := c.ProveFactor(t.Context(), &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: totp(t, e.GetSecret(), -1)}); err != nil {
		t.Fatal(err)
	}
	p.secret = e.GetSecret()
}

func totp(t *testing.T, secret string, step int64) string {
	t.Helper()
	c, err := hotp.GenerateCode(secret, uint64(time.Now().Unix()/30+step))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var hidden = regexp.MustCompile(`name="request" value="([^"]*)"`)

// follow goes to where a redirect leads, at this installation.
func (b *browser) follow(res *http.Response) (*http.Response, string) {
	b.t.Helper()
	to := strings.TrimPrefix(res.Header.Get("Location"), mesh.URL)
	if res.StatusCode != http.StatusSeeOther || !strings.HasPrefix(to, "/") {
		b.t.Fatalf("no redirect to follow: %s %q", res.Status, res.Header.Get("Location"))
	}
	return b.do(http.MethodGet, to, nil)
}

// prove answers the provider's page until there is a redirect: by password, then by a code. Limits by address are others' too.
func (b *browser) prove(p *person, body string, code func() string) *http.Response {
	b.t.Helper()
	for range 100 {
		m := hidden.FindStringSubmatch(body)
		if m == nil {
			b.t.Fatalf("no form of the provider's in\n%s", body)
		}
		q := url.Values{"request": {html.UnescapeString(m[1])}, "action": {"sign-in"}, "user": {p.id}, "password": {p.password}}
		if strings.Contains(body, `value="factor"`) {
			q = url.Values{"request": q["request"], "action": {"factor"}, "factor": {"totp"}, "code": {code()}}
		}
		var res *http.Response
		if res, body = b.do(http.MethodPost, "/oauth2/sign-in", q, "Origin", mesh.URL); res.StatusCode == http.StatusSeeOther {
			return res
		} else if res.StatusCode == http.StatusTooManyRequests {
			m := hidden.FindStringSubmatch(body)
			if m == nil { // the chain's own refusal, not a page
				time.Sleep(300 * time.Millisecond)
				body = `name="request" value="` + html.EscapeString(q.Get("request")) + `"`
			}
		} else if res.StatusCode != http.StatusOK {
			b.t.Fatalf("signing in: %s\n%s", res.Status, body)
		}
	}
	b.t.Fatal("the sign-in does not end")
	return nil
}

// signIn signs a browser in at the provider, beginning at a page of the console, and gives that page.
func (b *browser) signIn(p *person, path string) (*http.Response, string) {
	b.t.Helper()
	res, _ := b.do(http.MethodGet, path, nil)
	res, _ = b.follow(res)     // to the console's beginning of a sign-in
	res, body := b.follow(res) // to the provider
	if res.StatusCode == http.StatusOK {
		res = b.prove(p, body, func() string { return totp(b.t, p.secret, 0) })
	}
	return b.arrive(res)
}

var onward = regexp.MustCompile(`http-equiv="refresh" content="0; url=([^"]*)"`)

// arrive goes from the provider's answer to the page that the sign-in was for.
func (b *browser) arrive(res *http.Response) (*http.Response, string) {
	b.t.Helper()
	res, body := b.follow(res)
	m := onward.FindStringSubmatch(body)
	if res.StatusCode != http.StatusOK || m == nil || b.cookie == nil {
		b.t.Fatalf("the answer of the provider: %s, cookie %v\n%s", res.Status, b.cookie, body)
	}
	return b.do(http.MethodGet, html.UnescapeString(m[1]), nil)
}

func TestSigningInAtTheProvider(t *testing.T) { // A1, A2
	p := newPerson(t, "petra")
	p.enrol(t)
	b := newBrowser(t)
	res, body := b.signIn(p, "/console/account/")
	if res.StatusCode != http.StatusOK || !strings.Contains(body, "users/petra") || !strings.Contains(body, "my phone") || !strings.Contains(body, "bound to a key") {
		t.Fatalf("after signing in: %s\n%s", res.Status, body)
	}
	if k := b.cookie; !k.HttpOnly || !k.Secure || k.SameSite != http.SameSiteStrictMode || k.Path != "/" || k.Domain != "" {
		t.Errorf("the cookie is %v", k)
	}
	for name := range b.others {
		if strings.Contains(name, "way") {
			t.Errorf("the cookie %s of the way is left", name)
		}
	}
	// The token without its key is nothing.
	_, token, bound := strings.Cut(b.cookie.Value, "~")
	if !bound {
		t.Fatal("the cookie holds no key")
	}
	if _, err := identityv1.NewSignInServiceClient(mesh.Dial(t, token)).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{}); err == nil {
		t.Error("the token is good without its key")
	}
	thief := newBrowser(t)
	thief.cookie = &http.Cookie{Name: cookieName, Value: token}
	if res, _ := thief.do(http.MethodGet, "/console/account/", nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("a cookie without the key: %s", res.Status)
	}
	// Who is signed in at the provider is not asked again.
	b.cookie = nil
	if res, body := b.signIn(p, "/console/"); res.StatusCode != http.StatusOK || !strings.Contains(body, "users/petra") {
		t.Errorf("a second time: %s\n%s", res.Status, body)
	}

	// Signing out ends it at the provider too.
	old := *b.cookie
	if res, body := b.do(http.MethodPost, "/console/leave", url.Values{}, "Origin", mesh.URL); res.StatusCode != http.StatusOK || b.cookie != nil {
		t.Fatalf("signing out: %s\n%s", res.Status, body)
	}
	b.cookie = &old
	if res, _ := b.do(http.MethodGet, "/console/account/", nil); res.StatusCode != http.StatusUnauthorized || b.cookie != nil {
		t.Errorf("the cookie after signing out: %s", res.Status)
	}
	res, _ = b.do(http.MethodGet, "/console/", nil)
	res, _ = b.follow(res)
	if res, body := b.follow(res); res.StatusCode != http.StatusOK || !strings.Contains(body, `name="password"`) {
		t.Errorf("the provider after signing out: %s\n%s", res.Status, body)
	}
}

// An answer that this browser did not ask for signs nobody in.
func TestAnswersThatNobodyAskedFor(t *testing.T) {
	p := newPerson(t, "paula")
	b := newBrowser(t)
	begin := func(path string) (state string, answer *http.Response) {
		res, _ := b.do(http.MethodGet, path, nil)
		at, err := url.Parse(res.Header.Get("Location"))
		if err != nil || !strings.HasPrefix(res.Header.Get("Location"), mesh.URL+"/oauth2/authorize?") {
			t.Fatalf("no way to the provider: %s %q %v", res.Status, res.Header.Get("Location"), err)
		}
		res, body := b.follow(res)
		if res.StatusCode == http.StatusOK {
			res = b.prove(p, body, nil)
		}
		return at.Query().Get("state"), res
	}
	_, answer := begin("/console/sign-in")
	good := strings.TrimPrefix(answer.Header.Get("Location"), mesh.URL)
	change := func(name, value string) string {
		u, err := url.Parse(good)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		q.Set(name, value)
		u.RawQuery = q.Encode()
		return u.String()
	}
	other := newBrowser(t)
	for name, try := range map[string]func() (*http.Response, string){
		"in another browser": func() (*http.Response, string) { return other.do(http.MethodGet, good, nil) },
		"with another state": func() (*http.Response, string) {
			return b.do(http.MethodGet, change("state", strings.Repeat("A", 43)), nil)
		},
		"with a state that is none": func() (*http.Response, string) { return b.do(http.MethodGet, change("state", "x"), nil) },
		"without anything":          func() (*http.Response, string) { return b.do(http.MethodGet, "/console/signed-in", nil) },
	} {
		if res, body := try(); res.StatusCode != http.StatusBadRequest || b.cookie != nil || other.cookie != nil || !strings.Contains(body, "did not begin in this browser") {
			t.Errorf("%s: %s\n%s", name, res.Status, body)
		}
	}
	// What is this browser's and is another issuer's, or an error, uses the way up.
	for name, path := range map[string]string{"another issuer": change("iss", "https://example.org"), "an error": change("error", "server_error")} {
		_, answer := begin("/console/sign-in")
		u, _ := url.Parse(answer.Header.Get("Location"))
		bad, _ := url.Parse(path)
		q := bad.Query()
		q.Set("state", u.Query().Get("state"))
		if res, _ := b.do(http.MethodGet, "/console/signed-in?"+q.Encode(), nil); res.StatusCode != http.StatusBadRequest || b.cookie != nil {
			t.Errorf("%s: %s", name, res.Status)
		}
	}
	// The good one is good once, and leads to a place of ours.
	if res, _ := b.do(http.MethodGet, good, nil); res.StatusCode != http.StatusOK || b.cookie == nil {
		t.Errorf("the good answer: %s", res.Status)
	}
	b.cookie = nil
	if res, _ := b.do(http.MethodGet, good, nil); res.StatusCode != http.StatusBadRequest || b.cookie != nil {
		t.Errorf("the good answer, again: %s", res.Status)
	}
	for _, to := range []string{"https://example.org/", "//example.org/", "/oauth2/authorize", "/console/../x", "/console/\\example.org", "javascript:alert(1)", "/console/\r\nx"} {
		b.cookie = nil
		_, answer := begin("/console/sign-in?to=" + url.QueryEscape(to))
		if _, body := b.follow(answer); !strings.Contains(body, `content="0; url=/console/"`) {
			t.Errorf("a sign-in leads to %q:\n%s", to, body)
		}
	}
}

func TestPasswordsBySingleUseCode(t *testing.T) {
	admin := mesh.Dial(t, mesh.Admin(t))
	directory := identityv1.NewDirectoryServiceClient(admin)
	if _, err := directory.CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: "invited"}); err != nil {
		t.Fatal(err)
	}
	made, err := directory.CreateUserCode(t.Context(), &identityv1.CreateUserCodeRequest{Name: "users/invited"})
	if err != nil {
		t.Fatal(err)
	}
	b, p := newBrowser(t), &person{id: "invited", password: resource.NewUID("pw")}
	if res, body := b.do(http.MethodGet, "/console/set-password", nil); res.StatusCode != http.StatusOK || !strings.Contains(body, "<label for=") {
		t.Errorf("the page: %s\n%s", res.Status, body)
	}
	set := func(again, origin string) (*http.Response, string) {
		return b.do(http.MethodPost, "/console/set-password", url.Values{"code": {made.GetCode()}, "password": {p.password}, "again": {again}}, "Origin", origin)
	}
	if res, _ := set(p.password, "https://example.org"); res.StatusCode != http.StatusForbidden {
		t.Errorf("from another site: %s", res.Status)
	}
	if res, body := set("another one", mesh.URL); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "not the same") {
		t.Errorf("two passwords: %s\n%s", res.Status, body)
	}
	if res, body := set(p.password, mesh.URL); res.StatusCode != http.StatusOK || strings.Contains(body, p.password) {
		t.Errorf("setting it: %s\n%s", res.Status, body)
	}
	if res, _ := set(p.password, mesh.URL); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("a second time: %s", res.Status)
	}
	if res, body := b.signIn(p, "/console/account/"); res.StatusCode != http.StatusOK || !strings.Contains(body, "users/invited") {
		t.Errorf("signing in with it: %s\n%s", res.Status, body)
	}
}
