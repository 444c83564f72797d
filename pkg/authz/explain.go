package authz

import (
	"fmt"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

// Grant is one assignment that allows something.
type Grant struct {
	// Assignment is its uid, Role the name of the role definition.
	Assignment, Role string
	// ScopeUID and ScopeName say where it stands: "" and "/" for the installation.
	ScopeUID, ScopeName string
	// Principal is who it was given to: the principal that was asked about, or the group through which he has it.
	Principal string
}

// Explanation is a Decision with what stands behind it.
type Explanation struct {
	Decision
	// Grants are all assignments that allow it, nearest scope first. There are none for a refusal and for run tokens.
	Grants []Grant
	// Text says it in words, for somebody who may know of the resource: check MayKnow before it is shown.
	Text string
}

// Explain decides a query and says what allows it.
func (e *Engine) Explain(q Query) Explanation {
	x := Explanation{Decision: e.Decide(q)}
	s := e.state.Load()
	n, ok := s.at(q.Scope)
	switch {
	case !x.Allowed && x.Reason == faultv1.Reason_AUTHZ_STATE_STALE:
		x.Text = "this service has no authorization state yet"
	case !x.Allowed && (!ok || x.Reason == faultv1.Reason_RESOURCE_NOT_FOUND):
		x.Text = "there is no such resource, or it is being made or removed"
	case q.Run != nil && x.Allowed:
		x.Text = fmt.Sprintf("the run's token lists %s for %s", q.Action, q.Scope.Name)
	case q.Run != nil:
		x.Text = fmt.Sprintf("the run's token does not list %s for %s; a run has no roles", q.Action, q.Scope.Name)
	case !x.Allowed && q.Consumer && !consumers(n):
		x.Text = fmt.Sprintf("nothing is open to consumers at %s, whatever roles say", q.Scope.Name)
	case !x.Allowed:
		x.Text = fmt.Sprintf("no role assignment at %s or above it gives %s to this principal or to a group that it is in; somebody who may assign roles there can", n.name, kindOf(q))
	case ok:
		x.Grants = s.grantsOf(n, &q)
		if len(x.Grants) == 0 { // the state has changed since the decision: the newer one counts
			x.Decision = e.Decide(q)
			x.Text = "it has just changed; ask again"
			break
		}
		g := x.Grants[0]
		through := ""
		if g.Principal != q.Principal {
			through = " through the group " + g.Principal
		}
		x.Text = fmt.Sprintf("%s, assigned at %s%s, gives %s", g.Role, g.ScopeName, through, kindOf(q))
	}
	return x
}

func kindOf(q Query) string {
	if q.Data {
		return "the data action " + q.Action
	}
	return "the action " + q.Action
}

func (s *state) grantsOf(n *node, q *Query) []Grant {
	eff := s.of(q.Principal)
	if eff == nil {
		return nil
	}
	var all []Grant
	for _, uid := range n.path() {
		for _, g := range eff.at[uid] {
			if !allows(g.role, q.Action, q.Data) {
				continue
			}
			at := root
			if uid != "" {
				at, _ = s.nodes.get(uid)
			}
			all = append(all, Grant{g.uid, g.assignment.role, uid, at.name.String(), g.principal})
		}
	}
	return all
}
