package authz

import (
	"strings"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// Scope is a resource and where in the tree it stands. It comes from Resolve; the zero value is refused.
type Scope struct {
	// Name is the resource, which may stand below what the tree knows: a run in a workspace.
	Name resource.Name
	// UID is that of the nearest node of the tree: the workspace's for a run, "" for the installation.
	UID string
	// The uids of the nodes in which it stands or which it is; "" where there is none.
	WorkspaceUID, ResourceGroupUID, SubscriptionUID string
	// Active is false while the node, or one above it, is being made or removed.
	Active bool
}

// Resolve finds where a resource stands. It is false when the subscription, resource group or workspace that it stands in, or
// is, is not known. Whether the resource itself exists below a workspace is not asked.
func (e *Engine) Resolve(name resource.Name) (Scope, bool) {
	n, ok := e.state.Load().find(name)
	if !ok {
		return Scope{}, false
	}
	return Scope{
		Name: name, UID: n.uid, Active: n.live,
		WorkspaceUID: n.uidOf(resource.KindWorkspace), ResourceGroupUID: n.uidOf(resource.KindResourceGroup), SubscriptionUID: n.uidOf(resource.KindSubscription),
	}, true
}

func (s *state) find(name resource.Name) (*node, bool) {
	switch at := tree(name); at.Kind() {
	case resource.KindUnknown:
		return nil, false
	case resource.KindRoot:
		return root, true
	default:
		return s.names.get(at.String())
	}
}

// Run is what a run token says of its run.
type Run struct {
	// UID is the run's, WorkspaceUID that of its workspace.
	UID, WorkspaceUID string
	// Actions are what the token may do, each "<action> <path below the workspace>": "compute/runs/execute runs/r1".
	Actions []string
}

// Query asks whether a principal may do something. Fields that are zero refuse, but for Data and Run.
type Query struct {
	// Principal is the uid of the caller.
	Principal string
	// Action is one permission, without wildcards: "compute/runs/submit".
	Action string
	// Data says that dataActions give it.
	Data bool
	// Scope is where it would be done.
	Scope Scope
	// Run is set when the caller has a run token; then only what it lists is allowed.
	Run *Run
	// Consumer says that the caller is of that trust class: nothing is open to him above workspaces, whatever roles say.
	Consumer bool
}

// Decision is the answer to a Query. The zero value is a refusal.
type Decision struct {
	Allowed bool
	// Reason says why not, for records: AUTHZ_ACTION_MISSING, AUTHZ_OUTSIDE_RUN, RESOURCE_NOT_FOUND where the scope is not
	// known or not active, AUTHZ_STATE_STALE while there is no state. What the caller is told depends on MayKnow too.
	Reason faultv1.Reason
	// MayKnow says that the caller may learn that the resource exists. Where it is false the answer is that of a resource
	// that does not.
	MayKnow bool
	// Assignment is the uid of the assignment that allows it: the one at the nearest scope, the principal's own before those
	// of its groups. It is "" for run tokens.
	Assignment string
}

// maxAction is the most bytes of an action.
const maxAction = 256

// Decide answers from the present state. It does not ask whether the state is fresh: Fresh does.
func (e *Engine) Decide(q Query) Decision {
	if allowAll {
		return Decision{Allowed: true, MayKnow: true}
	}
	s := e.state.Load()
	switch {
	case !s.authorization:
		return Decision{Reason: faultv1.Reason_AUTHZ_STATE_STALE}
	case q.Principal == "" || q.Action == "" || len(q.Action) > maxAction || q.Scope.Name.IsZero():
		return Decision{Reason: faultv1.Reason_AUTHZ_ACTION_MISSING}
	}
	n, ok := s.at(q.Scope)
	if !ok || !n.live && !n.selfCare(&q) {
		return Decision{Reason: faultv1.Reason_RESOURCE_NOT_FOUND}
	}
	if q.Consumer && !consumers(n) {
		return Decision{Reason: faultv1.Reason_AUTHZ_ACTION_MISSING, MayKnow: n == root}
	}
	if q.Run != nil {
		return q.Run.decide(n, &q)
	}
	eff := s.of(q.Principal)
	if eff != nil {
		for _, uid := range n.path() {
			for _, g := range eff.at[uid] {
				if allows(g.role, q.Action, q.Data) {
					return Decision{Allowed: true, MayKnow: true, Assignment: g.uid}
				}
			}
		}
	}
	return Decision{Reason: faultv1.Reason_AUTHZ_ACTION_MISSING, MayKnow: n == root || eff.reads(n, q.Action)}
}

// consumers reports whether anything at a node can be open to consumers: a workspace and what is in it.
func consumers(n *node) bool {
	switch n.name.Kind() {
	case resource.KindUnknown, resource.KindRoot, resource.KindSubscription, resource.KindResourceGroup:
		return false
	}
	return true
}

// at is the node of a scope, if it is one that Resolve could give now.
func (s *state) at(scope Scope) (*node, bool) {
	n := root
	if scope.UID != "" {
		var ok bool
		if n, ok = s.nodes.get(scope.UID); !ok {
			return nil, false
		}
	}
	return n, tree(scope.Name) == n.name
}

// selfCare reports whether the query is to see or remove the scope itself.
func (n *node) selfCare(q *Query) bool {
	if q.Data || q.Scope.Name != n.name {
		return false
	}
	var read, remove string
	switch n.name.Kind() {
	case resource.KindSubscription:
		read, remove = "workspace/subscriptions/read", "workspace/subscriptions/delete"
	case resource.KindResourceGroup:
		read, remove = "workspace/resourceGroups/read", "workspace/resourceGroups/delete"
	case resource.KindWorkspace:
		read, remove = "workspace/workspaces/read", "workspace/workspaces/delete"
	default:
		return false
	}
	return q.Action == read || q.Action == remove
}

// reads reports whether something that is held at the node or above it gives the read action of the type that action is about, or
// of the node.
func (eff *effective) reads(n *node, action string) bool {
	if eff == nil {
		return false
	}
	var buf [maxAction + len("/read")]byte
	typ := append(append(buf[:0], action[:max(0, strings.LastIndexByte(action, '/'))]...), "/read"...)
	own := "workspace/workspaces/read"
	switch n.name.Kind() {
	case resource.KindSubscription:
		own = "workspace/subscriptions/read"
	case resource.KindResourceGroup:
		own = "workspace/resourceGroups/read"
	}
	for _, uid := range n.path() {
		for _, g := range eff.at[uid] {
			if allows(g.role, typ, false) || allows(g.role, own, false) {
				return true
			}
		}
	}
	return false
}

// decide answers for a run token.
func (r *Run) decide(n *node, q *Query) Decision {
	d := Decision{Reason: faultv1.Reason_AUTHZ_OUTSIDE_RUN}
	path := q.Scope.Name.Relative()
	if r.UID == "" || r.WorkspaceUID == "" || path == "" || n.uidOf(resource.KindWorkspace) != r.WorkspaceUID {
		return d
	}
	for _, a := range r.Actions {
		action, of, ok := strings.Cut(a, " ")
		if !ok || of != path {
			continue
		}
		d.MayKnow = true
		if action == q.Action {
			return Decision{Allowed: true, MayKnow: true}
		}
	}
	return d
}
