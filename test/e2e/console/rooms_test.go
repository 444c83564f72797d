package console

import (
	"encoding/pem"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"golang.org/x/net/html"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// hostile is a name that would be a script, would turn the text around, looks like another, and has no end.
const hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202enimda\u2066 \u0430dmin"

// room is a page as a browser reads it: its elements, and what is wrong with them for who cannot see it, or must not be run.
func room(t *testing.T, name, body string) *html.Node {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	labels, ones, level := map[string]bool{}, 0, 0
	for n := range doc.Descendants() {
		if n.Data == "label" {
			labels[attr(n, "for")] = true
		}
	}
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.Data {
		case "script", "iframe", "object", "embed", "img", "base":
			t.Errorf("%s: there is a <%s>", name, n.Data)
		case "html":
			if attr(n, "lang") == "" {
				t.Errorf("%s: no language", name)
			}
		case "input", "textarea", "select":
			if attr(n, "type") != "hidden" && !labels[attr(n, "id")] {
				t.Errorf("%s: the field %q has no label", name, attr(n, "name"))
			}
		case "button":
			if strings.TrimSpace(text(n)) == "" {
				t.Errorf("%s: a button says nothing", name)
			}
		case "form":
			if attr(n, "method") != "post" || !strings.HasPrefix(attr(n, "action"), "/console/") {
				t.Errorf("%s: a form goes to %q by %q", name, attr(n, "action"), attr(n, "method"))
			}
		case "h1", "h2", "h3":
			this := int(n.Data[1] - '0')
			if this > level+1 {
				t.Errorf("%s: an %s after an h%d", name, n.Data, level)
			}
			if level = this; this == 1 {
				ones++
			}
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || (a.Key == "href" || a.Key == "action") && !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "?") && !strings.HasPrefix(a.Val, "#") {
				t.Errorf("%s: <%s %s=%q>", name, n.Data, a.Key, a.Val)
			}
		}
	}
	if ones != 1 {
		t.Errorf("%s: %d headings of the page", name, ones)
	}
	if strings.ContainsAny(body, "\u202e\u2066") {
		t.Errorf("%s: the text can be turned around", name)
	}
	return doc
}

func attr(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

func text(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		}
	}
	return b.String()
}

// forms are the actions of the forms of a page, but for signing out.
func forms(doc *html.Node) (out []string) {
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && n.Data == "form" && attr(n, "action") != "/console/leave" {
			out = append(out, attr(n, "action"))
		}
	}
	return out
}

// see loads a page and looks at it.
func (b *browser) see(path string, wants ...string) *html.Node {
	b.t.Helper()
	res, body := b.do(http.MethodGet, path, nil)
	if res.StatusCode != http.StatusOK {
		b.t.Fatalf("%s: %s\n%s", path, res.Status, body)
	}
	if res.Header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(res.Header.Get("Content-Security-Policy"), "default-src 'none'; style-src 'self'; script-src 'self';") {
		b.t.Errorf("%s comes with %v", path, res.Header)
	}
	doc := room(b.t, path, body)
	for _, w := range wants {
		if !strings.Contains(text(doc), w) {
			b.t.Errorf("%s does not say %q:\n%s", path, w, body)
		}
	}
	return doc
}

// send sends a form, goes where it leads, and gives what is said there.
func (b *browser) send(path string, q url.Values) string {
	b.t.Helper()
	res, body := b.do(http.MethodPost, path, q, "Origin", mesh.URL)
	if res.StatusCode == http.StatusSeeOther {
		return text(b.see(res.Header.Get("Location")))
	}
	if res.StatusCode != http.StatusOK {
		b.t.Fatalf("%s: %s\n%s", path, res.Status, body)
	}
	return text(room(b.t, path, body))
}

func signedIn(t *testing.T, p *person) *browser {
	t.Helper()
	b := newBrowser(t)
	if res, body := b.signIn(p, "/console/account/"); res.StatusCode != http.StatusOK {
		t.Fatalf("signing in: %s\n%s", res.Status, body)
	}
	return b
}

func TestTheRoomOfUsers(t *testing.T) {
	b := signedIn(t, newPerson(t, "olga").owner(t))
	b.see("/console/users/", "olga", "Invite somebody")
	if said := b.send("/console/users/", url.Values{"id": {"guest"}, "display_name": {hostile}}); !strings.Contains(said, "Made.") || !strings.Contains(said, "<script>alert(1)</script>") || !strings.Contains(said, "[U+202E]") {
		t.Errorf("making a user: %s", said)
	}
	b.see("/console/users/", "guest", "[U+202E]")
	b.see("/console/users/guest", "no password was set", "In none.", "Make a code for the invitation")
	if said := b.send("/console/users/guest/code", url.Values{}); !strings.Contains(said, "rdi_") || !strings.Contains(said, "/console/set-password") {
		t.Errorf("a code: %s", said)
	}
	if said := b.send("/console/users/guest/disable", url.Values{}); !strings.Contains(said, "Disabled.") || !strings.Contains(said, "Enable") {
		t.Errorf("disabling: %s", said)
	}
	if said := b.send("/console/users/guest/enable", url.Values{}); !strings.Contains(said, "Enabled.") {
		t.Errorf("enabling: %s", said)
	}
	p := newPerson(t, "forgetful")
	p.enrol(t)
	b.see("/console/users/forgetful", "totp", "my phone", "10 recovery codes", "Make a code to reset")
	if said := b.send("/console/users/forgetful/reset-factors", url.Values{}); !strings.Contains(said, "were removed") || strings.Contains(said, "my phone") {
		t.Errorf("resetting: %s", said)
	}
	if said := b.send("/console/users/guest/delete", url.Values{}); !strings.Contains(said, "Deleted.") {
		t.Errorf("deleting: %s", said)
	}
	// What the service says is shown, with the request's id, and the way back.
	for path, want := range map[string]struct {
		status int
		form   url.Values
	}{
		"/console/users/":              {http.StatusBadRequest, url.Values{"id": {"<script>"}}},
		"/console/users/nobody/delete": {http.StatusNotFound, url.Values{}},
		"/console/users/olga/code":     {http.StatusBadRequest, url.Values{"x": {"1", "2"}}},
	} {
		res, body := b.do(http.MethodPost, path, want.form, "Origin", mesh.URL)
		said := text(room(t, path, body))
		if res.StatusCode != want.status || !strings.Contains(said, "Back") || want.form.Get("x") == "" && !strings.Contains(said, "request ") {
			t.Errorf("%s: %s\n%s", path, res.Status, said)
		}
	}
	if res, body := b.do(http.MethodGet, "/console/users/nobody", nil); res.StatusCode != http.StatusNotFound || !strings.Contains(body, "request ") {
		t.Errorf("a user that there is not: %s\n%s", res.Status, body)
	}
	if res, _ := b.do(http.MethodPost, "/console/users/", url.Values{"id": {"olga"}}, "Origin", mesh.URL); res.StatusCode != http.StatusConflict {
		t.Errorf("a user twice: %s", res.Status)
	}
}

func TestUsersByPages(t *testing.T) {
	directory := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t)))
	for i := range 55 {
		if _, err := directory.CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: "paged-" + string(rune('a'+i/26)) + string(rune('a'+i%26))}); err != nil {
			t.Fatal(err)
		}
	}
	b := signedIn(t, newPerson(t, "otto").owner(t))
	seen := make(map[string]bool)
	for path, pages := "/console/users/", 0; path != ""; pages++ {
		doc := b.see(path)
		path = ""
		for n := range doc.Descendants() {
			if n.Type != html.ElementNode || n.Data != "a" {
				continue
			}
			if at := attr(n, "href"); strings.HasPrefix(at, "?page=") {
				path = "/console/users/" + at
			} else if id, ok := strings.CutPrefix(at, "/console/users/paged-"); ok {
				if seen[id] {
					t.Errorf("%s stands there twice", id)
				}
				seen[id] = true
			}
		}
		if pages > 10 {
			t.Fatal("the list does not end")
		}
	}
	if len(seen) != 55 {
		t.Errorf("%d users in all pages", len(seen))
	}
}

func TestTheRoomOfGroups(t *testing.T) {
	b := signedIn(t, newPerson(t, "gina").owner(t))
	for _, id := range []string{"team", "inner"} {
		if said := b.send("/console/groups/", url.Values{"id": {id}, "display_name": {hostile}}); !strings.Contains(said, "Made.") {
			t.Errorf("making a group: %s", said)
		}
	}
	for _, member := range []string{"gina", " groups/inner "} {
		if said := b.send("/console/groups/team/add", url.Values{"member": {member}}); !strings.Contains(said, "Added.") {
			t.Errorf("adding %s: %s", member, said)
		}
	}
	doc := b.see("/console/groups/team", "gina", "The gina", "inner", "group", "[U+202E]")
	b.see("/console/users/gina", "team")
	for _, bad := range []string{"", "nobody", "groups/team", "keys/x", "groups/none", "servicePrincipals/none"} {
		if res, body := b.do(http.MethodPost, "/console/groups/team/add", url.Values{"member": {bad}}, "Origin", mesh.URL); res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusNotFound {
			t.Errorf("adding %q: %s\n%s", bad, res.Status, body)
		}
	}
	for n := range doc.Descendants() { // as the button sends it
		if n.Type == html.ElementNode && n.Data == "input" && attr(n, "name") == "member" && strings.HasPrefix(attr(n, "value"), "usr_") {
			if said := b.send("/console/groups/team/remove", url.Values{"member": {attr(n, "value")}}); !strings.Contains(said, "Removed.") || strings.Contains(said, "The gina") {
				t.Errorf("taking out: %s", said)
			}
		}
	}
	if said := b.send("/console/groups/team/delete", url.Values{}); !strings.Contains(said, "Deleted.") {
		t.Errorf("deleting: %s", said)
	}
}

func TestTheRoomOfServicePrincipals(t *testing.T) {
	b := signedIn(t, newPerson(t, "stella").owner(t))
	if said := b.send("/console/service-principals/", url.Values{"id": {"robot"}, "display_name": {hostile}}); !strings.Contains(said, "Made.") || !strings.Contains(said, "nothing can sign in as it") {
		t.Errorf("making one: %s", said)
	}
	said := b.send("/console/service-principals/robot/add-secret", url.Values{"days": {"30"}})
	if strings.Count(said, "rdt_") != 1 {
		t.Errorf("a secret: %s", said)
	}
	if page := text(b.see("/console/service-principals/robot", "secret", time.Now().Add(30*24*time.Hour).UTC().Format("2006-01-"))); strings.Contains(page, "rdt_") {
		t.Errorf("the secret is shown again: %s", page)
	}
	key, err := authn.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if said := b.send("/console/service-principals/robot/add-key", url.Values{"days": {"5"}, "pem": {public}}); !strings.Contains(said, "Added.") || !strings.Contains(said, "public key") || !strings.Contains(said, "soon") {
		t.Errorf("a key: %s", said)
	}
	for name, form := range map[string]url.Values{"no days": {}, "no number": {"days": {"x"}}, "for ever": {"days": {"60000"}}, "none": {"days": {"0"}}} {
		if res, body := b.do(http.MethodPost, "/console/service-principals/robot/add-secret", form, "Origin", mesh.URL); res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s\n%s", name, res.Status, body)
		}
	}
	for n := range b.see("/console/service-principals/robot").Descendants() {
		if n.Type == html.ElementNode && n.Data == "input" && attr(n, "name") == "credential" {
			b.send("/console/service-principals/robot/remove-credential", url.Values{"credential": {attr(n, "value")}})
		}
	}
	b.see("/console/service-principals/robot", "nothing can sign in as it")
	b.send("/console/service-principals/robot/disable", url.Values{})
	b.see("/console/service-principals/", "robot", "disabled")
	b.send("/console/service-principals/robot/enable", url.Values{})
	if said := b.send("/console/service-principals/robot/delete", url.Values{}); !strings.Contains(said, "Deleted.") {
		t.Errorf("deleting: %s", said)
	}
}

func TestTheRoomOfOnesOwnAccount(t *testing.T) {
	p := newPerson(t, "ada")
	b := signedIn(t, p)
	other := mesh.SignIn(t, p.id, p.password)
	second := signedIn(t, p)
	doc := b.see("/console/account/", "this one", "A sign-in by password over the API", "the Redoubt console", "You have none")
	// The other console is ended from here: its next page asks for a sign-in.
	own := field(doc, "/console/account/end-others", "session")
	theirs := field(second.see("/console/account/"), "/console/account/end-others", "session")
	if own == "" || theirs == "" || own == theirs {
		t.Fatalf("the sessions are %q and %q", own, theirs)
	}
	if said := b.send("/console/account/end-session", url.Values{"session": {theirs}}); !strings.Contains(said, "was ended") || strings.Contains(said, theirs) {
		t.Errorf("ending: %s", said)
	}
	if res, body := second.do(http.MethodGet, "/console/account/", nil); res.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "/console/sign-in?to=%2fconsole%2faccount%2f") && !strings.Contains(body, "/console/sign-in?to=%2Fconsole%2Faccount%2F") {
		t.Errorf("the console that was ended: %s\n%s", res.Status, body)
	}
	if said := b.send("/console/account/end-others", url.Values{"session": {own}}); !strings.Contains(said, "All other sessions") || strings.Contains(said, "by password over") {
		t.Errorf("ending all others: %s", said)
	}
	if _, err := identityv1.NewSignInServiceClient(mesh.Dial(t, other)).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{}); err == nil {
		t.Error("a session that was ended goes on")
	}
	if res, _ := b.do(http.MethodPost, "/console/account/end-session", url.Values{"session": {"ses_none"}}, "Origin", mesh.URL); res.StatusCode != http.StatusNotFound {
		t.Errorf("a session that there is not: %s", res.Status)
	}

	// A password is changed by who has it, and this session stays.
	next := resource.NewUID("pw")
	for name, wrong := range map[string]url.Values{
		"not the same twice":    {"current": {p.password}, "password": {next}, "again": {next + "x"}},
		"not the present one":   {"current": {"a guess at it"}, "password": {next}, "again": {next}},
		"one that is too short": {"current": {p.password}, "password": {"kurz"}, "again": {"kurz"}},
	} {
		if res, body := b.do(http.MethodPost, "/console/account/password", wrong, "Origin", mesh.URL); res.StatusCode < 400 || res.StatusCode >= 500 || strings.Contains(body, p.password) || strings.Contains(body, next) {
			t.Errorf("a password, %s: %s\n%s", name, res.Status, body)
		}
	}
	if said := b.send("/console/account/password", url.Values{"current": {p.password}, "password": {next}, "again": {next}}); !strings.Contains(said, "Your password is changed") {
		t.Errorf("changing the password: %s", said)
	}
	p.password = next

	// An authenticator app: the first ends every session, and is asked for from then on.
	res, body := b.do(http.MethodPost, "/console/account/add-factor", url.Values{"name": {hostile}}, "Origin", mesh.URL)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("adding: %s\n%s", res.Status, body)
	}
	doc = room(t, "add", body)
	factor, secret := field(doc, "/console/account/prove-factor", "factor"), ""
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && attr(n, "class") == "secret" {
			secret = text(n)
		}
	}
	if said := b.send("/console/account/prove-factor", url.Values{"factor": {factor}, "code": {totp(t, secret, -1)}}); !strings.Contains(said, "all your sessions are ended") {
		t.Fatalf("proving: %s", said)
	}
	if b.cookie != nil {
		t.Error("the cookie is left")
	}
	p.secret = secret
	b = signedIn(t, p)
	doc = b.see("/console/account/", "[U+202E]", "10 recovery codes", "authenticator app")
	if said := b.send("/console/account/recovery-codes", url.Values{}); !strings.Contains(said, "shown this once") {
		t.Errorf("recovery codes: %s", said)
	}
	if said := b.send("/console/account/remove-factor", url.Values{"factor": {field(doc, "/console/account/remove-factor", "factor")}}); !strings.Contains(said, "Removed.") {
		t.Errorf("removing: %s", said)
	}
}

// field is the value of a hidden field of the first form that goes there.
func field(doc *html.Node, action, name string) string {
	for f := range doc.Descendants() {
		if f.Type != html.ElementNode || f.Data != "form" || attr(f, "action") != action {
			continue
		}
		for n := range f.Descendants() {
			if n.Type == html.ElementNode && n.Data == "input" && attr(n, "name") == name {
				return attr(n, "value")
			}
		}
	}
	return ""
}

// changes are all forms of the rooms. What another site sends is refused before anything is asked.
var changes = []string{
	"account/end-session", "account/end-others", "account/password", "account/remove-factor", "account/recovery-codes", "account/add-factor", "account/prove-factor",
	"users/", "users/victim/code", "users/victim/disable", "users/victim/enable", "users/victim/reset-factors", "users/victim/delete",
	"groups/", "groups/victims/add", "groups/victims/remove", "groups/victims/delete",
	"service-principals/", "service-principals/victim/add-secret", "service-principals/victim/add-key", "service-principals/victim/remove-credential",
	"service-principals/victim/disable", "service-principals/victim/enable", "service-principals/victim/delete", "leave",
}

func TestOtherSitesChangeNothing(t *testing.T) {
	b := signedIn(t, newPerson(t, "vera").owner(t))
	newPerson(t, "victim")
	for _, path := range changes {
		for name, headers := range map[string][]string{"another site": {"Origin", "https://example.org"}, "far away": {"Sec-Fetch-Site", "cross-site"}, "beside": {"Sec-Fetch-Site", "same-site"}, "nowhere": {"Origin", "null"}} {
			form := url.Values{"id": {"forged"}, "days": {"1"}, "session": {"x"}, "member": {"vera"}}
			if res, body := b.do(http.MethodPost, "/console/"+path, form, headers...); res.StatusCode != http.StatusForbidden || !strings.Contains(body, "another site") {
				t.Errorf("%s from %s: %s\n%s", path, name, res.Status, body)
			}
		}
		if res, _ := b.do(http.MethodPost, "/console/"+path, url.Values{}); path != "leave" && res.StatusCode == http.StatusMethodNotAllowed {
			t.Errorf("%s is no form of ours", path)
		}
	}
	if res, body := b.do(http.MethodGet, "/console/users/forged", nil); res.StatusCode == http.StatusOK {
		t.Errorf("a user was made by another site:\n%s", body)
	}
}

// Who may not is told so in words, and shown no button.
func TestWithoutRights(t *testing.T) {
	nina := newPerson(t, "nina")
	b := signedIn(t, nina)
	for _, path := range []string{"users/", "users/nina", "groups/", "groups/any", "service-principals/", "service-principals/any"} {
		res, body := b.do(http.MethodGet, "/console/"+path, nil)
		doc := room(t, path, body)
		if said := text(doc); res.StatusCode != http.StatusForbidden || !strings.Contains(said, "identity/") || !strings.Contains(said, "request ") || len(forms(doc)) > 0 {
			t.Errorf("%s: %s\n%s", path, res.Status, said)
		}
	}
	for _, path := range changes {
		if strings.HasPrefix(path, "account/") || path == "leave" {
			continue
		}
		res, body := b.do(http.MethodPost, "/console/"+path, url.Values{"id": {"forged"}, "days": {"1"}, "pem": {"x"}, "credential": {"x"}, "member": {"nina"}}, "Origin", mesh.URL)
		if said := text(room(t, path, body)); res.StatusCode != http.StatusForbidden || !strings.Contains(said, "identity/") {
			t.Errorf("%s: %s\n%s", path, res.Status, said)
		}
	}
	// A reader sees, and is shown nothing that he may not do.
	reader := newPerson(t, "rita")
	assign(t, reader.uid, "roleDefinitions/reader")
	b = signedIn(t, reader)
	for _, path := range []string{"users/", "users/nina", "groups/", "service-principals/"} {
		if doc := b.see("/console/" + path); len(forms(doc)) > 0 {
			t.Errorf("%s has buttons for a reader: %v", path, slices.Compact(forms(doc)))
		}
	}
}
