package identity

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

func TestUsers(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	alice := l.addUser("alice")
	if alice.GetName() != "users/alice" || !strings.HasPrefix(alice.GetUid(), "usr_") || alice.GetDisplayName() != "The alice" || alice.GetDisabled() {
		t.Errorf("made %v", alice)
	}
	got, err := directory.GetUser(ctx, &identityv1.GetUserRequest{Name: "users/alice"})
	must(t, err)
	if got.GetUid() != alice.GetUid() || got.GetEtag() != alice.GetEtag() || !got.GetCreateTime().AsTime().Equal(alice.GetCreateTime().AsTime()) {
		t.Errorf("read %v, made %v", got, alice)
	}
	for _, c := range []struct {
		name, id, password string
		code               codes.Code
		reason             faultv1.Reason
	}{
		{"the same", "alice", "a good password", codes.AlreadyExists, faultv1.Reason_RESOURCE_ALREADY_EXISTS},
		{"digit for letter", "a1ice", "a good password", codes.AlreadyExists, faultv1.Reason_RESOURCE_ALREADY_EXISTS},
		{"hyphen", "al-ice", "a good password", codes.AlreadyExists, faultv1.Reason_RESOURCE_ALREADY_EXISTS},
		{"upper case", "Alice", "a good password", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"Cyrillic", "аlice", "a good password", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"full width", "ａlice", "a good password", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"slash", "a/b", "a good password", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"empty", "", "a good password", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"64 long", strings.Repeat("a", 64), "a good password", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"short password", "bob", "elevenchars", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"common password", "bob", "Password2026!", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"name as password", "robert-paulson", "Robert-Paulson", codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
	} {
		_, err := directory.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: c.id, Password: c.password})
		want(t, c.name, err, c.code, c.reason)
	}
	for name, c := range map[string]struct {
		user string
		code codes.Code
	}{
		"unknown": {"users/bob", codes.NotFound}, "a group": {"groups/alice", codes.InvalidArgument}, "no collection": {"alice", codes.InvalidArgument},
		"the installation": {"/", codes.InvalidArgument}, "escaped": {"users/%61lice", codes.InvalidArgument},
	} {
		if _, err := directory.GetUser(ctx, &identityv1.GetUserRequest{Name: c.user}); codeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	// He who may do nothing may not look either.
	own := bearer(t.Context(), l.signIn("alice", "password of alice").GetAccessToken())
	_, err = directory.GetUser(own, &identityv1.GetUserRequest{Name: "users/admin"})
	want(t, "without a role", err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
}

func TestListUsersByPages(t *testing.T) {
	l := newLab(t)
	ctx, directory := l.asAdmin()
	all := []string{"users/admin"}
	for i := range 7 {
		id := fmt.Sprint("user-", string(rune('a'+i)))
		l.addUser(id)
		all = append(all, "users/"+id)
	}
	var got []string
	token, pages := "", 0
	for {
		res, err := directory.ListUsers(ctx, &identityv1.ListUsersRequest{PageSize: 3, PageToken: token})
		must(t, err)
		for _, u := range res.GetUsers() {
			got = append(got, u.GetName())
		}
		pages++
		if token = res.GetNextPageToken(); token == "" {
			break
		}
	}
	slices.Sort(got)
	slices.Sort(all)
	if !slices.Equal(got, all) || pages != 3 {
		t.Errorf("%d pages with %v", pages, got)
	}
	res, err := directory.ListUsers(ctx, &identityv1.ListUsersRequest{PageSize: 3})
	must(t, err)
	_, err = directory.ListGroups(ctx, &identityv1.ListGroupsRequest{PageToken: res.GetNextPageToken()})
	want(t, "a token of another list", err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	_, err = directory.ListUsers(ctx, &identityv1.ListUsersRequest{PageToken: "x" + res.GetNextPageToken()[1:]})
	want(t, "a changed token", err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	_, err = directory.ListUsers(ctx, &identityv1.ListUsersRequest{PageSize: -1})
	want(t, "a size below zero", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
}

func TestDisablingAUserEndsWhatHeHas(t *testing.T) { // A3
	l := newLab(t)
	ctx, directory := l.asAdmin()
	alice := l.addUser("alice")
	token := l.signIn("alice", "password of alice").GetAccessToken()
	exchanged, err := l.exchange("compute", token, "workspace")
	must(t, err)

	got, err := directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: alice.GetName(), Disabled: true})
	must(t, err)
	if !got.GetDisabled() || got.GetEtag() == alice.GetEtag() {
		t.Errorf("disabled: %v", got)
	}
	_, err = l.whoAmI(token)
	want(t, "his token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.s.verifier.Verify(t.Context(), exchanged, "spiffe://redoubt.test/service/workspace")
	want(t, "a service's token for him", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.try("alice", "password of alice", "")
	want(t, "sign-in", err, codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED)
	_, err = l.actAs("compute", alice.GetUid(), "workspace")
	want(t, "acting for him", err, codes.FailedPrecondition, faultv1.Reason_ACCOUNT_DISABLED)

	// Enabled again in the same second, he gets a token that works.
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: alice.GetName()})
	must(t, err)
	if _, err := l.whoAmI(l.signIn("alice", "password of alice").GetAccessToken()); err != nil {
		t.Errorf("a new token: %v", err)
	}
	_, err = l.whoAmI(token)
	want(t, "the old token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)

	// Disabled once more in that second, also the token dies that is dated in the next one, and for good; and one after that works.
	for range 3 {
		second := l.signIn("alice", "password of alice").GetAccessToken()
		_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: alice.GetName(), Disabled: true})
		must(t, err)
		_, err = l.whoAmI(second)
		want(t, "a token of the second in which he was disabled before", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
		_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: alice.GetName()})
		must(t, err)
		_, err = l.whoAmI(second)
		want(t, "the same, when he is enabled", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	}
	if _, err := l.whoAmI(l.signIn("alice", "password of alice").GetAccessToken()); err != nil {
		t.Errorf("a new token: %v", err)
	}

	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/admin", Disabled: true})
	want(t, "oneself", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	if _, err := directory.GetUser(ctx, &identityv1.GetUserRequest{Name: "users/admin"}); err != nil {
		t.Errorf("after the refusal: %v", err)
	}
}

func TestSettingAPasswordEndsSessions(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	alice := l.addUser("alice")
	token := l.signIn("alice", "password of alice").GetAccessToken()
	agent := l.enrolledAgent(alice.GetUid(), "run_1")
	_, err := directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: alice.GetName(), NewPassword: "1234"})
	want(t, "a short one", err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: alice.GetName(), NewPassword: "another password"})
	must(t, err)
	_, err = l.whoAmI(token)
	want(t, "the session", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	_, err = l.try("alice", "password of alice", "")
	want(t, "the old password", err, codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	l.signIn("alice", "another password")
	if _, err := l.renew(agent); err != nil {
		t.Errorf("his run was ended too: %v", err)
	}
}

func TestServicePrincipals(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	sp, err := directory.CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "robot", DisplayName: "The robot"})
	must(t, err)
	list, err := directory.ListServicePrincipals(ctx, &identityv1.ListServicePrincipalsRequest{})
	must(t, err)
	if len(list.GetServicePrincipals()) != 1 || list.GetServicePrincipals()[0].GetUid() != sp.GetUid() || sp.GetName() != "servicePrincipals/robot" {
		t.Errorf("listed %v", list)
	}
	add := func(end *timestamppb.Timestamp) (*identityv1.ServicePrincipalSecret, error) {
		return directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName(), ExpireTime: end})
	}
	for name, end := range map[string]time.Duration{"past": -time.Second, "now": 0, "three years": 3 * 366 * 24 * time.Hour} {
		_, err := add(timestamppb.New(l.now().Add(end)))
		want(t, name, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	}
	seen := make(map[string]bool)
	for range maxClientSecrets {
		s, err := add(nil)
		must(t, err)
		if !strings.HasPrefix(s.GetSecret(), "rdt_") || len(s.GetSecret()) < 40 || seen[s.GetSecret()] || s.GetClientId() != sp.GetUid() ||
			s.GetExpireTime().AsTime().Sub(l.now()) != clientSecretLife {
			t.Errorf("a secret like %s…", s.GetSecret()[:8])
		}
		seen[s.GetSecret()] = true
	}
	_, err = add(nil)
	want(t, "an eleventh secret", err, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)
	for _, ev := range l.events() {
		for secret := range seen {
			if strings.Contains(ev.String(), secret) {
				t.Error("a secret is recorded")
			}
		}
	}
	_, err = directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: "servicePrincipals/other"})
	want(t, "of nobody", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
}

func TestGroups(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	alice := l.addUser("alice")
	groups := make(map[string]string)
	for _, id := range []string{"outer", "inner"} {
		g, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: id})
		must(t, err)
		groups[id] = g.GetUid()
	}
	add := func(group, member string) (*identityv1.Group, error) {
		return directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: "groups/" + group, Member: member})
	}
	for range 2 {
		g, err := add("inner", alice.GetUid())
		must(t, err)
		if !slices.Equal(g.GetMembers(), []string{alice.GetUid()}) {
			t.Errorf("inner has %v", g.GetMembers())
		}
	}
	_, err := add("outer", groups["inner"])
	must(t, err)
	for name, c := range map[string]struct {
		group, member string
		code          codes.Code
	}{
		"itself":        {"inner", groups["inner"], codes.FailedPrecondition},
		"a circle":      {"inner", groups["outer"], codes.FailedPrecondition},
		"nobody":        {"inner", "usr_none", codes.NotFound},
		"a name":        {"inner", "users/alice", codes.NotFound},
		"unknown group": {"other", alice.GetUid(), codes.NotFound},
	} {
		if _, err := add(c.group, c.member); codeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	list, err := directory.ListGroups(ctx, &identityv1.ListGroupsRequest{})
	must(t, err)
	if len(list.GetGroups()) != 2 {
		t.Errorf("listed %v", list)
	}
	for range 2 {
		g, err := directory.RemoveGroupMember(ctx, &identityv1.RemoveGroupMemberRequest{Name: "groups/inner", Member: alice.GetUid()})
		must(t, err)
		if len(g.GetMembers()) != 0 {
			t.Errorf("inner still has %v", g.GetMembers())
		}
	}
}

func TestManagedIdentities(t *testing.T) { // B4
	l := newLab(t)
	client := identityv1.NewPrincipalServiceClient(l.service("workspace"))
	create := func(ws string) *identityv1.ManagedIdentity {
		t.Helper()
		m, err := client.CreateManagedIdentity(t.Context(), &identityv1.CreateManagedIdentityRequest{WorkspaceUid: ws, DisplayName: "of " + ws})
		must(t, err)
		return m
	}
	first := create("ws_1")
	if again := create("ws_1"); again.GetUid() != first.GetUid() || first.GetName() != "managedIdentities/"+first.GetUid() {
		t.Errorf("made %v, then %v", first, again)
	}
	if other := create("ws_2"); other.GetUid() == first.GetUid() {
		t.Error("two workspaces share one")
	}
	resolve := func() int {
		t.Helper()
		res, err := client.ResolvePrincipals(t.Context(), &identityv1.ResolvePrincipalsRequest{
			Uids: []string{first.GetUid(), l.admin, "usr_none"}, Names: []string{"users/admin", "users/none", "not a name", first.GetName()},
		})
		must(t, err)
		return len(res.GetPrincipals())
	}
	if n := resolve(); n != 2 {
		t.Errorf("%d resolved", n)
	}
	before, err := l.actAs("compute", first.GetUid(), "workspace")
	must(t, err)
	for range 2 {
		_, err := client.DeleteManagedIdentity(t.Context(), &identityv1.DeleteManagedIdentityRequest{WorkspaceUid: "ws_1"})
		must(t, err)
	}
	if n := resolve(); n != 1 {
		t.Errorf("%d resolved after the removal", n)
	}
	_, err = l.s.verifier.Verify(t.Context(), before, "spiffe://redoubt.test/service/workspace")
	want(t, "its token", err, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
	if again := create("ws_1"); again.GetUid() == first.GetUid() {
		t.Error("one made again has the old uid")
	}
	_, err = identityv1.NewPrincipalServiceClient(l.service("compute")).CreateManagedIdentity(t.Context(), &identityv1.CreateManagedIdentityRequest{WorkspaceUid: "ws_9"})
	want(t, "by compute", err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
}

// exchange asks for a token as a service.
func (l *lab) exchange(service, subject, audience string) (string, error) {
	res, err := identityv1.NewTokenServiceClient(l.service(service)).ExchangeToken(l.t.Context(), &identityv1.ExchangeTokenRequest{SubjectToken: subject, Audience: audience})
	return res.GetAccessToken(), err
}

func (l *lab) actAs(service, principal, audience string) (string, error) {
	res, err := identityv1.NewTokenServiceClient(l.service(service)).ActAs(l.t.Context(), &identityv1.ActAsRequest{
		Principal: principal, Audience: audience, RunUid: "run_1", WorkspaceUid: "ws_1",
	})
	return res.GetAccessToken(), err
}
