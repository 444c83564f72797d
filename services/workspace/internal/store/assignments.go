package store

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store/db"
)

// Assignment gives a principal a role at a scope.
type Assignment struct {
	UID, ScopeUID, Role, Principal string // ScopeUID is "" for the installation
	Created                        time.Time
	CreatedBy                      string
}

// Cursor is the place of the assignment in a list.
func (a Assignment) Cursor() Cursor { return Cursor{a.Created.UnixMicro(), a.UID} }

func assignment(row db.Assignment) Assignment {
	return Assignment{
		UID: row.UID, ScopeUID: row.ScopeUID, Role: row.Role, Principal: row.PrincipalUID,
		Created: time.UnixMicro(row.CreateTime), CreatedBy: row.CreatedBy,
	}
}

func assignments(rows []db.Assignment, err error) ([]Assignment, error) {
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Assignment, 0, len(rows))
	for _, row := range rows {
		out = append(out, assignment(row))
	}
	return out, nil
}

// Assign gives a principal a role. False means that he has it there already.
func (t *Tx) Assign(ctx context.Context, scopeUID, role, principal, by string) (Assignment, bool, error) {
	a := Assignment{UID: resource.NewUID("asg"), ScopeUID: scopeUID, Role: role, Principal: principal, Created: time.UnixMicro(t.now.UnixMicro()), CreatedBy: by}
	n, err := t.q.InsertAssignment(ctx, db.InsertAssignmentParams{
		UID: a.UID, ScopeUID: scopeUID, Role: role, PrincipalUID: principal, CreateTime: t.now.UnixMicro(), CreatedBy: by,
	})
	if err != nil || n == 0 {
		return Assignment{}, false, sqldb.Fault(err)
	}
	t.delta.Assignments = append(t.delta.Assignments, a.record())
	return a, true, nil
}

func (a Assignment) record() *workspacev1.AssignmentRecord {
	return &workspacev1.AssignmentRecord{Uid: a.UID, ScopeUid: a.ScopeUID, Role: a.Role, PrincipalUid: a.Principal}
}

// GetAssignment finds an assignment; NOT_FOUND if there is none.
func (t *Tx) GetAssignment(ctx context.Context, uid string) (Assignment, error) {
	row, err := t.q.GetAssignment(ctx, uid)
	if err != nil {
		return Assignment{}, sqldb.Fault(err)
	}
	return assignment(row), nil
}

// RemoveAssignment takes a role away.
func (t *Tx) RemoveAssignment(ctx context.Context, a Assignment) error {
	n, err := t.q.DeleteAssignment(ctx, a.UID)
	if err != nil || n == 0 {
		return sqldb.Fault(err)
	}
	t.delta.Removed = append(t.delta.Removed, a.UID)
	return nil
}

// AssignmentsAt lists what is assigned at one scope.
func (t *Tx) AssignmentsAt(ctx context.Context, scopeUID string) ([]Assignment, error) {
	return assignments(t.q.ListAssignmentsAt(ctx, scopeUID))
}

// ListAssignments lists what is assigned at any of the scopes, of which there are one to four.
func (t *Tx) ListAssignments(ctx context.Context, scopes []string, after Cursor, limit int) ([]Assignment, error) {
	at := [4]string{scopes[0], scopes[0], scopes[0], scopes[0]}
	copy(at[:], scopes)
	return assignments(t.q.ListAssignments(ctx, db.ListAssignmentsParams{
		ScopeUID: at[0], ScopeUID_2: at[1], ScopeUID_3: at[2], ScopeUID_4: at[3], CreateTime: after.Time, UID: after.UID, Column7: int64(limit),
	}))
}

const (
	// keepChanges is how long a change can be sent on by itself; who was away for longer starts over.
	keepChanges = 10 * time.Minute
	// keepRequests is how long a request_id gives the same answer.
	keepRequests = 24 * time.Hour
	// perMessage bounds how much of a full state stands in one message, and changesAtOnce how many changes are read at once.
	perMessage    = 500
	changesAtOnce = 256
)

// Prune deletes changes and request_ids whose time is over.
func (s *Store) Prune(ctx context.Context, write sqldb.WriteFunc) error {
	return write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		if err := q.DeleteOldChanges(ctx, s.now().Add(-keepChanges).UnixMicro()); err != nil {
			return err
		}
		return q.DeleteOldRequests(ctx, s.now().Add(-keepRequests).UnixMicro())
	})
}

// Node is what the tree knows of a scope.
type Node struct {
	UID, ParentUID, Name string
	Kind                 Kind
	Active               bool
}

// Tree gives every node with its full name, parents first.
func (t *Tx) Tree(ctx context.Context) ([]Node, error) {
	rows, err := t.q.ListTree(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	names := make(map[string]string, len(rows))
	out := make([]Node, 0, len(rows))
	for _, kind := range []Kind{Subscription, ResourceGroup, Workspace} {
		for _, row := range rows {
			if Kind(row.Kind) != kind {
				continue
			}
			id, err := t.key.OpenString(nameAAD(row.UID), row.Name)
			if err != nil {
				return nil, err
			}
			name := string(kind) + "/" + id
			if row.ParentUID != "" {
				above, ok := names[row.ParentUID]
				if !ok {
					return nil, damaged("place in the tree")
				}
				name = above + "/" + name
			}
			names[row.UID] = name
			out = append(out, Node{row.UID, row.ParentUID, name, kind, State(row.State) == Active})
		}
	}
	return out, nil
}

// FullState gives the whole authorization state as the messages of a stream: the first resets, the last is complete.
func (t *Tx) FullState(ctx context.Context, roles []*workspacev1.RoleDefinition) ([]*workspacev1.WatchAuthorizationResponse, error) {
	head, err := t.q.Head(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	nodes, err := t.Tree(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := assignments(t.q.ListAllAssignments(ctx))
	if err != nil {
		return nil, err
	}
	out := []*workspacev1.WatchAuthorizationResponse{{Seq: number(head), Reset_: true, Roles: roles}}
	room := perMessage
	next := func() *workspacev1.WatchAuthorizationResponse {
		if room == 0 {
			out = append(out, &workspacev1.WatchAuthorizationResponse{Seq: number(head)})
			room = perMessage
		}
		room--
		return out[len(out)-1]
	}
	for _, n := range nodes {
		m := next()
		m.Scopes = append(m.Scopes, &workspacev1.ScopeRecord{Uid: n.UID, Name: n.Name, ParentUid: n.ParentUID, Active: n.Active})
	}
	for _, a := range rows {
		m := next()
		m.Assignments = append(m.Assignments, a.record())
	}
	out[len(out)-1].Complete = true
	return out, nil
}

// Changes gives what came after seq, in order, at most some hundreds at once. ok is false if the record of it is gone: the receiver
// needs the full state.
func (t *Tx) Changes(ctx context.Context, seq uint64) (out []*workspacev1.WatchAuthorizationResponse, ok bool, err error) {
	head, err := t.q.Head(ctx)
	if err != nil {
		return nil, false, sqldb.Fault(err)
	}
	if number(head) == seq {
		return nil, true, nil
	}
	rows, err := t.q.ListChanges(ctx, db.ListChangesParams{Seq: int64(seq), Column2: changesAtOnce})
	if err != nil {
		return nil, false, sqldb.Fault(err)
	}
	for i, row := range rows {
		if number(row.Seq) != seq+1+uint64(i) {
			return nil, false, nil
		}
		plain, err := t.key.Open(changeAAD(row.Seq), row.Message)
		if err != nil {
			return nil, false, err
		}
		m := new(workspacev1.WatchAuthorizationResponse)
		if err := proto.Unmarshal(plain, m); err != nil || m.GetSeq() != number(row.Seq) {
			return nil, false, damaged("change of the authorization state")
		}
		out = append(out, m)
	}
	return out, len(out) > 0, nil
}
