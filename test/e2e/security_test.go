package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// give assigns a role as the administrator.
func give(t *testing.T, scope, role, principal string) *workspacev1.RoleAssignment {
	t.Helper()
	a, err := workspacev1.NewAccessServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateRoleAssignment(t.Context(),
		&workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: role, Principal: principal})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// B1, B2: no role leads to a higher one. Each caller tries every call that gives rights, for himself, at his scope and above it.
func TestNoWayUp(t *testing.T) {
	ws := workspaceOf(t, "no-way-up").GetName()
	group := "subscriptions/no-way-up/resourceGroups/group"
	robot, err := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateServicePrincipal(t.Context(),
		&identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "no-way-up"})
	if err != nil {
		t.Fatal(err)
	}
	team, err := identityv1.NewDirectoryServiceClient(mesh.Dial(t, mesh.Admin(t))).CreateGroup(t.Context(), &identityv1.CreateGroupRequest{GroupId: "no-way-up"})
	if err != nil {
		t.Fatal(err)
	}
	give(t, "/", authz.Reader, robot.GetUid())
	give(t, "/", authz.Reader, team.GetUid())
	tried, honoured := 0, 0
	for _, c := range []struct {
		user, scope, role string
		closed            []string // where he must not give roles
	}{
		{"way-stranger", "", "", []string{ws, group, "subscriptions/no-way-up", "/"}},
		{"way-reader", ws, authz.Reader, []string{ws, group, "subscriptions/no-way-up", "/"}},
		{"way-contributor", ws, authz.Contributor, []string{ws, group, "subscriptions/no-way-up", "/"}},
		{"way-owner", ws, authz.Owner, []string{group, "subscriptions/no-way-up", "/"}},
		{"way-group-owner", group, authz.Owner, []string{"subscriptions/no-way-up", "/"}},
		{"way-root-contributor", "/", authz.Contributor, []string{ws, group, "subscriptions/no-way-up", "/"}},
	} {
		t.Run(c.user, func(t *testing.T) {
			uid, token := mesh.User(t, c.user)
			if c.scope != "" {
				give(t, c.scope, c.role, uid)
			}
			conn := mesh.Dial(t, token)
			access, directory := workspacev1.NewAccessServiceClient(conn), identityv1.NewDirectoryServiceClient(conn)
			calls := map[string]func(context.Context) error{
				"create user": func(ctx context.Context) error {
					_, err := directory.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: c.user + "-x", Password: "a long password"})
					return err
				},
				"set password": func(ctx context.Context) error {
					_, err := directory.SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: mesh.Installation.Admin, NewPassword: "a long password"})
					return err
				},
				"disable": func(ctx context.Context) error {
					_, err := directory.SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: mesh.Installation.Admin, Disabled: true})
					return err
				},
				"join group": func(ctx context.Context) error {
					_, err := directory.AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: team.GetName(), Member: uid})
					return err
				},
				"client secret": func(ctx context.Context) error {
					_, err := directory.AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: robot.GetName()})
					return err
				},
			}
			for _, scope := range c.closed {
				calls["become Owner at "+scope] = func(ctx context.Context) error {
					_, err := access.CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: authz.Owner, Principal: uid})
					return err
				}
			}
			for name, call := range calls {
				tried++
				if err := call(t.Context()); fault.Code(fault.FromStatus(err)) != codes.PermissionDenied && fault.Code(fault.FromStatus(err)) != codes.NotFound {
					honoured++
					t.Errorf("%s: %v", name, err)
				}
			}
			if c.scope == ws && c.role == authz.Owner { // the test can tell: where he may, it works
				if _, err := access.CreateRoleAssignment(t.Context(), &workspacev1.CreateRoleAssignmentRequest{Scope: ws, Role: authz.Reader, Principal: uid}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	fmt.Printf("attack: %s: tried %d, honoured %d\n", t.Name(), tried, honoured)
}

// B2: whoever may see nothing of a workspace cannot tell it from one that does not exist, by any method that takes its name.
func TestHiddenIsAbsent(t *testing.T) {
	there := workspaceOf(t, "hidden").GetName()
	absent := strings.Replace(there, "/lab", "/nil", 1)
	_, token := mesh.User(t, "hidden-stranger")
	conn := mesh.Dial(t, token)
	for name, call := range map[string]func(ctx context.Context, ws string, c *grpc.ClientConn) error{
		"GetWorkspace": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewResourceServiceClient(c).GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: ws})
			return err
		},
		"DeleteWorkspace": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewResourceServiceClient(c).DeleteWorkspace(ctx, &workspacev1.DeleteWorkspaceRequest{Name: ws})
			return err
		},
		"ListRoleAssignments": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewAccessServiceClient(c).ListRoleAssignments(ctx, &workspacev1.ListRoleAssignmentsRequest{Scope: ws, Inherited: true})
			return err
		},
		"CreateRoleAssignment": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewAccessServiceClient(c).CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: ws, Role: authz.Reader, Principal: "users/nobody"})
			return err
		},
		"DeleteRoleAssignment": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewAccessServiceClient(c).DeleteRoleAssignment(ctx, &workspacev1.DeleteRoleAssignmentRequest{Scope: ws, Uid: "ra_aaaaaaaaaaaaaaaaaaaaaaaaaa"})
			return err
		},
		"Explain": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewAccessServiceClient(c).Explain(ctx, &workspacev1.ExplainRequest{Scope: ws, Action: "workspace/workspaces/read"})
			return err
		},
		"Explain of a run": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewAccessServiceClient(c).Explain(ctx, &workspacev1.ExplainRequest{Scope: ws + "/runs/r1", Action: "compute/runs/read"})
			return err
		},
		"ListWorkspaces": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := workspacev1.NewResourceServiceClient(c).ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: ws[:strings.LastIndex(ws, "/workspaces/")]})
			return err
		},
		"ListRuns": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := computev1.NewRunServiceClient(c).ListRuns(ctx, &computev1.ListRunsRequest{Parent: ws})
			return err
		},
		"AccessSecret": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := keyvaultv1.NewSecretServiceClient(c).AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: ws + "/secrets/s"})
			return err
		},
		"ListActivity": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := telemetryv1.NewActivityServiceClient(c).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: ws})
			return err
		},
		"SubmitRun": func(ctx context.Context, ws string, c *grpc.ClientConn) error {
			_, err := computev1.NewRunServiceClient(c).SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: ws, Compute: ws + "/computes/c", Snapshot: ws + "/snapshots/s", Command: []string{"x"}})
			return err
		},
	} {
		a, b := fault.FromStatus(call(t.Context(), there, conn)), fault.FromStatus(call(t.Context(), absent, conn))
		text := func(err error) string { return strings.ReplaceAll(fault.Describe(err).Message(), "/nil", "/lab") }
		if !fault.Is(a, codes.NotFound) || fault.Code(a) != fault.Code(b) || fault.ReasonOf(a) != fault.ReasonOf(b) || text(a) != text(b) {
			t.Errorf("%s: %v, and of what is not there: %v", name, a, b)
		}
	}
}
