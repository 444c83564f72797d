package authz

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// Tokens are checked against the engine's revocations.
var _ authn.Revocations = Revocations{}

// The tree of most tests: two workspaces in one group, one in another, and a twin of all in a second subscription.
const (
	sub1, sub2 = "subscriptions/s1", "subscriptions/s2"
	grp1, grp2 = sub1 + "/resourceGroups/g1", sub1 + "/resourceGroups/g2"
	grp3       = sub2 + "/resourceGroups/g1"
	ws1, ws2   = grp1 + "/workspaces/w1", grp1 + "/workspaces/w2"
	ws3, ws4   = grp2 + "/workspaces/w1", grp3 + "/workspaces/w1"
)

var uids = map[string]string{"/": "", sub1: "sub_1", sub2: "sub_2", grp1: "rgp_1", grp2: "rgp_2", grp3: "rgp_3", ws1: "ws_1", ws2: "ws_2", ws3: "ws_3", ws4: "ws_4"}

func parsed(t testing.TB, s string) resource.Name {
	t.Helper()
	n, err := resource.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func record(name string, active bool) *workspacev1.ScopeRecord {
	n, err := resource.Parse(name)
	if err != nil {
		panic(err)
	}
	return &workspacev1.ScopeRecord{Uid: uids[name], Name: name, ParentUid: uids[n.Parent().String()], Active: active}
}

func wholeTree() []*workspacev1.ScopeRecord {
	var all []*workspacev1.ScopeRecord
	for _, name := range []string{ws4, ws3, ws2, ws1, grp3, grp2, grp1, sub2, sub1} { // the order does not matter in a full state
		all = append(all, record(name, true))
	}
	return all
}

func assigned(uid, scope, role, principal string) *workspacev1.AssignmentRecord {
	return &workspacev1.AssignmentRecord{Uid: uid, ScopeUid: uids[scope], Role: role, PrincipalUid: principal}
}

// clock is a time that tests set.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

// feed has an engine and counts its messages.
type feed struct {
	*Engine
	t        testing.TB
	clock    *clock
	auth, id uint64
}

// engine makes one with the tree, the built-in roles and the assignments.
func engine(t testing.TB, assignments ...*workspacev1.AssignmentRecord) *feed {
	t.Helper()
	c := &clock{time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	f := &feed{Engine: New(Config{Now: c.now}), t: t, clock: c, auth: 100, id: 7}
	f.must(f.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: f.auth, Reset_: true, Complete: true, Scopes: wholeTree(), Roles: BuiltinRoles(), Assignments: assignments}))
	f.must(f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: f.id, Reset_: true, Complete: true}))
	return f
}

func (f *feed) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// change applies one delta of authorization.
func (f *feed) change(m *workspacev1.WatchAuthorizationResponse) {
	f.t.Helper()
	f.auth++
	m.Seq = f.auth
	f.must(f.ApplyAuthorization(m))
}

func (f *feed) secure(m *identityv1.WatchSecurityResponse) {
	f.t.Helper()
	f.id++
	m.Seq = f.id
	f.must(f.ApplySecurity(m))
}

func (f *feed) members(group string, members ...string) {
	f.t.Helper()
	f.secure(&identityv1.WatchSecurityResponse{Groups: []*identityv1.GroupMembers{{GroupUid: group, MemberUids: members}}})
}

func (f *feed) scope(name string) Scope {
	f.t.Helper()
	s, ok := f.Resolve(parsed(f.t, name))
	if !ok {
		f.t.Fatalf("%s is not known", name)
	}
	return s
}

func (f *feed) ask(principal, action, scope string) Decision {
	f.t.Helper()
	return f.Decide(Query{Principal: principal, Action: action, Scope: f.scope(scope)})
}

func TestInheritance(t *testing.T) {
	f := engine(t,
		assigned("asg_root", "/", Reader, "usr_root"),
		assigned("asg_sub", sub1, Contributor, "usr_sub"),
		assigned("asg_grp", grp1, Contributor, "usr_grp"),
		assigned("asg_ws", ws1, Contributor, "usr_ws"),
	)
	const read, write = "compute/runs/read", "compute/runs/submit"
	cases := []struct {
		who, action, scope, want string // the assignment that allows, or ""
		mayKnow                  bool
	}{
		{"usr_root", read, ws1, "asg_root", true},
		{"usr_root", read, ws4 + "/runs/r1", "asg_root", true},
		{"usr_root", read, "/", "asg_root", true},
		{"usr_root", write, ws1, "", true},
		{"usr_sub", write, ws1, "asg_sub", true},
		{"usr_sub", write, ws3 + "/computes/c", "asg_sub", true},
		{"usr_sub", write, sub1, "asg_sub", true},
		{"usr_sub", write, "/", "", true}, // that the installation is there is no secret
		{"usr_sub", write, sub2, "", false},
		{"usr_sub", write, ws4, "", false},
		{"usr_grp", write, ws1, "asg_grp", true},
		{"usr_grp", write, ws2, "asg_grp", true},
		{"usr_grp", write, ws3, "", false},
		{"usr_grp", write, sub1, "", false}, // the parent of what he may read stays hidden
		{"usr_grp", "authorization/roleAssignments/write", ws1, "", true},
		{"usr_ws", write, ws1 + "/runs/r1", "asg_ws", true},
		{"usr_ws", write, ws2, "", false},
		{"usr_ws", write, grp1, "", false},
		{"usr_nobody", read, ws1, "", false},
		{"usr_nobody", read, "/", "", true},
		{"usr_nobody", read, "users/ada", "", true},
		{"usr_root", "identity/users/read", "users/ada", "asg_root", true},
	}
	for _, c := range cases {
		t.Run(c.who+" "+c.action+" "+c.scope, func(t *testing.T) {
			d := f.ask(c.who, c.action, c.scope)
			if d.Allowed != (c.want != "") || d.Assignment != c.want || d.MayKnow != c.mayKnow {
				t.Errorf("%+v", d)
			}
			if wrong := d.Reason == faultv1.Reason_REASON_UNSPECIFIED; wrong != d.Allowed {
				t.Errorf("reason %v", d.Reason)
			}
		})
	}
}

// TestMayKnow: a refusal shows that something is there to those who may read it or the scope it stands in, and to nobody else.
func TestMayKnow(t *testing.T) {
	f := engine(t,
		assigned("asg_1", ws1, "roleDefinitions/seesWorkspace", "usr_ws"), assigned("asg_2", ws1, "roleDefinitions/seesRuns", "usr_runs"),
		assigned("asg_3", ws1, "roleDefinitions/writes", "usr_writes"), assigned("asg_4", grp1, "roleDefinitions/seesGroup", "usr_group"),
		assigned("asg_5", sub1, "roleDefinitions/seesSubscription", "usr_sub"),
	)
	role := func(name string, actions ...string) *workspacev1.RoleDefinition {
		return &workspacev1.RoleDefinition{Name: "roleDefinitions/" + name, Actions: actions, DataActions: []string{"a/b/read"}}
	}
	f.change(&workspacev1.WatchAuthorizationResponse{Roles: []*workspacev1.RoleDefinition{
		role("seesWorkspace", "workspace/workspaces/read"), role("seesRuns", "compute/runs/read"), role("writes", "compute/runs/submit", "keyvault/*/write"),
		role("seesGroup", "workspace/resourceGroups/read"), role("seesSubscription", "workspace/subscriptions/read"),
	}})
	cases := []struct {
		who, action, scope string
		want               bool
	}{
		{"usr_ws", "compute/runs/cancel", ws1, true},
		{"usr_ws", "compute/runs/cancel", ws1 + "/runs/r1", true},
		{"usr_ws", "compute/runs/cancel", ws2, false},
		{"usr_ws", "workspace/resourceGroups/write", grp1, false},
		{"usr_runs", "compute/runs/cancel", ws1 + "/runs/r1", true},
		{"usr_runs", "compute/runs/logs/read", ws1 + "/runs/r1", false},
		{"usr_runs", "keyvault/secrets/access", ws1 + "/secrets/s", false},
		{"usr_writes", "compute/runs/cancel", ws1 + "/runs/r1", false},
		{"usr_writes", "nothing", ws1, false},
		{"usr_group", "workspace/workspaces/write", grp1, true},
		{"usr_group", "compute/runs/cancel", ws1, false},
		{"usr_group", "workspace/resourceGroups/write", sub1, false},
		{"usr_sub", "workspace/resourceGroups/write", sub1, true},
		{"usr_sub", "workspace/resourceGroups/write", grp1, false},
	}
	for _, c := range cases {
		for _, data := range []bool{false, true} {
			d := f.Decide(Query{Principal: c.who, Action: c.action, Data: data, Scope: f.scope(c.scope)})
			if d.Allowed || d.MayKnow != c.want {
				t.Errorf("%+v data %v: %+v", c, data, d)
			}
		}
	}
}

// TestZeroValuesAreRefused is RELIABILITY's item 6: each field of a good query is emptied in turn.
func TestZeroValuesAreRefused(t *testing.T) {
	f := engine(t, assigned("asg_1", "/", Owner, "usr_1"))
	f.members("grp_1", "usr_1", "")
	good := Query{Principal: "usr_1", Action: "compute/runs/read", Scope: f.scope(ws1)}
	if !f.Decide(good).Allowed {
		t.Fatal("the good query is refused")
	}
	foreign := f.scope(ws1)
	foreign.Name = parsed(t, ws2)
	noUID := f.scope(ws1)
	noUID.UID = ""
	above := f.scope(grp1)
	above.Name = parsed(t, ws1)
	unnamed := f.scope(ws1)
	unnamed.Name = resource.Name{}
	cases := map[string]func(*Query){
		"nothing at all":           func(q *Query) { *q = Query{} },
		"no principal":             func(q *Query) { q.Principal = "" },
		"no action":                func(q *Query) { q.Action = "" },
		"no scope":                 func(q *Query) { q.Scope = Scope{} },
		"scope without name":       func(q *Query) { q.Scope = unnamed },
		"workspace without uid":    func(q *Query) { q.Scope = noUID },
		"name of another scope":    func(q *Query) { q.Scope = foreign },
		"uid of the scope above":   func(q *Query) { q.Scope = above },
		"uid that is not known":    func(q *Query) { q.Scope.UID = "ws_9" },
		"an action without end":    func(q *Query) { q.Action = strings.Repeat("a/", 1<<20) },
		"a run without anything":   func(q *Query) { q.Run = &Run{} },
		"data without data action": func(q *Query) { q.Data, q.Principal = true, "usr_2" },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			q := good
			change(&q)
			if d := f.Decide(q); d.Allowed || d.Assignment != "" || d.Reason == 0 {
				t.Errorf("%+v", d)
			}
			if strings.HasPrefix(name, "scope without") {
				q.Scope.Active = true
				if _, ok := f.state.Load().at(q.Scope); ok {
					t.Error("it is somewhere")
				}
			}
		})
	}
	// The empty principal is in no group, whatever identity says, and an empty name is no scope.
	f.change(&workspacev1.WatchAuthorizationResponse{Assignments: []*workspacev1.AssignmentRecord{assigned("asg_2", "/", Owner, "grp_1")}})
	if d := f.Decide(Query{Action: "a/b/read", Scope: f.scope("/")}); d.Allowed {
		t.Errorf("%+v", d)
	}
	if f.state.Load().of("") != nil {
		t.Error("something is known of the empty principal")
	}
	if _, ok := f.Resolve(resource.Name{}); ok {
		t.Error("the zero name is somewhere")
	}
	var none Decision
	if none.Allowed || none.MayKnow {
		t.Error("the zero decision allows")
	}
}

// TestIDsAreComparedByteForByte is RELIABILITY's item 9.
func TestIDsAreComparedByteForByte(t *testing.T) {
	f := engine(t)
	ids := []string{
		"usr_a", "usr_A", "USR_A", "usr_a ", " usr_a", "usr_a\x00", "usr_a\n", "usr_\u0430", "usr_caf\u00e9", "usr_cafe\u0301", "usr_\uff41", "usr_a\u200b", "usr_\u212a", "usr_k", "usr_K", "usr_", "usr_a\xff",
	}
	for i, id := range ids {
		uid := fmt.Sprintf("asg_%d", i)
		f.change(&workspacev1.WatchAuthorizationResponse{Assignments: []*workspacev1.AssignmentRecord{assigned(uid, ws1, Owner, id)}})
		for _, other := range ids {
			d := f.ask(other, "compute/runs/submit", ws1)
			if d.Allowed != (other == id) {
				t.Errorf("%q has it, and %q: %+v", id, other, d)
			}
		}
		f.change(&workspacev1.WatchAuthorizationResponse{Removed: []string{uid}})
	}
	// Groups, roles and assignments too.
	f.members("grp_a", "usr_a")
	f.change(&workspacev1.WatchAuthorizationResponse{Assignments: []*workspacev1.AssignmentRecord{
		assigned("asg_g", ws1, Owner, "grp_A"), assigned("asg_h", ws1, "roleDefinitions/Owner", "usr_a"), assigned("asg_i", ws1, Owner+"\x00", "usr_a"),
	}})
	if d := f.ask("usr_a", "compute/runs/submit", ws1); d.Allowed {
		t.Errorf("%+v", d)
	}
	f.change(&workspacev1.WatchAuthorizationResponse{Assignments: []*workspacev1.AssignmentRecord{assigned("asg_j", ws1, Owner, "usr_a")}, Removed: []string{"ASG_J"}})
	f.change(&workspacev1.WatchAuthorizationResponse{Removed: []string{"asg_j\x00", "asg_J", "asg_j "}})
	if d := f.ask("usr_a", "compute/runs/submit", ws1); !d.Allowed {
		t.Errorf("%+v", d)
	}
}

func TestGroups(t *testing.T) {
	f := engine(t, assigned("asg_1", ws1, Contributor, "grp_top"), assigned("asg_2", ws1, Reader, "usr_1"))
	const action = "compute/runs/submit"
	allowed := func(want bool) {
		t.Helper()
		if d := f.ask("usr_1", action, ws1); d.Allowed != want || want && d.Assignment != "asg_1" {
			t.Errorf("%+v", d)
		}
	}
	allowed(false)
	f.members("grp_top", "grp_mid", "usr_9")
	allowed(false)
	f.members("grp_mid", "grp_low")
	f.members("grp_low", "usr_1", "usr_1")
	if e, _ := f.state.Load().who.get("usr_1"); len(e.groups) != 1 {
		t.Errorf("twice is not once: %v", e.groups)
	}
	allowed(true)
	f.members("grp_low", "grp_top", "grp_low", "usr_1") // a cycle, and itself
	allowed(true)
	f.members("grp_mid")
	allowed(false)
	f.members("grp_mid", "grp_low")
	allowed(true)
	f.members("grp_low", "usr_2") // he is out
	allowed(false)
	if d := f.ask("usr_2", action, ws1); !d.Allowed {
		t.Errorf("%+v", d)
	}
	// A full state of identity that does not have the groups takes them away; the assignments stay.
	f.id++
	f.must(f.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: f.id, Reset_: true, Complete: true}))
	if d := f.ask("usr_2", action, ws1); d.Allowed {
		t.Errorf("%+v", d)
	}
	if d := f.ask("usr_1", "compute/runs/read", ws1); !d.Allowed {
		t.Errorf("%+v", d)
	}
}

func TestGroupDepth(t *testing.T) {
	f := engine(t, assigned("asg_1", ws1, Owner, "grp_0"))
	for i := range MaxGroupDepth + 5 {
		f.members(fmt.Sprintf("grp_%d", i), fmt.Sprintf("grp_%d", i+1), fmt.Sprintf("usr_%d", i+1))
	}
	for i := 1; i <= MaxGroupDepth+4; i++ {
		if d := f.ask(fmt.Sprintf("usr_%d", i), "a/b/read", ws1); d.Allowed != (i <= MaxGroupDepth) {
			t.Errorf("%d groups deep: %+v", i, d)
		}
	}
}

func TestScopesThatAreNotActive(t *testing.T) {
	f := engine(t, assigned("asg_1", sub1, Owner, "usr_own"), assigned("asg_2", sub1, Reader, "usr_read"), assigned("asg_3", ws1, Owner, "usr_ws"))
	run := &Run{UID: "run_1", WorkspaceUID: "ws_1", Actions: []string{"compute/runs/execute runs/r1", "workspace/workspaces/read runs/r1"}}
	type row struct {
		who, action, scope string
		data               bool
		run                *Run
		whileOff           bool
	}
	rows := []row{
		{who: "usr_own", action: "workspace/workspaces/read", scope: ws1, whileOff: true},
		{who: "usr_own", action: "workspace/workspaces/delete", scope: ws1, whileOff: true},
		{who: "usr_ws", action: "workspace/workspaces/delete", scope: ws1, whileOff: true},
		{who: "usr_read", action: "workspace/workspaces/read", scope: ws1, whileOff: true},
		{who: "usr_own", action: "workspace/workspaces/read", scope: ws1 + "/runs/r1"},
		{who: "usr_own", action: "workspace/workspaces/write", scope: ws1},
		{who: "usr_own", action: "compute/runs/read", scope: ws1},
		{who: "usr_own", action: "compute/runs/submit", scope: ws1},
		{who: "usr_own", action: "compute/runs/read", scope: ws1 + "/runs/r1"},
		{who: "usr_own", action: "authorization/roleAssignments/write", scope: ws1},
		{who: "usr_own", action: "keyvault/secrets/access", scope: ws1 + "/secrets/s", data: true},
		{who: "usr_own", action: "workspace/workspaces/delete", scope: ws1, data: true},
		{who: "usr_own", action: "compute/runs/execute", scope: ws1 + "/runs/r1", run: run},
		{who: "usr_own", action: "workspace/workspaces/read", scope: ws1 + "/runs/r1", run: run},
	}
	check := func(t *testing.T, off bool) {
		t.Helper()
		for _, r := range rows {
			s := f.scope(r.scope)
			if s.Active == off {
				t.Errorf("%s: active %v", r.scope, s.Active)
			}
			d := f.Decide(Query{Principal: r.who, Action: r.action, Scope: s, Data: r.data, Run: r.run})
			if d.Allowed != (!off || r.whileOff) {
				t.Errorf("%+v: %+v", r, d)
			}
			if off && !r.whileOff && (d.MayKnow || d.Reason != faultv1.Reason_RESOURCE_NOT_FOUND) {
				t.Errorf("%+v shows that it is there: %+v", r, d)
			}
		}
		if d := f.ask("usr_read", "workspace/workspaces/delete", ws1); d.Allowed || !d.MayKnow {
			t.Errorf("a reader deletes: %+v", d)
		}
		if d := f.ask("usr_none", "workspace/workspaces/read", ws1); d.Allowed || d.MayKnow {
			t.Errorf("a stranger reads: %+v", d)
		}
	}
	set := func(name string, active bool) {
		f.change(&workspacev1.WatchAuthorizationResponse{Scopes: []*workspacev1.ScopeRecord{record(name, active)}})
	}
	check(t, false)
	for _, at := range []string{ws1, grp1, sub1} {
		set(at, false)
		check(t, true)
		if at != ws1 && f.scope(ws2).Active {
			t.Errorf("%s is off, and what is beside is not", at)
		}
		if !f.scope(ws4).Active || (at != sub1 && !f.scope(ws3).Active) {
			t.Errorf("%s is off, and so is what is elsewhere", at)
		}
		set(at, true)
		check(t, false)
	}
	// Two levels off, one on again: still off. And in one message, whatever the order.
	f.change(&workspacev1.WatchAuthorizationResponse{Scopes: []*workspacev1.ScopeRecord{record(grp1, false), record(sub1, false)}})
	set(grp1, true)
	check(t, true)
	f.change(&workspacev1.WatchAuthorizationResponse{Scopes: []*workspacev1.ScopeRecord{record(ws1, true), record(sub1, true), record(grp1, false)}})
	check(t, true)
	set(grp1, true)
	check(t, false)
}

func TestResolve(t *testing.T) {
	f := engine(t)
	cases := []struct {
		name string
		want Scope
		ok   bool
	}{
		{"/", Scope{}, true},
		{"users/ada", Scope{}, true},
		{Owner, Scope{}, true},
		{sub1, Scope{UID: "sub_1", SubscriptionUID: "sub_1"}, true},
		{grp1, Scope{UID: "rgp_1", ResourceGroupUID: "rgp_1", SubscriptionUID: "sub_1"}, true},
		{ws1, Scope{UID: "ws_1", WorkspaceUID: "ws_1", ResourceGroupUID: "rgp_1", SubscriptionUID: "sub_1"}, true},
		{ws4 + "/runs/R", Scope{UID: "ws_4", WorkspaceUID: "ws_4", ResourceGroupUID: "rgp_3", SubscriptionUID: "sub_2"}, true},
		{ws4 + "/models/m/versions/1", Scope{UID: "ws_4", WorkspaceUID: "ws_4", ResourceGroupUID: "rgp_3", SubscriptionUID: "sub_2"}, true},
		{ws4 + "/endpoints/e/deployments/d", Scope{UID: "ws_4", WorkspaceUID: "ws_4", ResourceGroupUID: "rgp_3", SubscriptionUID: "sub_2"}, true},
		{grp1 + "/workspaces/w9/models/m/versions/1", Scope{}, false},
		{"subscriptions/s9", Scope{}, false},
		{sub1 + "/resourceGroups/g9", Scope{}, false},
		{grp1 + "/workspaces/w9", Scope{}, false},
		{grp1 + "/workspaces/w9/runs/r1", Scope{}, false},
		{sub2 + "/resourceGroups/g2/workspaces/w1", Scope{}, false},
	}
	for _, c := range cases {
		n := parsed(t, c.name)
		if c.ok {
			c.want.Name, c.want.Active = n, true
		}
		if got, ok := f.Resolve(n); ok != c.ok || got != c.want {
			t.Errorf("%s: %+v %v", c.name, got, ok)
		}
	}
}

// TestRunTokens is A4 and goal 23: a run token opens what it lists and nothing beside it.
func TestRunTokens(t *testing.T) {
	f := engine(t, assigned("asg_1", "/", Owner, "usr_1"))
	list := []string{"compute/runs/execute runs/r1", "workspace/snapshots/read snapshots/abc", "telemetry/metrics/write runs/r1", "inference/models/content/read models/m/versions/3", "compute/runs/read", "compute/runs/cancel "}
	run := func(change func(*Run)) *Run {
		r := &Run{UID: "run_1", WorkspaceUID: "ws_1", Actions: list}
		if change != nil {
			change(r)
		}
		return r
	}
	cases := []struct {
		name, action, scope string
		run                 *Run
		want, mayKnow       bool
	}{
		{"its own", "compute/runs/execute", ws1 + "/runs/r1", run(nil), true, true},
		{"its metrics", "telemetry/metrics/write", ws1 + "/runs/r1", run(nil), true, true},
		{"its snapshot", "workspace/snapshots/read", ws1 + "/snapshots/abc", run(nil), true, true},
		{"its model", "inference/models/content/read", ws1 + "/models/m/versions/3", run(nil), true, true},
		{"another version of its model", "inference/models/content/read", ws1 + "/models/m/versions/31", run(nil), false, false},
		{"the model of its version", "inference/models/content/read", ws1 + "/models/m", run(nil), false, false},
		{"another action on its own", "compute/runs/logs/read", ws1 + "/runs/r1", run(nil), false, true},
		{"an action of another of its resources", "workspace/snapshots/read", ws1 + "/runs/r1", run(nil), false, true},
		{"another run", "compute/runs/execute", ws1 + "/runs/r2", run(nil), false, false},
		{"a run that begins alike", "compute/runs/execute", ws1 + "/runs/r11", run(nil), false, false},
		{"its twin in upper case", "compute/runs/execute", ws1 + "/runs/R1", run(nil), false, false},
		{"the action in upper case", "compute/runs/Execute", ws1 + "/runs/r1", run(nil), false, true},
		{"another snapshot", "workspace/snapshots/read", ws1 + "/snapshots/abd", run(nil), false, false},
		{"the same name elsewhere", "compute/runs/execute", ws2 + "/runs/r1", run(nil), false, false},
		{"the same name in a twin workspace", "compute/runs/execute", ws4 + "/runs/r1", run(nil), false, false},
		{"the workspace itself", "compute/runs/read", ws1, run(nil), false, false},
		{"the workspace by a line with no path", "compute/runs/cancel", ws1, run(nil), false, false},
		{"the installation", "compute/runs/execute", "/", run(nil), false, false},
		{"the subscription", "compute/runs/execute", sub1, run(nil), false, false},
		{"no uid", "compute/runs/execute", ws1 + "/runs/r1", run(func(r *Run) { r.UID = "" }), false, false},
		{"no workspace", "compute/runs/execute", ws1 + "/runs/r1", run(func(r *Run) { r.WorkspaceUID = "" }), false, false},
		{"no workspace at the installation", "compute/runs/execute", "/", run(func(r *Run) { r.WorkspaceUID = "" }), false, false},
		{"no list", "compute/runs/execute", ws1 + "/runs/r1", run(func(r *Run) { r.Actions = nil }), false, false},
		{"wildcards count for nothing", "compute/runs/execute", ws1 + "/runs/r1", run(func(r *Run) { r.Actions = []string{"*", "* runs/r1", "compute/* runs/r1", "compute/runs/execute *"} }), false, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			// The submitter is Owner of everything: that adds nothing.
			d := f.Decide(Query{Principal: "usr_1", Action: c.action, Data: true, Scope: f.scope(c.scope), Run: c.run})
			if d.Allowed != c.want || d.MayKnow != c.mayKnow || d.Assignment != "" {
				t.Errorf("%+v", d)
			}
			if !c.want && d.Reason != faultv1.Reason_AUTHZ_OUTSIDE_RUN {
				t.Errorf("reason %v", d.Reason)
			}
			if d := f.Decide(Query{Action: c.action, Data: true, Scope: f.scope(c.scope), Run: c.run}); d.Allowed {
				t.Errorf("without a principal: %+v", d)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	f := engine(t, assigned("asg_1", sub1, Contributor, "grp_1"), assigned("asg_2", ws1, Contributor, "usr_1"), assigned("asg_3", "/", Reader, "usr_1"))
	f.members("grp_1", "usr_1")
	x := f.Explain(Query{Principal: "usr_1", Action: "compute/runs/submit", Scope: f.scope(ws1)})
	want := []Grant{{"asg_2", Contributor, "ws_1", ws1, "usr_1"}, {"asg_1", Contributor, "sub_1", sub1, "grp_1"}}
	if !x.Allowed || !slices.Equal(x.Grants, want) || x.Assignment != "asg_2" {
		t.Errorf("%+v", x)
	}
	for _, c := range []struct {
		q    Query
		want string
	}{
		{Query{Principal: "usr_1", Action: "compute/runs/submit", Scope: f.scope(ws2)}, Contributor + ", assigned at " + sub1 + " through the group grp_1, gives the action compute/runs/submit"},
		{Query{Principal: "usr_1", Action: "compute/runs/read", Scope: f.scope("/")}, Reader + ", assigned at /, gives the action"},
		{Query{Principal: "usr_1", Action: "authorization/roleAssignments/write", Scope: f.scope(ws1)}, "no role assignment at " + ws1 + " or above it gives the action"},
		{Query{Principal: "usr_1", Action: "keyvault/secrets/access", Data: true, Scope: f.scope(ws4)}, "gives the data action"},
		{Query{Principal: "usr_1", Action: "compute/runs/read", Scope: Scope{Name: parsed(t, ws1), UID: "ws_9"}}, "no such resource"},
		{Query{Principal: "usr_1", Action: "compute/runs/read", Scope: f.scope(ws1 + "/runs/r1"), Run: &Run{UID: "r", WorkspaceUID: "ws_1"}}, "does not list"},
		{Query{Principal: "usr_1", Action: "compute/runs/read", Scope: f.scope(ws1 + "/runs/r1"), Run: &Run{UID: "r", WorkspaceUID: "ws_1", Actions: []string{"compute/runs/read runs/r1"}}}, "token lists"},
		{Query{}, "no such resource"},
	} {
		x := f.Explain(c.q)
		if !strings.Contains(x.Text, c.want) || x.Decision != f.Decide(c.q) || x.Allowed != (len(x.Grants) > 0 || c.q.Run != nil && x.Allowed) {
			t.Errorf("%+v\nwanted %q", x, c.want)
		}
	}
	if x := New(Config{}).Explain(Query{Principal: "usr_1", Action: "a/b/c", Scope: Scope{Name: resource.RootName()}}); x.Allowed || !strings.Contains(x.Text, "no authorization state") {
		t.Errorf("%+v", x)
	}
}
