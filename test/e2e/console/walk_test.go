package console

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/redoubt-ml/redoubt/pkg/authn"
)

// device begins the sign-in of a device without a browser, and gives the code that its person types and what it asks with (RFC 8628).
func device(t *testing.T) (userCode string, poll func() string) {
	t.Helper()
	key, err := authn.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	prover, err := authn.NewProver(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t)
	ask := func(path string, q url.Values) map[string]any {
		t.Helper()
		shown, err := prover.Proof(http.MethodPost, mesh.URL+path, "", "")
		if err != nil {
			t.Fatal(err)
		}
		_, body := b.do(http.MethodPost, path, q, "Dpop", shown)
		m := make(map[string]any)
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatalf("%s: %v\n%s", path, err, body)
		}
		return m
	}
	begun := ask("/oauth2/device_authorization", url.Values{"client_id": {"redoubt-cli"}, "scope": {"redoubt"}})
	userCode, _ = begun["user_code"].(string)
	code, _ := begun["device_code"].(string)
	if userCode == "" || code == "" {
		t.Fatalf("no code: %v", begun)
	}
	return userCode, func() string {
		got := ask("/oauth2/token", url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {"redoubt-cli"}, "device_code": {code}})
		token, _ := got["access_token"].(string)
		return token
	}
}

// fill types into the fields of a page, by name, and presses the button that belongs to them.
func fill(ctx context.Context, t *testing.T, button, wait string, fields ...string) {
	t.Helper()
	for i := 0; i+1 < len(fields); i += 2 {
		if err := chromedp.Do(ctx, chromedp.WaitVisible(chromedp.CSS(fields[i])), chromedp.SendKeys(chromedp.CSS(fields[i]), fields[i+1])); err != nil {
			t.Fatalf("typing into %s: %v", fields[i], err)
		}
	}
	follow(ctx, t, button, wait)
}

// narrow says whether a page fits into a window of 320 px, without going sideways, but for tables, which scroll by themselves.
func narrow(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(320, 700)); err != nil {
		t.Fatal(err)
	}
	if wide := ask(ctx, t, chromedp.Evaluate[int](`document.documentElement.scrollWidth`)); wide > 320 {
		t.Errorf("%s is %d px wide in a window of 320", name, wide)
	}
	picture(ctx, t, name+"-320.png")
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1100, 900)); err != nil {
		t.Fatal(err)
	}
}

// said waits until the page says all of it: what was waited for may have stood on the page before too.
func said(ctx context.Context, t *testing.T, wants ...string) {
	t.Helper()
	var read string
	missing := func(w string) bool { return !strings.Contains(read, w) }
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		read, _ = chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body"))) // fails while one page gives way to the next
		i := slices.IndexFunc(wants, missing)
		if i < 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the page does not say %q:\n%s", wants[i], read)
			return
		}
	}
}

// As a person does it who runs an installation: signs in with a password and an app, lets a device in, looks at what is open, ends a session,
// invites somebody, and gives a program a secret. No page runs a script.
func TestAWalkThroughTheRooms(t *testing.T) { // A1, A2, I
	ctx := chromium(t)
	p := newPerson(t, "walter").owner(t)
	p.enrol(t)
	other := signedInBefore(t, p)

	if err := chromedp.Do(ctx, chromedp.Navigate(mesh.URL+"/console/users/"), chromedp.WaitVisible(chromedp.CSS(`input[name="password"]`))); err != nil {
		t.Fatal(err)
	}
	picture(ctx, t, "sign-in.png")
	fill(ctx, t, `button[value="sign-in"]`, `input[name="code"]`, `input[name="user"]`, p.id, `input[name="password"]`, p.password)
	picture(ctx, t, "second-factor.png")
	fill(ctx, t, `button[value="factor"]`, `footer form.leave`, `input[name="code"]`, totp(t, p.secret, 1))
	said(ctx, t, "users/walter", "Invite somebody")

	// A device.
	code, poll := device(t)
	if err := chromedp.Do(ctx, chromedp.Navigate(mesh.URL+"/oauth2/device"), chromedp.WaitVisible(chromedp.CSS(`input[name="user_code"]`))); err != nil {
		t.Fatal(err)
	}
	picture(ctx, t, "device-code.png")
	fill(ctx, t, `main button, form button`, `button[value="continue"]`, `input[name="user_code"]`, code)
	picture(ctx, t, "device-asks.png")
	follow(ctx, t, `button[value="continue"]`, `main:not(:has(form))`) // the page before has an h1 too
	if poll() == "" {
		t.Error("the device was not let in")
	}

	// What is open, and one of it ended.
	if err := chromedp.Do(ctx, chromedp.Navigate(mesh.URL+"/console/account/"), chromedp.WaitVisible(chromedp.CSS("main table"))); err != nil {
		t.Fatal(err)
	}
	said(ctx, t, "the Redoubt command line", "the Redoubt console", "this one", "my phone")
	picture(ctx, t, "account.png")
	narrow(ctx, t, "account")
	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(`button[aria-label="End the session `+other.session+`"]`)), chromedp.WaitVisible(chromedp.CSS(".note"))); err != nil {
		t.Fatal(err)
	}
	if res, _ := other.do(http.MethodGet, "/console/account/", nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("the session that was ended: %s", res.Status)
	}

	// A user, with a name that would like to be more.
	follow(ctx, t, `a[href="/console/users/"]`, `input[name="id"]`)
	fill(ctx, t, `form.sheet button`, `.note`, `input[name="id"]`, "newcomer", `input[name="display_name"]`, "<script>document.title='broken'</script>")
	said(ctx, t, "no password was set", "<script>")
	picture(ctx, t, "user.png")
	narrow(ctx, t, "user")
	follow(ctx, t, `form[action$="/code"] button`, `code.secret`)
	said(ctx, t, "rdi_", "/console/set-password")
	picture(ctx, t, "user-code.png")
	follow(ctx, t, `a[href="/console/users/"]`, `main table`)
	picture(ctx, t, "users.png")

	// Into a group.
	follow(ctx, t, `a[href="/console/groups/"]`, `input[name="id"]`)
	fill(ctx, t, `form.sheet button`, `input[name="member"]`, `input[name="id"]`, "walkers", `input[name="display_name"]`, "Those who walk")
	fill(ctx, t, `form.sheet button`, `main table`, `input[name="member"]`, "newcomer")
	said(ctx, t, "newcomer", "Added.")
	picture(ctx, t, "group.png")
	narrow(ctx, t, "group")

	// A program's secret, shown once.
	follow(ctx, t, `a[href="/console/service-principals/"]`, `input[name="id"]`)
	fill(ctx, t, `form.sheet button`, `input[name="days"]`, `input[name="id"]`, "walking-robot", `input[name="display_name"]`, "The robot")
	follow(ctx, t, `form[action$="/add-secret"] button`, `code.secret`)
	said(ctx, t, "rdt_")
	picture(ctx, t, "service-principal-secret.png")
	follow(ctx, t, `main a.button`, `main table`)
	if page := ask(ctx, t, chromedp.Text(chromedp.CSS("body"))); strings.Contains(page, "rdt_") {
		t.Error("the secret is shown again")
	}
	picture(ctx, t, "service-principal.png")
	narrow(ctx, t, "service-principal")

	// Out, here and at the provider.
	follow(ctx, t, `form.leave button`, `a[href="/console/sign-in"]`)
	picture(ctx, t, "signed-out.png")
	follow(ctx, t, `a[href="/console/sign-in"]`, `input[name="password"]`)
}

// beside is somebody's other browser.
type beside struct {
	*browser
	session string
}

func signedInBefore(t *testing.T, p *person) beside {
	t.Helper()
	b := signedIn(t, p)
	id := field(b.see("/console/account/"), "/console/account/end-others", "session")
	if id == "" {
		t.Fatal("the other browser has no session")
	}
	return beside{b, id}
}
