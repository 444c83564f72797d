package authz

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// MaxGroupDepth is how many groups deep a membership reaches. What lies deeper gives nothing.
const MaxGroupDepth = 32

// state is all that is known at one moment. It is immutable but for the memos of its entries; the next one shares what did
// not change.
type state struct {
	nodes       *table[*node]       // by uid; the installation is "" and stands in no table
	names       *table[*node]       // by resource name
	roles       *table[*role]       // by name
	assignments *table[*assignment] // by uid
	groups      *table[[]string]    // members by group, sorted
	who         *table[*entry]      // by principal or group
	revoked     revoked

	authorization bool // a full state of workspace has come

	// grants is another number whenever who may do what may have changed, version whenever anything did.
	grants, version uint64
	// changed is closed when a newer state stands.
	changed chan struct{}
}

func newState() *state {
	seed := maphash.MakeSeed()
	return &state{
		nodes: empty[*node](seed), names: empty[*node](seed), roles: empty[*role](seed), assignments: empty[*assignment](seed),
		groups: empty[[]string](seed), who: empty[*entry](seed), revoked: newRevoked(seed), changed: make(chan struct{}),
	}
}

// node is one scope. It never moves or changes its name; up is its own uid and those above it, nearest first, ending with ""
// for the installation.
type node struct {
	uid, parent string
	name        resource.Name
	up          [4]string
	depth       int
	active      bool // as it was sent
	live        bool // active, and everything above it too
}

var root = &node{name: resource.RootName(), depth: 1, active: true, live: true}

func (n *node) path() []string { return n.up[:n.depth] }

// uidOf is the uid of the scope of that kind which the node stands in or is, or "".
func (n *node) uidOf(kind resource.Kind) string {
	// The installation has depth 1, a subscription 2, a resource group 3, a workspace 4.
	if at := n.depth - 1 - int(kind-resource.KindRoot); at >= 0 {
		return n.up[at]
	}
	return ""
}

// tree is the name of the scope, as far as assignments can stand at one, in which a resource stands or which it is.
func tree(n resource.Name) resource.Name {
	for {
		switch n.Kind() {
		case resource.KindUnknown, resource.KindRoot, resource.KindSubscription, resource.KindResourceGroup, resource.KindWorkspace:
			return n
		default:
			n = n.Parent() // what stands in a workspace, one below the other, or directly in the installation
		}
	}
}

type assignment struct{ uid, scope, role, principal string }

// entry is what is known of one principal or group directly.
type entry struct {
	assignments []*assignment // by uid
	groups      []string      // that it is a direct member of, sorted
	memo        atomic.Pointer[effective]
}

// effective is all that a principal has, through groups too, as of one value of state.grants.
type effective struct {
	grants uint64
	at     map[string][]grant // by scope uid
}

type grant struct {
	role *role
	*assignment
}

// of finds what a principal has. It is nil for principals of which nothing is known.
func (s *state) of(principal string) *effective {
	e, ok := s.who.get(principal)
	if !ok {
		return nil
	}
	if m := e.memo.Load(); m != nil && m.grants == s.grants {
		return m
	}
	m := s.gather(principal)
	e.memo.Store(m) // another reader may have stored the same, or one of another state: it is checked at each use
	return m
}

// gather walks from the principal through its groups, nearest first.
func (s *state) gather(principal string) *effective {
	eff := &effective{grants: s.grants, at: map[string][]grant{}}
	seen := map[string]bool{principal: true}
	level := []string{principal}
	for depth := 0; len(level) > 0 && depth <= MaxGroupDepth; depth++ {
		var next []string
		for _, id := range level {
			e, ok := s.who.get(id)
			if !ok {
				continue
			}
			for _, a := range e.assignments {
				if r, ok := s.roles.get(a.role); ok {
					eff.at[a.scope] = append(eff.at[a.scope], grant{r, a})
				}
			}
			for _, g := range e.groups {
				if !seen[g] {
					seen[g] = true
					next = append(next, g)
				}
			}
		}
		slices.Sort(next)
		level = next
	}
	return eff
}

// draft is the state that a message is turning the present one into.
type draft struct {
	from        *state
	nodes       *edit[*node]
	names       *edit[*node]
	roles       *edit[*role]
	assignments *edit[*assignment]
	groups      *edit[[]string]
	who         *edit[*entry]
	revoked     draftRevoked
	touched     map[string]*entry // entries that are this draft's own
	grants      bool
}

func (s *state) edit() *draft {
	return &draft{
		from: s, nodes: newEdit(s.nodes), names: newEdit(s.names), roles: newEdit(s.roles), assignments: newEdit(s.assignments),
		groups: newEdit(s.groups), who: newEdit(s.who), revoked: s.revoked.edit(), touched: map[string]*entry{},
	}
}

// done makes the next state. Entries with nothing left are dropped, the rest put in order.
func (d *draft) done() *state {
	for id, e := range d.touched {
		if len(e.assignments) == 0 && len(e.groups) == 0 {
			d.who.del(id)
			continue
		}
		slices.SortFunc(e.assignments, func(a, b *assignment) int { return strings.Compare(a.uid, b.uid) })
		slices.Sort(e.groups)
	}
	next := *d.from
	next.nodes, next.names, next.roles, next.assignments = d.nodes.done(), d.names.done(), d.roles.done(), d.assignments.done()
	next.groups, next.who, next.revoked = d.groups.done(), d.who.done(), d.revoked.done()
	next.changed = make(chan struct{})
	next.version++
	if d.grants {
		next.grants++
	}
	return &next
}

// entry gives the draft's own copy of a principal's entry.
func (d *draft) entry(id string) *entry {
	if e, ok := d.touched[id]; ok {
		return e
	}
	e := &entry{}
	if old, ok := d.who.get(id); ok {
		e.assignments, e.groups = slices.Clone(old.assignments), slices.Clone(old.groups)
	}
	d.touched[id] = e
	d.who.set(id, e)
	d.grants = true
	return e
}

// assign adds an assignment or replaces the one of the same uid.
func (d *draft) assign(rec *workspacev1.AssignmentRecord) {
	a := &assignment{uid: rec.GetUid(), scope: rec.GetScopeUid(), role: rec.GetRole(), principal: rec.GetPrincipalUid()}
	if old, ok := d.assignments.get(a.uid); ok {
		if *old == *a {
			return
		}
		d.unassign(old)
	}
	d.assignments.set(a.uid, a)
	e := d.entry(a.principal)
	e.assignments = append(e.assignments, a)
}

func (d *draft) unassign(a *assignment) {
	d.assignments.del(a.uid)
	e := d.entry(a.principal)
	e.assignments = slices.DeleteFunc(e.assignments, func(b *assignment) bool { return b.uid == a.uid })
}

// remove takes away a scope with all that stands in it or is assigned in it, or an assignment. An unknown uid is nothing.
func (d *draft) remove(uid string) {
	if a, ok := d.assignments.get(uid); ok {
		d.unassign(a)
	}
	if _, ok := d.nodes.get(uid); !ok {
		return
	}
	gone := map[string]bool{}
	for id, n := range d.nodes.all() {
		if slices.Contains(n.path(), uid) {
			gone[id] = true
		}
	}
	for id := range gone {
		n, _ := d.nodes.get(id)
		d.nodes.del(id)
		d.names.del(n.name.String())
	}
	for _, a := range slices.Collect(values(d.assignments.all())) {
		if gone[a.scope] {
			d.unassign(a)
		}
	}
}

// enliven sets live of a node and of all below it, after its active has changed.
func (d *draft) enliven(top *node) {
	if top.name.Kind() == resource.KindWorkspace {
		return
	}
	for _, n := range slices.Collect(values(d.nodes.all())) {
		if n != top && slices.Contains(n.path(), top.uid) {
			live := n.active
			for _, uid := range n.path()[1 : n.depth-1] {
				above, _ := d.nodes.get(uid)
				live = live && above.active
			}
			if live != n.live {
				c := *n
				c.live = live
				d.put(&c)
			}
		}
	}
}

func (d *draft) put(n *node) {
	d.nodes.set(n.uid, n)
	d.names.set(n.name.String(), n)
}
