package store

import (
	"context"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

const (
	// MaxNesting is how many groups may stand in each other, the outermost counted.
	MaxNesting = 8
	// MaxMembers is how many direct members a group may have.
	MaxMembers = 5000
)

// Members are the uids of a group's direct members, in order.
func (s *Store) Members(ctx context.Context, q sqldb.DBTX, group string) ([]string, error) {
	out, err := db.New(q).ListMembers(ctx, group)
	return out, sqldb.Fault(err)
}

// AddMember puts a principal into a group; changed is false if it was there. A group that would contain itself, or nest too
// deep, is FAILED_PRECONDITION.
func (s *Store) AddMember(ctx context.Context, tx *sqldb.Tx, group string, member Principal) (changed bool, err error) {
	q := db.New(tx)
	if member.Kind == Group {
		rows, err := q.ListNestings(ctx, int64(Group))
		if err != nil {
			return false, err
		}
		inner := make(nesting, len(rows))
		for _, r := range rows {
			inner[r.GroupUID] = append(inner[r.GroupUID], r.MemberUID)
		}
		if err := inner.admit(group, member.UID); err != nil {
			return false, err
		}
	}
	members, err := q.ListMembers(ctx, group)
	if err != nil {
		return false, err
	}
	if len(members) >= MaxMembers {
		return false, fault.FailedPrecondition("a group has at most %d members; put groups into it", MaxMembers)
	}
	n, err := q.InsertMember(ctx, db.InsertMemberParams{GroupUID: group, MemberUID: member.UID})
	return n > 0, err
}

// RemoveMember takes a principal out of a group; changed is false if it was not there.
func (s *Store) RemoveMember(ctx context.Context, tx *sqldb.Tx, group, member string) (changed bool, err error) {
	n, err := db.New(tx).DeleteMember(ctx, db.DeleteMemberParams{GroupUID: group, MemberUID: member})
	return n > 0, err
}

// nesting is which groups stand in which. It has no circle.
type nesting map[string][]string

// admit says whether member may be put into group.
func (n nesting) admit(group, member string) error {
	if group == member || n.contains(member, group, make(map[string]bool)) {
		return fault.FailedPrecondition("the group would contain itself")
	}
	outer := make(nesting)
	for g, members := range n {
		for _, m := range members {
			outer[m] = append(outer[m], g)
		}
	}
	if above, below := outer.depth(group, make(map[string]int)), n.depth(member, make(map[string]int)); above+below > MaxNesting {
		return fault.FailedPrecondition("groups nest at most %d deep, and this would be %d", MaxNesting, above+below)
	}
	return nil
}

// contains reports whether inner stands somewhere in group. seen makes it linear.
func (n nesting) contains(group, inner string, seen map[string]bool) bool {
	if seen[group] {
		return false
	}
	seen[group] = true
	for _, m := range n[group] {
		if m == inner || n.contains(m, inner, seen) {
			return true
		}
	}
	return false
}

// depth is the length of the longest chain that begins with group, itself counted.
func (n nesting) depth(group string, known map[string]int) int {
	if d, ok := known[group]; ok {
		return d
	}
	deepest := 0
	for _, m := range n[group] {
		deepest = max(deepest, n.depth(m, known))
	}
	known[group] = deepest + 1
	return deepest + 1
}
