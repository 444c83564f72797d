package identity

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// owners tells identity's engine who has the role Owner at the installation, in place of what it knew.
func (l *lab) owners(uids ...string) {
	l.t.Helper()
	m := &workspacev1.WatchAuthorizationResponse{Seq: 1, Reset_: true, Complete: true, Roles: authz.BuiltinRoles()}
	for _, uid := range uids {
		m.Assignments = append(m.Assignments, &workspacev1.AssignmentRecord{Uid: "ra_" + uid, Role: authz.Owner, PrincipalUid: uid})
	}
	must(l.t, l.cfg.Engine.ApplyAuthorization(m))
}

func TestTheLastAdministratorStays(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	bob := l.addUser("bob")
	staff, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: "staff"})
	must(t, err)
	outer, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: "outer"})
	must(t, err)
	_, err = directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: "groups/outer", Member: staff.GetUid()})
	must(t, err)
	_, err = directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: "groups/staff", Member: bob.GetUid()})
	must(t, err)
	// Whoever asks is an Owner himself until he has a token: then bob is, through two groups, and nobody else.
	l.owners(l.admin, outer.GetUid())
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/bob", Disabled: true})
	must(t, err)
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/bob"})
	must(t, err)

	robot, err := directory.CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "robot"})
	must(t, err)
	secret, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: robot.GetName()})
	must(t, err)
	l.owners(robot.GetUid(), outer.GetUid()) // a program is no administrator
	token, err := identityv1.NewTokenServiceClient(l.gateway()).IssueToken(t.Context(), &identityv1.IssueTokenRequest{
		GrantType: "client_credentials", ClientId: robot.GetUid(), ClientSecret: secret.GetSecret(),
	})
	must(t, err)
	ctx = bearer(t.Context(), token.GetAccessToken())
	last := func(name string, err error) {
		t.Helper()
		want(t, name, err, codes.FailedPrecondition, faultv1.Reason_AUTHZ_LAST_OWNER)
	}
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/bob", Disabled: true})
	last("disable", err)
	_, err = directory.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: "users/bob"})
	last("delete", err)
	_, err = directory.RemoveGroupMember(ctx, &identityv1.RemoveGroupMemberRequest{Name: "groups/staff", Member: bob.GetUid()})
	last("take him out of the inner group", err)
	_, err = directory.RemoveGroupMember(ctx, &identityv1.RemoveGroupMemberRequest{Name: "groups/outer", Member: staff.GetUid()})
	last("take the inner out of the outer group", err)
	_, err = directory.DeleteGroup(ctx, &identityv1.DeleteGroupRequest{Name: "groups/staff"})
	last("delete the inner group", err)
	_, err = directory.DeleteGroup(ctx, &identityv1.DeleteGroupRequest{Name: "groups/outer"})
	last("delete the outer group", err)
	if u, err := directory.GetUser(ctx, &identityv1.GetUserRequest{Name: "users/bob"}); err != nil || u.GetDisabled() {
		t.Errorf("after the refusals: %v %v", u, err)
	}
	if g, err := directory.GetGroup(ctx, &identityv1.GetGroupRequest{Name: "groups/staff"}); err != nil || len(g.GetMembers()) != 1 {
		t.Errorf("after the refusals: %v %v", g, err)
	}
	// Somebody else can go.
	l.addUserAs(ctx, "carol")
	_, err = directory.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: "users/carol"})
	must(t, err)
}

// addUserAs makes a user with whoever's token ctx has.
func (l *lab) addUserAs(ctx context.Context, id string) *identityv1.User {
	l.t.Helper()
	u, err := identityv1.NewDirectoryServiceClient(l.gateway()).CreateUser(ctx, &identityv1.CreateUserRequest{UserId: id, Password: "password of " + id})
	must(l.t, err)
	return u
}

func TestAKeptAdministratorStaysForAMinute(t *testing.T) { // A1
	l := newLab(t)
	ctx, directory := l.asAdmin()
	bob := l.addUser("bob")
	staff, err := directory.CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: "staff"})
	must(t, err)
	_, err = directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: "groups/staff", Member: bob.GetUid()})
	must(t, err)
	keep := identityv1.NewPrincipalServiceClient(l.service("workspace"))
	// Identity has not heard of bob's role yet.
	got, err := keep.KeepAdministrator(t.Context(), &identityv1.KeepAdministratorRequest{PrincipalUids: []string{"usr_gone", staff.GetUid()}})
	must(t, err)
	if got.GetPrincipalUid() != staff.GetUid() || got.GetUserUid() != bob.GetUid() {
		t.Errorf("kept %v", got)
	}
	kept := func(name string, err error) {
		t.Helper()
		want(t, name, err, codes.Aborted, faultv1.Reason_CONFLICT)
	}
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/bob", Disabled: true})
	kept("disable", err)
	_, err = directory.DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: "users/bob"})
	kept("delete", err)
	_, err = directory.RemoveGroupMember(ctx, &identityv1.RemoveGroupMemberRequest{Name: "groups/staff", Member: bob.GetUid()})
	kept("remove from the group", err)
	_, err = directory.DeleteGroup(ctx, &identityv1.DeleteGroupRequest{Name: "groups/staff"})
	kept("delete the group", err)
	l.advance(keptFor)
	ctx, _ = l.asAdmin()
	_, err = directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: "users/bob", Disabled: true})
	must(t, err)
	_, err = keep.KeepAdministrator(t.Context(), &identityv1.KeepAdministratorRequest{PrincipalUids: []string{"usr_gone", staff.GetUid()}})
	want(t, "nobody who is enabled", err, codes.FailedPrecondition, faultv1.Reason_AUTHZ_LAST_OWNER)
	_, err = identityv1.NewPrincipalServiceClient(l.service("compute")).KeepAdministrator(t.Context(), &identityv1.KeepAdministratorRequest{PrincipalUids: []string{l.admin}})
	want(t, "by compute", err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
}

// Two administrators who disable each other at the same moment: one of them does.
func TestAdministratorsAtTheSameMoment(t *testing.T) { // A1
	l := newLab(t)
	_, directory := l.asAdmin()
	bob := l.addUser("bob")
	l.owners(l.admin, bob.GetUid())
	mine, his := bearer(t.Context(), l.signIn("admin", adminPassword).GetAccessToken()), bearer(t.Context(), l.signIn("bob", "password of bob").GetAccessToken())
	var wait sync.WaitGroup
	var errs [2]error
	wait.Go(func() {
		_, errs[0] = directory.SetUserDisabled(mine, &identityv1.SetUserDisabledRequest{Name: "users/bob", Disabled: true})
	})
	wait.Go(func() {
		_, errs[1] = directory.SetUserDisabled(his, &identityv1.SetUserDisabledRequest{Name: "users/admin", Disabled: true})
	})
	wait.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Errorf("%v and %v", errs[0], errs[1])
	}
}
