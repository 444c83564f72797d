package authz

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// model is the meaning of the state a second time: lists, walked through at every question, with nothing kept.
type model struct {
	scopes      []*workspacev1.ScopeRecord
	roles       []*workspacev1.RoleDefinition
	assignments []*workspacev1.AssignmentRecord
	groups      map[string][]string
	patterns    map[string]*regexp.Regexp
}

func (m *model) scope(uid string) *workspacev1.ScopeRecord {
	for _, s := range m.scopes {
		if s.GetUid() == uid {
			return s
		}
	}
	return nil
}

// above is the scope and everything above it, nearest first; live is false if one of them is not active.
func (m *model) above(uid string) (chain []string, live bool) {
	live = true
	for uid != "" {
		s := m.scope(uid)
		chain, live = append(chain, uid), live && s.GetActive()
		uid = s.GetParentUid()
	}
	return append(chain, ""), live
}

// is reports whether the principal is who, or in the group who, by at most depth further groups.
func (m *model) is(principal, who string, depth int) bool {
	if principal == who {
		return true
	}
	if depth == 0 {
		return false
	}
	for _, member := range m.groups[who] {
		if member != "" && m.is(principal, member, depth-1) {
			return true
		}
	}
	return false
}

func (m *model) allows(role, action string, data bool) bool {
	for _, r := range m.roles {
		if r.GetName() != role {
			continue
		}
		yes, no := r.GetActions(), r.GetNotActions()
		if data {
			yes, no = r.GetDataActions(), r.GetNotDataActions()
		}
		fits := func(p string) bool {
			if m.patterns[p] == nil {
				m.patterns[p] = matcher(p)
			}
			return m.patterns[p].MatchString(action)
		}
		return slices.ContainsFunc(yes, fits) && !slices.ContainsFunc(no, fits)
	}
	return false
}

// given lists the assignments that give the action at a scope, with how many steps above it they stand.
func (m *model) given(principal, action string, data bool, uid string) map[string]int {
	chain, _ := m.above(uid)
	found := map[string]int{}
	for steps, at := range chain {
		for _, a := range m.assignments {
			if a.GetScopeUid() == at && m.is(principal, a.GetPrincipalUid(), 8) && m.allows(a.GetRole(), action, data) {
				found[a.GetUid()] = steps
			}
		}
	}
	return found
}

// check compares one decision with the model.
func (m *model) check(d Decision, principal, action string, data bool, uid string) error {
	if principal == "" || action == "" {
		if d.Allowed || d.MayKnow {
			return fmt.Errorf("a zero value is allowed: %+v", d)
		}
		return nil
	}
	name := resource.RootName()
	if s := m.scope(uid); s != nil {
		name, _ = resource.Parse(s.GetName())
	}
	own := "workspace/" + name.Kind().Collection() + "/"
	if _, live := m.above(uid); !live && (data || action != own+"read" && action != own+"delete") {
		if d.Allowed || d.MayKnow {
			return fmt.Errorf("what is not active is shown: %+v", d)
		}
		return nil
	}
	given := m.given(principal, action, data, uid)
	if d.Allowed != (len(given) > 0) {
		return fmt.Errorf("%+v, the model says %v", d, given)
	}
	nearest := 99
	for _, steps := range given {
		nearest = min(nearest, steps)
	}
	if steps, ok := given[d.Assignment]; d.Allowed && (!ok || steps != nearest) {
		return fmt.Errorf("%+v is not the nearest of %v", d, given)
	}
	may := d.Allowed || uid == "" || len(m.given(principal, action[:strings.LastIndexByte(action, '/')]+"/read", false, uid)) > 0 || len(m.given(principal, own+"read", false, uid)) > 0
	if d.MayKnow != may {
		return fmt.Errorf("%+v, the model says that he may know: %v", d, may)
	}
	return nil
}

// What the model test draws from. Ids that look alike are among them.
var (
	people  = []string{"usr_a", "usr_A", "usr_\u0430", "usr_a\x00", "usr_caf\u00e9", "usr_cafe\u0301", "usr_a "}
	teams   = []string{"grp_1", "grp_2", "grp_3", "grp_4", "grp_1 ", "GRP_1"}
	asked   = []string{"compute/runs/read", "compute/runs/submit", "Compute/Runs/Submit", "keyvault/secrets/access", "workspace/workspaces/read", "workspace/workspaces/delete", "workspace/resourceGroups/read", "authorization/roleAssignments/write", ""}
	pattern = rapid.SampledFrom([]string{"*", "*/read", "compute/*", "COMPUTE/*/submit", "*/Access", "keyvault/secrets/*", "workspace/workspaces/read", "*runs*", "authorization/*", "*/delete"})
)

// sender holds what a source of state holds, and makes its messages.
type sender struct {
	*model
	made int
}

func (s *sender) full() []*workspacev1.WatchAuthorizationResponse {
	scopes := slices.Clone(s.scopes)
	slices.Reverse(scopes)
	return []*workspacev1.WatchAuthorizationResponse{
		{Seq: 1, Reset_: true, Assignments: s.assignments}, {Seq: 1, Scopes: scopes}, {Seq: 1, Heartbeat: true}, {Seq: 1, Roles: s.roles, Complete: true},
	}
}

func (s *sender) members() *identityv1.WatchSecurityResponse {
	m := &identityv1.WatchSecurityResponse{Seq: 1, Reset_: true, Complete: true}
	for _, g := range slices.Sorted(maps.Keys(s.groups)) {
		m.Groups = append(m.Groups, &identityv1.GroupMembers{GroupUid: g, MemberUids: s.groups[g]})
	}
	return m
}

// step changes the state at random and gives the delta of it.
func (s *sender) step(t *rapid.T) (a *workspacev1.WatchAuthorizationResponse, i *identityv1.WatchSecurityResponse) {
	a = &workspacev1.WatchAuthorizationResponse{}
	switch rapid.SampledFrom([]string{"scope", "scope", "scope", "flip", "remove scope", "assign", "assign", "assign", "assign", "assign", "unassign", "role", "role", "group", "group", "group"}).Draw(t, "what") {
	case "scope":
		parent := &workspacev1.ScopeRecord{Name: "/"}
		if len(s.scopes) > 0 && rapid.Bool().Draw(t, "below") {
			parent = rapid.SampledFrom(s.scopes).Draw(t, "parent")
		}
		p, _ := resource.Parse(parent.GetName())
		collection, ok := map[resource.Kind]string{resource.KindRoot: "subscriptions", resource.KindSubscription: "resourceGroups", resource.KindResourceGroup: "workspaces"}[p.Kind()]
		if !ok {
			return a, nil
		}
		name, err := p.Child(collection, rapid.SampledFrom([]string{"a", "b"}).Draw(t, "id"))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(s.scopes, func(r *workspacev1.ScopeRecord) bool { return r.GetName() == name.String() }) {
			return a, nil
		}
		s.made++
		rec := &workspacev1.ScopeRecord{Uid: fmt.Sprintf("scope_%d", s.made), Name: name.String(), ParentUid: parent.GetUid(), Active: rapid.IntRange(0, 9).Draw(t, "active") > 0}
		s.scopes = append(s.scopes, rec)
		a.Scopes = append(a.Scopes, rec)
	case "flip":
		if len(s.scopes) > 0 {
			at := rapid.IntRange(0, len(s.scopes)-1).Draw(t, "scope")
			rec := proto.Clone(s.scopes[at]).(*workspacev1.ScopeRecord)
			rec.Active = !rec.GetActive()
			s.scopes[at] = rec
			a.Scopes = append(a.Scopes, rec)
		}
	case "remove scope":
		if len(s.scopes) > 0 {
			uid := rapid.SampledFrom(s.scopes).Draw(t, "scope").GetUid()
			a.Removed = append(a.Removed, uid)
			gone := map[string]bool{}
			for _, r := range s.scopes {
				chain, _ := s.above(r.GetUid())
				gone[r.GetUid()] = slices.Contains(chain, uid)
			}
			s.scopes = slices.DeleteFunc(s.scopes, func(r *workspacev1.ScopeRecord) bool { return gone[r.GetUid()] })
			s.assignments = slices.DeleteFunc(s.assignments, func(r *workspacev1.AssignmentRecord) bool { return gone[r.GetScopeUid()] })
		}
	case "assign":
		at := ""
		if len(s.scopes) > 0 && rapid.IntRange(0, 3).Draw(t, "below") > 0 {
			at = rapid.SampledFrom(s.scopes).Draw(t, "scope").GetUid()
		}
		s.made++
		rec := &workspacev1.AssignmentRecord{
			Uid: fmt.Sprintf("asg_%d", s.made), ScopeUid: at, PrincipalUid: rapid.SampledFrom(slices.Concat(people, teams, teams)).Draw(t, "principal"),
			Role: rapid.SampledFrom([]string{Owner, Contributor, Reader, "roleDefinitions/x", "roleDefinitions/y", "roleDefinitions/none"}).Draw(t, "role"),
		}
		s.assignments = append(s.assignments, rec)
		a.Assignments = append(a.Assignments, rec)
	case "unassign":
		if len(s.assignments) > 0 {
			at := rapid.IntRange(0, len(s.assignments)-1).Draw(t, "assignment")
			a.Removed = append(a.Removed, s.assignments[at].GetUid())
			s.assignments = slices.Delete(s.assignments, at, at+1)
		}
	case "role":
		lists := rapid.SliceOfN(pattern, 0, 2)
		def := &workspacev1.RoleDefinition{
			Name:    rapid.SampledFrom([]string{"roleDefinitions/x", "roleDefinitions/y"}).Draw(t, "name"),
			Actions: lists.Draw(t, "actions"), NotActions: lists.Draw(t, "not"), DataActions: lists.Draw(t, "data"), NotDataActions: lists.Draw(t, "not data"),
		}
		s.roles = append(slices.DeleteFunc(s.roles, func(r *workspacev1.RoleDefinition) bool { return r.GetName() == def.GetName() }), def)
		a.Roles = append(a.Roles, def)
	case "group":
		g := rapid.SampledFrom(teams).Draw(t, "group")
		s.groups[g] = rapid.SliceOfN(rapid.SampledFrom(slices.Concat(people, teams, []string{""})), 0, 4).Draw(t, "members")
		return nil, &identityv1.WatchSecurityResponse{Groups: []*identityv1.GroupMembers{{GroupUid: g, MemberUids: s.groups[g]}}}
	}
	return a, nil
}

// TestAgainstTheModel is goal 2 and RELIABILITY's items 8 to 10: after every random change, random questions to the engine that
// took the changes one by one and keeps what it has worked out, to one that took the whole state just now, and to the model.
func TestAgainstTheModel(t *testing.T) {
	asks, allowed, known := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := &sender{model: &model{groups: map[string][]string{}, patterns: map[string]*regexp.Regexp{}, roles: BuiltinRoles()}}
		clock := func() time.Time { return time.Unix(1e9, 0) }
		e := New(Config{Now: clock})
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		load := func(e *Engine) {
			for _, m := range s.full() {
				must(e.ApplyAuthorization(m))
			}
			must(e.ApplySecurity(s.members()))
		}
		for range 20 { // it begins with something
			s.step(t)
		}
		load(e)
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		var a, i uint64 = 1, 1
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			if am, im := s.step(t); im != nil {
				i++
				im.Seq = i
				must(e.ApplySecurity(im))
			} else {
				a++
				am.Seq = a
				must(e.ApplyAuthorization(am))
			}
			fresh := New(Config{Now: clock})
			load(fresh)
			for range 200 {
				who := append(people, "usr_none", "")[rnd.IntN(len(people)+2)]
				action, data := asked[rnd.IntN(len(asked))], rnd.IntN(3) == 0
				uid, name := "", resource.Root
				if n := rnd.IntN(len(s.scopes) + 1); n > 0 {
					uid, name = s.scopes[n-1].GetUid(), s.scopes[n-1].GetName()
				}
				n, _ := resource.Parse(name)
				scope, ok := e.Resolve(n)
				again, _ := fresh.Resolve(n)
				if !ok || scope.UID != uid || scope != again {
					t.Fatalf("%s: %+v, %+v %v", name, scope, again, ok)
				}
				q := Query{Principal: who, Action: action, Data: data, Scope: scope}
				d := e.Decide(q)
				asks++
				if d.Allowed {
					allowed++
				}
				if d.MayKnow {
					known++
				}
				if f := fresh.Decide(q); f != d {
					t.Fatalf("%q %s data %v at %s: %+v, and %+v with the same state loaded whole", who, action, data, name, d, f)
				}
				if err := s.check(d, who, action, data, uid); err != nil {
					t.Fatalf("%q %s data %v at %s: %v", who, action, data, name, err)
				}
			}
		}
	})
	t.Logf("%d checks, %d allowed, %d more may know", asks, allowed, known-allowed)
	least := 100_000
	if testing.Short() {
		least /= 10
	}
	if !t.Failed() && (asks < least || allowed < asks/20 || allowed > asks*19/20) {
		t.Errorf("%d checks of which %d are allowed try too little", asks, allowed)
	}
}
