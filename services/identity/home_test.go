package identity

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
)

var regexpSecret = regexp.MustCompile(`<p class="code">([A-Z2-7]{32})</p>`)

// A guest signs in at home, has an account here that is keyed by issuer and subject, and is who he is at home in tokens and in the record.
func TestGuest(t *testing.T) {
	l := newLab(t)
	e := l.foreign()
	a := l.apiApp()
	made := e.trust("partner", nil)
	if made.GetRedirectUri() != issuer+"/oauth2/home/partner" || !made.GetHasClientSecret() || strings.Contains(made.String(), "our-secret") {
		t.Errorf("entered as %v", made)
	}
	tokens := e.enter(a, "partner")
	access := str(tokens, "access_token")
	c := l.claims(access, issuer)
	if c.HomeIssuer != e.url || c.HomeSubject != "alice" || c.HomeClass != authn.Guest || c.ACR != authn.ACRHome || strings.Join(c.AMR, " ") != authn.ByHome {
		t.Errorf("the token says %+v", c)
	}
	who, err := l.whoAmI(access)
	must(t, err)
	if h := who.GetHome(); !strings.HasPrefix(who.GetPrincipal(), "users/guest-") || h.GetSubject() != "alice" || h.GetIssuerUrl() != e.url || h.GetEmail() != "alice@partner.example" || who.GetDisplayName() != "Alice · Partner" {
		t.Errorf("he is %v", who)
	}

	// Exchanged tokens keep it.
	out, err := identityv1.NewTokenServiceClient(l.service("workspace")).ExchangeToken(t.Context(), &identityv1.ExchangeTokenRequest{SubjectToken: access, Audience: "compute"})
	must(t, err)
	x := l.claims(out.GetAccessToken(), "spiffe://redoubt.test/service/compute")
	if x.HomeIssuer != e.url || x.HomeSubject != "alice" || x.HomeClass != authn.Guest {
		t.Errorf("the exchanged token says %+v", x)
	}

	// So does the record, of the sign-in and of what is done with the token.
	_, err = identityv1.NewDirectoryServiceClient(l.gateway()).ListUsers(bearer(t.Context(), access), &identityv1.ListUsersRequest{})
	if err == nil {
		t.Error("a guest without a role lists users")
	}
	seen := make(map[string]bool)
	for _, ev := range l.events() {
		if ev.GetDetails()["home_iss"] == e.url && ev.GetDetails()["home_sub"] == "alice" && ev.GetPrincipal() == who.GetUid() {
			_, method, _ := strings.Cut(ev.GetMethod(), "identity.v1.")
			seen[method] = true
		}
	}
	for _, m := range []string{"ProviderService/ReturnHome", "DirectoryService/ListUsers"} {
		if !seen[m] {
			t.Errorf("no record of %s has the home identity: %v", m, seen)
		}
	}

	// Again it is he, by another name and address; another subject with his address is another.
	e.lie(map[string]any{"name": "Alice B.\u202e", "email": "b@partner.example"})
	again, err := l.whoAmI(str(e.enter(a, "partner"), "access_token"))
	must(t, err)
	if again.GetUid() != who.GetUid() || again.GetDisplayName() != "Alice B. · Partner" || again.GetHome().GetEmail() != "b@partner.example" {
		t.Errorf("he is %v, and was %v", again, who)
	}
	e.lie(map[string]any{"sub": "mallory", "name": "Alice", "email": "alice@partner.example"})
	other, err := l.whoAmI(str(e.enter(a, "partner"), "access_token"))
	must(t, err)
	if other.GetUid() == who.GetUid() {
		t.Error("another subject with the same address is the same user")
	}
	// An address that is not verified is none.
	e.lie(map[string]any{"email_verified": "true", "email": "admin@redoubt.test"})
	if u, err := l.whoAmI(str(e.enter(a, "partner"), "access_token")); err != nil || u.GetHome().GetEmail() != "" {
		t.Errorf("he has the address %v %v", u, err)
	}

	// He can be given no password.
	ctx, directory := l.asAdmin()
	if _, err := directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: who.GetPrincipal(), NewPassword: "correct horse battery"}); err == nil {
		t.Error("a guest was given a password")
	}
	if _, err := directory.CreateUserCode(ctx, &identityv1.CreateUserCodeRequest{Name: who.GetPrincipal()}); err == nil {
		t.Error("a guest was invited")
	}

	// He can be disabled like anybody.
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: who.GetPrincipal(), Disabled: true})
	must(t, err)
	e.lie(nil)
	if r := e.guest(l.browser(), a, "partner"); r.query().Get("code") != "" || !strings.Contains(r.said(), "disabled") {
		t.Errorf("a disabled guest: %d %s", r.GetStatus(), r.said())
	}
}

// Disabling and deleting an issuer ends its people's sessions, and their way in.
func TestIssuerEnds(t *testing.T) {
	for name, end := range map[string]func(*lab, *identityv1.Issuer) error{
		"disabled": func(l *lab, i *identityv1.Issuer) error {
			ctx, _ := l.asAdmin()
			i.Settings.Disabled = true
			_, err := l.federation().UpdateIssuer(ctx, &identityv1.UpdateIssuerRequest{Name: i.GetName(), Settings: i.GetSettings(), Etag: i.GetEtag()})
			return err
		},
		"deleted": func(l *lab, i *identityv1.Issuer) error {
			ctx, _ := l.asAdmin()
			_, err := l.federation().DeleteIssuer(ctx, &identityv1.DeleteIssuerRequest{Name: i.GetName()})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			e := l.foreign()
			a := l.apiApp()
			i := e.trust("partner", nil)
			access := str(e.enter(a, "partner"), "access_token")
			b := l.browser()
			to, _ := b.depart(a.ask(), "partner")
			must(t, end(l, i))
			if _, err := l.whoAmI(access); err == nil {
				t.Error("his token works still")
			}
			if r := b.arrive("partner", e.authorize(to)); r.query().Get("code") != "" {
				t.Error("a sign-in that was under way was finished")
			}
			if _, r := l.browser().depart(a.ask(), "partner"); !strings.Contains(r.text(), "not there any more") {
				t.Errorf("the button works still: %s", r.text())
			}
		})
	}
}

// Consumers exist only where the installation says so, and nothing above workspaces is open to them, whatever roles say.
func TestConsumers(t *testing.T) {
	consumer := func(r *identityv1.CreateIssuerRequest) { r.Class = identityv1.HomeClass_HOME_CLASS_CONSUMER }
	off := newLab(t)
	if _, err := off.foreign().tryTrust("shop", consumer); err == nil {
		t.Error("a consumer issuer was entered where none may be")
	}
	l := newLabOf(t, func(c *Config) { c.Consumers = true })
	e := l.foreign()
	a := l.apiApp()
	e.trust("shop", consumer)
	access := str(e.enter(a, "shop"), "access_token")
	c := l.claims(access, issuer)
	if c.HomeClass != authn.Consumer {
		t.Errorf("the token says %+v", c)
	}
	l.owners(l.admin, c.Subject)
	if _, err := identityv1.NewDirectoryServiceClient(l.gateway()).ListUsers(bearer(t.Context(), access), &identityv1.ListUsersRequest{}); err == nil {
		t.Error("a consumer with the role Owner lists users")
	}
	l.s.cfg.Consumers = false // as after a restart with the switch off
	if r := l.token(a.redeem(""), nil); r.err == nil {
		t.Error("no code is a code")
	}
	if r := e.guest(l.browser(), a, "shop"); r.query().Get("code") != "" {
		t.Error("a consumer signed in after the switch was turned off")
	}
	if _, err := identityv1.NewTokenServiceClient(l.service("workspace")).ExchangeToken(t.Context(), &identityv1.ExchangeTokenRequest{SubjectToken: access, Audience: "compute"}); err == nil {
		t.Error("a consumer's token is exchanged after the switch was turned off")
	}
	// The same role of a guest counts: it is the class that is refused.
	g := l.foreign()
	g.trust("partner", nil)
	guest := str(g.enter(a, "partner"), "access_token")
	l.owners(l.admin, l.claims(guest, issuer).Subject)
	if _, err := identityv1.NewDirectoryServiceClient(l.gateway()).ListUsers(bearer(t.Context(), guest), &identityv1.ListUsersRequest{}); err != nil {
		t.Errorf("a guest with the role Owner: %v", err)
	}
}

// Groups of the mapping are put right at each sign-in; what was given by hand stays.
func TestHomeGroups(t *testing.T) {
	l := newLab(t)
	e := l.foreign()
	a := l.apiApp()
	ctx, directory := l.asAdmin()
	for _, g := range []string{"readers", "writers", "byhand"} {
		_, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: g})
		must(t, err)
	}
	e.trust("partner", func(r *identityv1.CreateIssuerRequest) {
		r.Settings.GroupsClaim = "groups"
		r.Settings.GroupMappings = []*identityv1.GroupMapping{
			{Value: "staff", Group: "groups/readers"}, {Value: "dev", Group: "groups/writers"}, {Value: "dev", Group: "groups/byhand"},
		}
	})
	uid := ""
	is := func(groups ...any) string {
		t.Helper()
		e.lie(map[string]any{"groups": groups})
		uid = l.claims(str(e.enter(a, "partner"), "access_token"), issuer).Subject
		var in []string
		all, err := directory.ListGroups(ctx, &identityv1.ListGroupsRequest{})
		must(t, err)
		for _, g := range all.GetGroups() {
			for _, m := range g.GetMembers() {
				if m == uid {
					in = append(in, strings.TrimPrefix(g.GetName(), "groups/"))
				}
			}
		}
		slices.Sort(in)
		return strings.Join(in, " ")
	}
	if got := is("staff", "other", 7); got != "readers" {
		t.Errorf("staff: %q", got)
	}
	_, err := directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: "groups/byhand", Member: uid})
	must(t, err)
	if got := is("dev"); got != "byhand writers" {
		t.Errorf("dev: %q", got)
	}
	if got := is(); got != "byhand" {
		t.Errorf("none: %q", got)
	}
	if got := is("groups/readers", "readers"); got != "byhand" {
		t.Errorf("a value that is not mapped: %q", got)
	}
}

// require_mfa asks a guest for a factor here, or trusts that of his home, if his issuer is marked so and says when he proved it.
func TestHomeFactor(t *testing.T) {
	l := newLab(t)
	e := l.foreign()
	a := l.apiApp()
	i := e.trust("partner", nil)
	ctx, _ := l.asAdmin()
	mfa := map[string]any{"amr": []string{"pwd", "mfa"}, "auth_time": l.now().Unix() - 60}
	e.lie(mfa)
	if acr := l.claims(str(e.enter(a, "partner"), "access_token"), issuer).ACR; acr != authn.ACRHome {
		t.Errorf("a home that is not trusted with it gives %s", acr)
	}
	i.Settings.TrustMfa = true
	_, err := l.federation().UpdateIssuer(ctx, &identityv1.UpdateIssuerRequest{Name: i.GetName(), Settings: i.GetSettings()})
	must(t, err)
	c := l.claims(str(e.enter(a, "partner"), "access_token"), issuer)
	if c.ACR != authn.ACRMFA || strings.Join(c.AMR, " ") != "home mfa" || c.AuthTime.Unix() != l.now().Unix()-60 {
		t.Errorf("a home that is trusted gives %+v", c)
	}
	_, err = identityv1.NewFactorServiceClient(l.gateway()).UpdateSignInPolicy(ctx, &identityv1.UpdateSignInPolicyRequest{RequireMfa: true})
	must(t, err)
	for name, claims := range map[string]map[string]any{"no mfa": nil, "no auth_time": {"amr": []string{"mfa"}}} {
		e.lie(claims)
		b := l.browser()
		r := e.guest(b, a, "partner")
		if r.query().Get("code") != "" || !strings.Contains(r.text(), "authenticator app") {
			t.Errorf("%s: no factor is asked for: %d %s", name, r.GetStatus(), r.text())
		}
		if name != "no mfa" {
			continue
		}
		secret := regexpSecret.FindStringSubmatch(r.text())
		if secret == nil {
			t.Fatalf("no secret in %s", r.text())
		}
		r = b.post("/oauth2/sign-in", url.Values{"request": {r.sealed(t)}, "action": {"factor"}, "factor": {"totp"}, "code": {l.totp(secret[1], 0)}})
		r = b.post("/oauth2/sign-in", url.Values{"request": {r.sealed(t)}, "action": {"continue"}})
		out := l.token(a.redeem(r.query().Get("code")), nil)
		if out.err != nil {
			t.Fatal(out.err)
		}
		c := payload(t, str(out.json(t), "id_token"))
		if c["acr"] != authn.ACRMFA {
			t.Errorf("after a factor of ours: %v", c)
		}
	}
	e.lie(mfa)
	if r := e.guest(l.browser(), a, "partner"); r.query().Get("code") == "" {
		t.Errorf("a factor at home that is trusted is asked for once more: %s", r.text())
	}
}
