package stepup

import (
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"
	"google.golang.org/grpc/metadata"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

const (
	user     = "frida"
	password = "tulpen im regen 7"
	asks     = "code of the authenticator app, or a recovery code: "
)

var recoveryCode = regexp.MustCompile(`(?m)^[0-9a-z]{5}(?:-[0-9a-z]{5}){3}$`)

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
	trust := mesh.TLS()
	trust.NextProtos = nil
	transport := &http.Transport{TLSClientConfig: trust}
	t.Cleanup(transport.CloseIdleConnections)
	return &person{t, &http.Client{Transport: transport, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (p *person) visit(address string, form url.Values) (page, to string) {
	p.t.Helper()
	method := http.MethodGet
	if form != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
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
	return string(b), res.Header.Get("Location")
}

var sealed = regexp.MustCompile(`name="request" value="([^"]*)"`)

// sends answers the form of a page.
func (p *person) sends(page string, pairs ...string) (next, to string) {
	p.t.Helper()
	m := sealed.FindStringSubmatch(page)
	if m == nil {
		p.t.Fatalf("no form in %s", page)
	}
	form := url.Values{"request": {html.UnescapeString(m[1])}}
	for i := 0; i+1 < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	return p.visit(mesh.URL+"/oauth2/sign-in", form)
}

// A2: what wants a fresh proof is refused where nobody can be asked; at a terminal a code is asked for, and the call is made once more.
func TestStepUpByCommand(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, mesh.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"HOME": dir, "REDOUBT_CONFIG": filepath.Join(dir, "config.yaml"), "REDOUBT_KEYRING": "off", "REDOUBT_FORMAT": "", "REDOUBT_CONTEXT": "", "REDOUBT_ADDR": "", "REDOUBT_CACERT": "",
		"REDOUBT_TOKEN": "", "REDOUBT_WORKSPACE": "", "REDOUBT_RESOURCE_GROUP": "", "DISPLAY": ":0", "PATH": "",
	} {
		t.Setenv(k, v)
	}
	// Twenty minutes ago: an account with an app, a session of a password and a recovery code, and one of a browser.
	if _, err := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: user, Password: password}); err != nil {
		t.Fatal(err)
	}
	secret, recovery := enrols(t)
	code := func(later int64) string {
		c, err := hotp.GenerateCode(secret, uint64(time.Now().Unix()/30+later))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	login := func(lines ...string) {
		t.Helper()
		start(t, strings.NewReader(strings.Join(lines, "\n")+"\n"), "login", "--server", mesh.URL, "--ca", ca, "--user", user, "--password-stdin").ends(0)
	}
	login(password, recovery[0])
	p := newPerson(t)
	page, _ := p.visit(mesh.URL+"/oauth2/factors", nil)
	page, _ = p.sends(page, "user", user, "password", password, "action", "sign-in")
	if _, to := p.sends(page, "factor", "recovery_code", "code", recovery[1], "action", "factor"); to != "/oauth2/factors" {
		t.Fatalf("led to %q", to)
	}
	behind.Store(0)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // until services have heard of each other at the new time
		w := start(t, strings.NewReader(""), "whoami")
		if c := <-w.end; c == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d %s", c, w.errs.String())
		}
	}

	again := func(in io.Reader) *running { return start(t, in, "factor", "recovery-codes") }
	refused := again(strings.NewReader("")).ends(3)
	if !strings.Contains(refused, "STEP_UP_REQUIRED") || !strings.Contains(refused, "run it at a terminal") {
		t.Errorf("%s", refused)
	}
	tty, keyboard := ptsPair(t)
	r := again(tty)
	r.says(asks, 1)
	typed(t, keyboard, "000000")
	r.says(asks, 2)
	typed(t, keyboard, code(0))
	fresh := recoveryCode.FindAllString(r.ends(0), -1)
	if len(fresh) != 10 {
		t.Fatalf("%d recovery codes", len(fresh))
	}
	// What follows is not asked again, a terminal or none; what a program brings in the environment is not touched.
	if n := len(recoveryCode.FindAllString(again(strings.NewReader("")).ends(0), -1)); n != 10 {
		t.Errorf("%d recovery codes", n)
	}

	// A session whose tokens are bound to a key, of a browser that signed in twenty minutes ago.
	in := start(t, strings.NewReader(""), "login", "--server", mesh.URL, "--ca", ca)
	in.says("/oauth2/authorize?", 1)
	address := regexp.MustCompile(`https://\S+/oauth2/authorize\?\S+`).FindString(in.errs.String())
	page, _ = p.visit(address, nil)
	_, to := p.sends(page, "action", "continue")
	if u, err := url.Parse(to); err != nil || u.Hostname() != "127.0.0.1" {
		t.Fatalf("led to %q: %s", to, page)
	}
	if _, err := http.Get(to); err != nil {
		t.Fatal(err)
	}
	in.ends(0)
	again(strings.NewReader("")).ends(3)
	r = again(tty)
	r.says(asks, 1)
	typed(t, keyboard, code(1))
	fresh = recoveryCode.FindAllString(r.ends(0), -1)
	again(strings.NewReader("")).ends(0)
	start(t, strings.NewReader(""), "whoami").ends(0)
	if len(fresh) != 10 {
		t.Fatalf("%d recovery codes", len(fresh))
	}
}

// enrols gives the user an app, at the installation's time.
func enrols(t *testing.T) (secret string, recovery []string) {
	t.Helper()
	conn := mesh.Dial(t, "")
	in, err := identityv1.NewSignInServiceClient(conn).SignIn(t.Context(), &identityv1.SignInRequest{User: user, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+in.GetSession().GetAccessToken())
	c := identityv1.NewFactorServiceClient(conn)
	e, err := c.EnrolFactor(ctx, &identityv1.EnrolFactorRequest{DisplayName: "phone"})
	if err != nil {
		t.Fatal(err)
	}
	code, err := hotp.GenerateCode(e.GetSecret(), uint64(meshNow().Unix()/30))
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: code})
	if err != nil {
		t.Fatal(err)
	}
	return e.GetSecret(), r.GetRecoveryCodes()
}
