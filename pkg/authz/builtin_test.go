package authz

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	_ "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	_ "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	rulev1 "github.com/redoubt-ml/redoubt/gen/redoubt/rule/v1"
	_ "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/rule"
)

// TestTwelveOperations is B1: twelve rows, three roles, each assigned at the workspace's group, through the engine. Some of the
// actions belong to methods that are still to come.
func TestTwelveOperations(t *testing.T) {
	type need struct {
		action string
		data   bool
	}
	rows := []struct {
		operation                  string
		needs                      []need
		scope                      string
		owner, contributor, reader bool
	}{
		{"create workspace", []need{{"workspace/workspaces/write", false}}, grp1, true, true, false},
		{"share workspace", []need{{"authorization/roleAssignments/write", false}, {"authorization/roleAssignments/delete", false}}, ws1, true, false, false},
		{"create compute target", []need{{"compute/computes/write", false}}, ws1, true, true, false},
		{"attach compute target", []need{{"compute/computes/attach", false}, {"compute/computes/use", false}}, ws1, true, true, false},
		{"attach datastore", []need{{"workspace/datastores/write", false}}, ws1, true, true, false},
		{"run experiment", []need{{"compute/runs/submit", false}, {"compute/computes/use", false}, {"workspace/snapshots/read", false}, {"workspace/snapshots/write", false}, {"telemetry/metrics/write", true}}, ws1, true, true, false},
		{"view runs/metrics", []need{{"compute/runs/read", false}, {"telemetry/metrics/read", false}, {"compute/runs/logs/read", false}}, ws1, true, true, true},
		{"register model", []need{{"inference/models/write", false}}, ws1, true, true, false},
		{"create image", []need{{"compute/environments/build", false}}, ws1, true, true, false},
		{"deploy web service", []need{{"inference/endpoints/write", false}, {"inference/endpoints/deployments/write", false}, {"inference/models/content/read", false}}, ws1, true, true, false},
		{"view models/images", []need{{"inference/models/read", false}, {"compute/environments/read", false}}, ws1, true, true, true},
		{"call web service", []need{{"inference/endpoints/score", true}}, ws1, true, true, true},
	}
	f := engine(t, assigned("asg_o", grp1, Owner, "usr_owner"), assigned("asg_c", grp1, Contributor, "usr_contributor"), assigned("asg_r", grp1, Reader, "usr_reader"))
	cells := 0
	for _, r := range rows {
		for who, want := range map[string]bool{"usr_owner": r.owner, "usr_contributor": r.contributor, "usr_reader": r.reader} {
			cells++
			all := true
			for _, n := range r.needs {
				all = all && f.Decide(Query{Principal: who, Action: n.action, Data: n.data, Scope: f.scope(r.scope)}).Allowed
			}
			if all != want {
				t.Errorf("%s by %s: %v, want %v", r.operation, who, all, want)
			}
		}
	}
	if cells != 36 {
		t.Errorf("%d cells", cells)
	}
}

// permissions are those of every method of ours and of the overlay.
func permissions(t *testing.T) []rule.Permission {
	t.Helper()
	tab, err := rule.Load(rule.Registered("redoubt")...)
	if err != nil {
		t.Fatal(err)
	}
	rows := tab.Permissions()
	if len(rows) < 60 {
		t.Fatalf("only %d methods", len(rows))
	}
	return rows
}

// TestRolesAreALadder: whatever a method asks for, Reader's rights are Contributor's, and Contributor's are Owner's; and what
// gives power over others is Owner's alone, now and when methods are added.
func TestRolesAreALadder(t *testing.T) {
	roles := BuiltinRoles()
	owner, contributor, reader := roles[0], roles[1], roles[2]
	type need struct {
		action string
		data   bool
	}
	needs := []need{
		{"authorization/locks/write", false}, {"authorization/roleDefinitions/delete", false}, {"authorization/policies/assign", false},
		{"identity/tokens/revoke", false}, {"identity/anything/new", false}, {"identity/identities/assume", true}, {"authorization/anything/new", true},
	}
	for _, p := range permissions(t) {
		if p.Action != "" {
			needs = append(needs, need{p.Action, p.Data})
		}
		for _, u := range p.Uses {
			needs = append(needs, need{u.Action, u.Data})
		}
	}
	ownerOnly, scores := 0, 0
	for _, n := range needs {
		o, c, r := RoleAllows(owner, n.action, n.data), RoleAllows(contributor, n.action, n.data), RoleAllows(reader, n.action, n.data)
		if !o || r && !c {
			t.Errorf("%+v: owner %v, contributor %v, reader %v", n, o, c, r)
		}
		power := strings.HasPrefix(n.action, "authorization/") || strings.HasPrefix(n.action, "identity/")
		reads := strings.HasSuffix(n.action, "/read")
		switch {
		case power && !reads && c:
			t.Errorf("a contributor has %+v", n)
		case power && !reads:
			ownerOnly++
		}
		// B1: a Reader calls endpoints, and has no other action that is no read, nor any other one on data.
		calls := n == need{"inference/endpoints/score", true}
		if want := reads && !n.data || calls; r != want {
			t.Errorf("a reader and %+v: %v", n, r)
		}
		if calls {
			scores++
		}
	}
	if scores != 1 {
		t.Errorf("%d methods score", scores)
	}
	if ownerOnly < 12 {
		t.Errorf("only %d actions were found that are the owner's alone", ownerOnly)
	}
	var hosts []string
	for _, n := range needs {
		if RoleAllows(roles[3], n.action, n.data) && !slices.Contains(hosts, n.action) {
			hosts = append(hosts, n.action)
		}
	}
	slices.Sort(hosts)
	if want := []string{"compute/computes/claim", "compute/computes/read"}; !slices.Equal(hosts, want) {
		t.Errorf("a host of agents has %q, wanted %q", hosts, want)
	}
	for _, n := range []need{{"compute/runs/execute", true}, {"telemetry/channelz/inspect", false}} {
		if RoleAllows(contributor, n.action, n.data) {
			t.Errorf("a contributor has %+v", n)
		}
	}
}

// notSecret are the methods whose answers are marked sensitive, so that they stand in no log, and are no secret of the platform's:
// what a model answers to the caller's own data.
var notSecret = []string{"/redoubt.inference.v1.ScoringService/Score"}

// TestNoSecretUnderRead: no method whose answer holds a field that is marked sensitive can be called by a Reader, but those by name.
func TestNoSecretUnderRead(t *testing.T) {
	reader := BuiltinRoles()[2]
	found := 0
	for _, p := range permissions(t) {
		name := protoreflect.FullName(strings.ReplaceAll(p.Method[1:], "/", "."))
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if !secret(d.(protoreflect.MethodDescriptor).Output(), nil) || p.Action == "" {
			continue
		}
		found++
		if slices.Contains(notSecret, p.Method) {
			if strings.HasSuffix(p.Action, "/read") || !p.Data {
				t.Errorf("%s is excepted as a call with data, and is none", p.Method)
			}
			continue
		}
		if RoleAllows(reader, p.Action, p.Data) || strings.HasSuffix(p.Action, "/read") {
			t.Errorf("%s shows secrets to readers", p.Method)
		}
	}
	if found < 2 {
		t.Errorf("only %d methods were found that answer with secrets", found)
	}
}

func secret(md protoreflect.MessageDescriptor, above []protoreflect.FullName) bool {
	if slices.Contains(above, md.FullName()) {
		return false
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if s, _ := proto.GetExtension(fd.Options(), rulev1.E_Sensitive).(bool); s || fd.Message() != nil && secret(fd.Message(), append(above, md.FullName())) {
			return true
		}
	}
	return false
}

func TestBuiltinRolesCannotBeSpoilt(t *testing.T) {
	a := BuiltinRoles()
	a[2].Actions[0] = "*"
	if RoleAllows(BuiltinRoles()[2], "compute/runs/submit", false) {
		t.Error("one caller's change is another's role")
	}
	for _, r := range BuiltinRoles() {
		if !r.GetBuiltIn() || r.GetDescription() == "" || len(compile(r).actions) == 0 {
			t.Errorf("%v", r)
		}
	}
}
