package e2e

import (
	"crypto/x509"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

const sister = "sister"

var goOn = regexp.MustCompile(`<a href="([^"]*)" rel="noreferrer"`)

// newHome is another installation, whose people are guests of this one. Its address has another host, since a browser does not tell ports apart when
// it sends cookies.
func newHome(t *testing.T) *testmesh.Mesh {
	t.Helper()
	home, err := testmesh.Start(func(c *node.UpConfig) { c.Listen = "localhost:0" })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(home.Close)
	apps := identityv1.NewApplicationServiceClient(home.Dial(t, home.Admin(t)))
	us, err := apps.CreateApplication(t.Context(), &identityv1.CreateApplicationRequest{
		ApplicationId: "us", DisplayName: "The other installation", RedirectUris: []string{mesh.URL + "/oauth2/home/" + sister}, Confidential: true, GrantTypes: []string{"authorization_code"},
	})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := apps.AddApplicationSecret(t.Context(), &identityv1.AddApplicationSecretRequest{Name: us.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identityv1.NewDirectoryServiceClient(home.Dial(t, home.Admin(t))).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: "wanda", Password: "a password of wanda's"}); err != nil {
		t.Fatal(err)
	}
	issuers := identityv1.NewFederationServiceClient(mesh.Dial(t, mesh.Admin(t)))
	_, err = issuers.CreateIssuer(t.Context(), &identityv1.CreateIssuerRequest{
		IssuerId: sister, IssuerUrl: home.URL, Class: identityv1.HomeClass_HOME_CLASS_GUEST, ClientSecret: secret.GetSecret(), Settings: &identityv1.IssuerSettings{
			DisplayName: "Sister", ClientId: us.GetUid(), AllowedAlgorithms: []string{"ES256"}, AllowPrivateHosts: []string{"localhost"}, TrustedRootsPem: string(home.CA),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return home
}

// through goes from a page of this installation that asks who one is to the home, signs in there, and comes back: it gives the page that is shown then,
// and where it leads.
func (p *person) through(home *testmesh.Mesh, page string) (string, *url.URL) {
	p.t.Helper()
	page, _ = p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "home": {sister}})
	m := goOn.FindStringSubmatch(page)
	if m == nil || !strings.HasPrefix(m[1], home.URL+"/oauth2/authorize?") {
		p.t.Fatalf("nothing leads to the home in %s", page)
	}
	page, to := p.visit(html.UnescapeString(m[1]), nil)
	if to == nil {
		page, to = p.visit(home.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "user": {"wanda"}, "password": {"a password of wanda's"}, "action": {"sign-in"}})
	}
	if to == nil || !strings.HasPrefix(to.String(), mesh.URL+"/oauth2/home/"+sister+"?") {
		p.t.Fatalf("the home leads to %v: %s", to, page)
	}
	return p.visit(to.String(), nil)
}

// A1, A6: somebody with a home elsewhere signs in at the command line: his browser passes through his home, which is another installation, and what the
// command keeps is his. Without a display he does the same by a device's code.
func TestLoginByAHome(t *testing.T) {
	home := newHome(t)
	newGuest := func() *person {
		p := newPerson(t)
		transport, ok := p.web.Transport.(*http.Transport)
		if !ok {
			t.Fatal("the person's transport is another")
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(mesh.CA)
		pool.AppendCertsFromPEM(home.CA)
		transport.TLSClientConfig.RootCAs = pool
		return p
	}

	s := newSeat(t, "DISPLAY=:0")
	address, end := s.signsIn(`https://\S+/oauth2/authorize\?\S+`)
	p := newGuest()
	page, _ := p.visit(address, nil)
	page, to := p.through(home, page)
	if to == nil || to.Hostname() != "127.0.0.1" || to.Query().Get("code") == "" {
		t.Fatalf("led to %v: %s", to, page)
	}
	fetch(t, to.String())
	end(0)
	in := regexp.MustCompile(`users/guest-[a-z2-7]{16}`)
	who := in.FindString(s.types(0, "", "whoami"))
	if who == "" {
		t.Error("he is nobody's guest")
	}
	s.ages()
	s.types(0, "", "whoami") // renewed
	s.types(3, "", "user", "list")

	// By a device's code, as the same person.
	d := newSeat(t)
	code, end := d.signsIn(`(?m)^  [B-Z]{4}-[B-Z]{4}$`)
	p = newGuest()
	page, _ = p.visit(mesh.URL+"/oauth2/device", nil)
	page, _ = p.visit(mesh.URL+"/oauth2/device", url.Values{"request": {p.request(page)}, "user_code": {code}})
	page, _ = p.through(home, page)
	p.visit(mesh.URL+"/oauth2/sign-in", url.Values{"request": {p.request(page)}, "action": {"continue"}})
	end(0)
	if got := in.FindString(d.types(0, "", "whoami")); got != who || who == "" {
		t.Errorf("by a device he is %q, in a browser %q", got, who)
	}
	d.types(0, "", "logout")
	s.types(0, "", "whoami") // another session of his
	s.types(0, "", "logout")
	s.types(3, "", "whoami")
}
