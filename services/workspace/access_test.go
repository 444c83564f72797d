package workspace

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

func parse(s string) (resource.Name, error) { return resource.Parse(s) }

// B2: roles are given and taken by uid, at any scope, and hold at once and downward.
func TestAssignments(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	get := func(who string) error {
		_, err := l.resources.GetWorkspace(l.as(who), &workspacev1.GetWorkspaceRequest{Name: w.GetName()})
		return err
	}
	for _, scope := range []string{"/", "subscriptions/default", group1, w.GetName()} {
		l.want(get(ada), codes.NotFound, 0)
		a := l.grant(scope, authz.Reader, "users/ada")
		if a.GetPrincipal() != ada || a.GetPrincipalName() != "users/ada" || a.GetScope() != scope || a.GetCreatedBy() != admin {
			t.Errorf("%v", a)
		}
		l.ok(get(ada))
		_, err := l.access.CreateRoleAssignment(l.as(admin), &workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: authz.Reader, Principal: ada})
		l.want(err, codes.AlreadyExists, 0)
		// B1: a Reader gives nothing.
		_, err = l.access.CreateRoleAssignment(l.as(ada), &workspacev1.CreateRoleAssignmentRequest{Scope: scope, Role: authz.Owner, Principal: ada})
		l.want(err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
		// An assignment is taken away where it stands, and nowhere else.
		other := w.GetName()
		if scope == other {
			other = group1
		}
		_, err = l.access.DeleteRoleAssignment(l.as(admin), &workspacev1.DeleteRoleAssignmentRequest{Scope: other, Uid: a.GetUid()})
		l.want(err, codes.NotFound, 0)
		inherited, err := l.access.ListRoleAssignments(l.as(admin), &workspacev1.ListRoleAssignmentsRequest{Scope: w.GetName(), Inherited: true})
		l.ok(err)
		found := false
		for _, x := range inherited.GetRoleAssignments() {
			found = found || x.GetUid() == a.GetUid() && x.GetScope() == scope && x.GetPrincipalName() == "users/ada"
		}
		if !found || len(inherited.GetRoleAssignments()) != 3 {
			t.Errorf("%v", inherited)
		}
		_, err = l.access.DeleteRoleAssignment(l.as(admin), &workspacev1.DeleteRoleAssignmentRequest{Scope: scope, Uid: a.GetUid()})
		l.ok(err)
	}
	l.want(get(ada), codes.NotFound, 0)
	for _, c := range []struct{ scope, role, principal string }{
		{"/", "roleDefinitions/god", ada},
		{"/", "owner", ada},
		{"/", authz.Reader, "users/nobody"},
		{"/", authz.Reader, resource.NewUID("usr")},
		{"/", authz.Reader, "ada"},
		{w.GetName() + "/runs/r1", authz.Reader, ada},
	} {
		_, err := l.access.CreateRoleAssignment(l.as(admin), &workspacev1.CreateRoleAssignmentRequest{Scope: c.scope, Role: c.role, Principal: c.principal})
		l.want(err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	}
	if evs := l.of("DeleteRoleAssignment"); len(evs) != 8 {
		t.Errorf("%d records", len(evs))
	}
}

// B2: somebody can always give access.
func TestLastOwnerStays(t *testing.T) {
	l := newLab(t)
	list, err := l.access.ListRoleAssignments(l.as(admin), &workspacev1.ListRoleAssignmentsRequest{Scope: "/"})
	l.ok(err)
	first := list.GetRoleAssignments()[0]
	l.grant("/", authz.Contributor, bob)
	_, err = l.access.DeleteRoleAssignment(l.as(admin), &workspacev1.DeleteRoleAssignmentRequest{Scope: "/", Uid: first.GetUid()})
	l.want(err, codes.FailedPrecondition, faultv1.Reason_AUTHZ_LAST_OWNER)
	l.grant("/", authz.Owner, ada)
	_, err = l.access.DeleteRoleAssignment(l.as(admin), &workspacev1.DeleteRoleAssignmentRequest{Scope: "/", Uid: first.GetUid()})
	l.ok(err)
	_, err = l.access.CreateRoleAssignment(l.as(admin), &workspacev1.CreateRoleAssignmentRequest{Scope: "/", Role: authz.Owner, Principal: admin})
	l.want(err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	// The first administrator is made once.
	l.ok(l.Bootstrap(t.Context(), bob))
	if n := l.count("SELECT COUNT(*) FROM assignments WHERE scope_uid = ''"); n != 2 {
		t.Errorf("%d assignments", n)
	}
	if n := l.count("SELECT COUNT(*) FROM scopes"); n != 2 {
		t.Errorf("%d scopes", n)
	}
}

// B2: the one whom identity keeps may lose the role between its word and the removal: then another's is not taken away, too.
func TestOwnersTakenAtTheSameMoment(t *testing.T) {
	l := newLab(t)
	list, err := l.access.ListRoleAssignments(l.as(admin), &workspacev1.ListRoleAssignmentsRequest{Scope: "/"})
	l.ok(err)
	first, second := list.GetRoleAssignments()[0], l.grant("/", authz.Owner, ada)
	l.grant("/", authz.Owner, bob) // who is no user that is enabled, as far as identity goes
	var other error
	calls := 0
	l.peers.mu.Lock()
	l.peers.before = func(method string) {
		if method != "KeepAdministrator" {
			return
		}
		if calls++; calls == 1 { // of the first removal: before it goes on, the second is made whole
			_, other = l.access.DeleteRoleAssignment(l.as(ada), &workspacev1.DeleteRoleAssignmentRequest{Scope: "/", Uid: second.GetUid()})
		}
	}
	l.peers.mu.Unlock()
	_, err = l.access.DeleteRoleAssignment(l.as(admin), &workspacev1.DeleteRoleAssignmentRequest{Scope: "/", Uid: first.GetUid()})
	l.ok(other)
	l.want(err, codes.Aborted, faultv1.Reason_CONFLICT)
	if calls != 2 {
		t.Errorf("identity was asked %d times", calls)
	}
	if n := l.count("SELECT COUNT(*) FROM assignments WHERE uid = '" + first.GetUid() + "'"); n != 1 {
		t.Error("the last administrator is gone")
	}
}

func TestExplain(t *testing.T) {
	l := newLab(t)
	w := l.make(admin, "w1")
	a := l.grant(group1, authz.Reader, ada)
	res, err := l.access.Explain(l.as(ada), &workspacev1.ExplainRequest{Scope: w.GetName(), Action: "workspace/workspaces/read"})
	l.ok(err)
	if !res.GetAllowed() || len(res.GetAssignments()) != 1 || res.GetAssignments()[0].GetUid() != a.GetUid() || res.GetAssignments()[0].GetScope() != group1 {
		t.Errorf("%v", res)
	}
	res, err = l.access.Explain(l.as(ada), &workspacev1.ExplainRequest{Scope: w.GetName(), Action: "compute/runs/submit"})
	l.ok(err)
	if res.GetAllowed() || len(res.GetAssignments()) != 0 || res.GetExplanation() == "" {
		t.Errorf("%v", res)
	}
	// Who may see nothing there learns nothing.
	for _, scope := range []string{w.GetName(), group1 + "/workspaces/none"} {
		_, err = l.access.Explain(l.as(bob), &workspacev1.ExplainRequest{Scope: scope, Action: "workspace/workspaces/read"})
		l.want(err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	}
	roles, err := l.access.ListRoleDefinitions(l.as(bob), &workspacev1.ListRoleDefinitionsRequest{})
	l.ok(err)
	if len(roles.GetRoleDefinitions()) != 4 {
		t.Errorf("%v", roles)
	}
}

// Lists show what the caller may see, a page at a time, and their tokens hold for one query of one caller.
func TestLists(t *testing.T) {
	l := newLab(t)
	_, err := l.resources.CreateSubscription(l.as(admin), &workspacev1.CreateSubscriptionRequest{SubscriptionId: "other", DisplayName: "Other", Region: "here"})
	l.ok(err)
	_, err = l.resources.CreateResourceGroup(l.as(admin), &workspacev1.CreateResourceGroupRequest{Parent: "subscriptions/other", ResourceGroupId: "g"})
	l.ok(err)
	for i := range 7 {
		w := l.make(admin, fmt.Sprintf("w%d", i))
		if i%2 == 0 {
			l.grant(w.GetName(), authz.Reader, ada)
		}
	}
	_, err = l.resources.CreateWorkspace(l.as(admin), &workspacev1.CreateWorkspaceRequest{Parent: "subscriptions/other/resourceGroups/g", WorkspaceId: "x"})
	l.ok(err)
	for _, c := range []struct {
		who, parent string
		size        int32
		want        int
	}{
		{admin, "", 0, 8}, {admin, "", 3, 8}, {admin, "subscriptions/default", 2, 7}, {admin, group1, 7, 7}, {admin, "subscriptions/other", 1, 1},
		{ada, "", 1, 4}, {ada, "", 2, 4}, {ada, "", 4, 4}, {ada, "subscriptions/default", 3, 4}, {ada, group1, 5000, 4}, {bob, "", 1, 0},
	} {
		seen, pages := map[string]bool{}, 0
		for token := ""; ; pages++ {
			res, err := l.resources.ListWorkspaces(l.as(c.who), &workspacev1.ListWorkspacesRequest{Parent: c.parent, PageSize: c.size, PageToken: token})
			l.ok(err)
			for _, w := range res.GetWorkspaces() {
				seen[w.GetName()] = true
			}
			if c.size > 0 && len(res.GetWorkspaces()) > int(c.size) {
				t.Errorf("%v: a page of %d", c, len(res.GetWorkspaces()))
			}
			if token = res.GetNextPageToken(); token == "" {
				break
			}
			if len(res.GetWorkspaces()) != int(c.size) {
				t.Errorf("%v: a page that is not full, and more after it", c)
			}
			_, err = l.resources.ListWorkspaces(l.as(bob), &workspacev1.ListWorkspacesRequest{Parent: c.parent, PageToken: token})
			if c.parent == "" {
				l.want(err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
			}
			_, err = l.resources.ListSubscriptions(l.as(c.who), &workspacev1.ListSubscriptionsRequest{PageToken: token})
			l.want(err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
		}
		if len(seen) != c.want {
			t.Errorf("%v: %v", c, seen)
		}
	}
	for _, parent := range []string{"subscriptions/other", "subscriptions/none", "subscriptions/other/resourceGroups/g"} {
		_, err = l.resources.ListWorkspaces(l.as(ada), &workspacev1.ListWorkspacesRequest{Parent: parent})
		l.want(err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	}
	_, err = l.resources.ListWorkspaces(l.as(admin), &workspacev1.ListWorkspacesRequest{Parent: group1 + "/workspaces/w1"})
	l.want(err, codes.InvalidArgument, 0)
	for _, c := range []struct {
		who  string
		want int
	}{{admin, 2}, {ada, 1}, {bob, 0}} {
		res, err := l.resources.ListSubscriptions(l.as(c.who), &workspacev1.ListSubscriptionsRequest{})
		l.ok(err)
		if len(res.GetSubscriptions()) != c.want {
			t.Errorf("%v", res)
		}
	}
	groups, err := l.resources.ListResourceGroups(l.as(admin), &workspacev1.ListResourceGroupsRequest{Parent: "subscriptions/other"})
	l.ok(err)
	if len(groups.GetResourceGroups()) != 1 || groups.GetResourceGroups()[0].GetName() != "subscriptions/other/resourceGroups/g" {
		t.Errorf("%v", groups)
	}
	_, err = l.resources.ListSubscriptions(l.as(admin), &workspacev1.ListSubscriptionsRequest{PageSize: -1})
	l.want(err, codes.InvalidArgument, 0)
	_, err = l.resources.ListSubscriptions(l.as(admin), &workspacev1.ListSubscriptionsRequest{PageToken: "garbage"})
	l.want(err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
}

// B2: a name of another kind than the method's is refused before anything is decided on it.
func TestKindOfScope(t *testing.T) {
	l := newLab(t)
	_, err := l.resources.GetWorkspace(l.as(admin), &workspacev1.GetWorkspaceRequest{Name: group1})
	l.want(err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = l.resources.DeleteSubscription(l.as(admin), &workspacev1.DeleteSubscriptionRequest{Name: group1})
	l.want(err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	_, err = l.snapshots.ListSnapshots(l.as(admin), &workspacev1.ListSnapshotsRequest{Parent: group1})
	l.want(err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
}
