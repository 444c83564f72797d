package store

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store/db"
)

// Kind of a node of the tree, as its collection is called in names.
type Kind string

// The kinds of node.
const (
	Subscription  Kind = "subscriptions"
	ResourceGroup Kind = "resourceGroups"
	Workspace     Kind = "workspaces"
)

// State of a node.
type State int64

// The states of a node. Subscriptions and groups are always Active.
const (
	Creating State = iota + 1
	Active
	Deleting
	// Abandoned was Creating and is being taken back; it was never Active.
	Abandoned
)

// Body is what a tenant wrote of a node, beside its id.
type Body struct {
	DisplayName string            `json:"display_name,omitempty"`
	Description string            `json:"description,omitempty"`
	Region      string            `json:"region,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
}

// Scope is a node of the tree.
type Scope struct {
	UID, ParentUID   string // ParentUID is "" at the top
	Kind             Kind
	ID               string // the last segment of the name
	State            State
	ManagedIdentity  string
	Revision         int64
	Created, Updated time.Time
	CreatedBy        string
	RemovedBy        string

	body []byte
}

// Cursor is the place of the node in a list.
func (s Scope) Cursor() Cursor { return Cursor{s.Created.UnixMicro(), s.UID} }

// BodyOwner is whose key a node's body is under. The prefix keeps it apart from the workspace's key that comes from keyvault.
func BodyOwner(kind Kind, uid string) string {
	if kind == Workspace {
		return "own." + uid
	}
	return envelope.ServiceOwner
}

// SealBody makes the ciphertext of a body, for AddScope and SetBody. It must be called outside a transaction.
func (s *Store) SealBody(ctx context.Context, kind Kind, uid string, b Body) ([]byte, error) {
	key, err := s.own.Key(ctx, BodyOwner(kind, uid))
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(b)
	if err != nil {
		return nil, fault.Internal(err, "a description could not be encoded")
	}
	return key.Seal(bodyAAD(uid), plain)
}

// Body opens what the tenant wrote. It must be called outside a transaction.
func (s *Store) Body(ctx context.Context, sc Scope) (b Body, err error) {
	key, err := s.own.Key(ctx, BodyOwner(sc.Kind, sc.UID))
	if err != nil {
		return b, err
	}
	plain, err := key.Open(bodyAAD(sc.UID), sc.body)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(plain, &b); err != nil {
		return b, damaged("description")
	}
	return b, nil
}

// DestroyKey destroys the key that a workspace's body is under, as part of its removal. ForgetKey follows once that is committed.
func (s *Store) DestroyKey(ctx context.Context, t *Tx, uid string) error {
	return s.own.DestroyIn(ctx, t.raw, BodyOwner(Workspace, uid))
}

// ForgetKey drops a destroyed key from memory, and takes it out of the log of the database.
func (s *Store) ForgetKey(ctx context.Context, uid string) error {
	s.own.Forget(BodyOwner(Workspace, uid))
	return s.db.Scrub(ctx)
}

func (t *Tx) mac(kind Kind, parent, id string) []byte {
	return t.key.MAC("scope/"+string(kind), parent, id)
}

func (t *Tx) scope(row db.Scope) (Scope, error) {
	id, err := t.key.OpenString(nameAAD(row.UID), row.Name)
	if err != nil {
		return Scope{}, err
	}
	return Scope{
		UID: row.UID, ParentUID: row.ParentUID, Kind: Kind(row.Kind), ID: id, State: State(row.State), ManagedIdentity: row.ManagedIdentity, Revision: row.Revision,
		Created: time.UnixMicro(row.CreateTime), Updated: time.UnixMicro(row.UpdateTime), CreatedBy: row.CreatedBy, RemovedBy: row.RemovedBy, body: row.Body,
	}, nil
}

// AddScope puts a node into the tree. False means that its parent has one of that id already. Of s it takes UID, ParentUID, Kind, ID,
// State and CreatedBy.
func (t *Tx) AddScope(ctx context.Context, s Scope, body []byte) (bool, error) {
	name, err := t.key.SealString(nameAAD(s.UID), s.ID)
	if err != nil {
		return false, err
	}
	n, err := t.q.InsertScope(ctx, db.InsertScopeParams{
		UID: s.UID, Kind: string(s.Kind), ParentUID: s.ParentUID, Name: name, NameMac: t.mac(s.Kind, s.ParentUID, s.ID),
		State: int64(s.State), Body: body, CreateTime: t.now.UnixMicro(), CreatedBy: s.CreatedBy,
	})
	if err != nil || n == 0 {
		return false, sqldb.Fault(err)
	}
	return true, t.noteScope(ctx, s, s.State == Active)
}

// GetScope finds a node by its uid; NOT_FOUND if there is none.
func (t *Tx) GetScope(ctx context.Context, uid string) (Scope, error) {
	row, err := t.q.GetScope(ctx, uid)
	if err != nil {
		return Scope{}, sqldb.Fault(err)
	}
	return t.scope(row)
}

// FindScope finds a node by its id below its parent; NOT_FOUND if there is none.
func (t *Tx) FindScope(ctx context.Context, kind Kind, parent, id string) (Scope, error) {
	row, err := t.q.FindScope(ctx, db.FindScopeParams{ParentUID: parent, NameMac: t.mac(kind, parent, id)})
	if err != nil {
		return Scope{}, sqldb.Fault(err)
	}
	return t.scope(row)
}

// Path is the full name of a node.
func (t *Tx) Path(ctx context.Context, s Scope) (string, error) {
	segments := []string{string(s.Kind) + "/" + s.ID}
	for depth := 0; s.ParentUID != ""; depth++ {
		var err error
		if s, err = t.GetScope(ctx, s.ParentUID); err != nil || depth > 2 {
			return "", damaged("place in the tree")
		}
		segments = append([]string{string(s.Kind) + "/" + s.ID}, segments...)
	}
	return strings.Join(segments, "/"), nil
}

// noteScope puts a node as it is now into the change.
func (t *Tx) noteScope(ctx context.Context, s Scope, active bool) error {
	name, err := t.Path(ctx, s)
	if err != nil {
		return err
	}
	t.delta.Scopes = append(t.delta.Scopes, &workspacev1.ScopeRecord{Uid: s.UID, Name: name, ParentUid: s.ParentUID, Active: active})
	return nil
}

// Move takes a node from one state to another. False means that it is not in the first one any more.
func (t *Tx) Move(ctx context.Context, s Scope, from, to State, by string) (bool, error) {
	n, err := t.q.SetScopeState(ctx, db.SetScopeStateParams{UID: s.UID, Prior: int64(from), Next: int64(to), UpdateTime: t.now.UnixMicro(), RemovedBy: by})
	if err != nil || n == 0 {
		return false, sqldb.Fault(err)
	}
	return true, t.noteScope(ctx, s, to == Active)
}

// Activate ends the making of a workspace. False means that it is not being made any more.
func (t *Tx) Activate(ctx context.Context, s Scope, managedIdentity string) (bool, error) {
	n, err := t.q.ActivateScope(ctx, db.ActivateScopeParams{UID: s.UID, ManagedIdentity: managedIdentity, UpdateTime: t.now.UnixMicro()})
	if err != nil || n == 0 {
		return false, sqldb.Fault(err)
	}
	return true, t.noteScope(ctx, s, true)
}

// SetBody replaces what the tenant wrote of a node. False means that the node has changed since it was read.
func (t *Tx) SetBody(ctx context.Context, s Scope, body []byte) (bool, error) {
	n, err := t.q.SetScopeBody(ctx, db.SetScopeBodyParams{UID: s.UID, Revision: s.Revision, Body: body, UpdateTime: t.now.UnixMicro()})
	return n > 0, sqldb.Fault(err)
}

// RemoveScope takes a node out of the tree, with the assignments at it, and those of its managed identity anywhere.
func (t *Tx) RemoveScope(ctx context.Context, s Scope) error {
	gone, err := t.AssignmentsAt(ctx, s.UID)
	if err != nil {
		return err
	}
	if s.ManagedIdentity != "" {
		more, err := t.q.ListAssignmentsOf(ctx, s.ManagedIdentity)
		if err != nil {
			return sqldb.Fault(err)
		}
		for _, row := range more {
			if row.ScopeUID != s.UID {
				gone = append(gone, assignment(row))
			}
		}
	}
	for _, a := range gone {
		if err := t.RemoveAssignment(ctx, a); err != nil {
			return err
		}
	}
	n, err := t.q.DeleteScope(ctx, s.UID)
	if err != nil || n == 0 {
		return sqldb.Fault(err)
	}
	t.delta.Removed = append(t.delta.Removed, s.UID)
	return nil
}

// Children is the number of nodes directly below one.
func (t *Tx) Children(ctx context.Context, uid string) (int64, error) {
	n, err := t.q.CountChildren(ctx, uid)
	return n, sqldb.Fault(err)
}

// Count is the number of nodes of a kind.
func (t *Tx) Count(ctx context.Context, kind Kind) (int64, error) {
	n, err := t.q.CountKind(ctx, string(kind))
	return n, sqldb.Fault(err)
}

// Unsettled lists what is neither Active nor gone.
func (t *Tx) Unsettled(ctx context.Context) ([]Scope, error) {
	rows, err := t.q.ListUnsettled(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return t.scopes(rows)
}

func (t *Tx) scopes(rows []db.Scope) ([]Scope, error) {
	out := make([]Scope, 0, len(rows))
	for _, row := range rows {
		s, err := t.scope(row)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// List gives nodes of a kind in the order of making: all of them, or those below a parent, which for workspaces is a resource group
// or a subscription.
func (t *Tx) List(ctx context.Context, kind Kind, parent *Scope, after Cursor, limit int) ([]Scope, error) {
	var rows []db.Scope
	var err error
	switch {
	case parent == nil:
		rows, err = t.q.ListScopes(ctx, db.ListScopesParams{Kind: string(kind), CreateTime: after.Time, UID: after.UID, Column4: int64(limit)})
	case kind == Workspace && parent.Kind == Subscription:
		rows, err = t.q.ListScopesTwoBelow(ctx, db.ListScopesTwoBelowParams{ParentUID: parent.UID, Kind: string(kind), CreateTime: after.Time, UID: after.UID, Column5: int64(limit)})
	default:
		rows, err = t.q.ListScopesBelow(ctx, db.ListScopesBelowParams{ParentUID: parent.UID, Kind: string(kind), CreateTime: after.Time, UID: after.UID, Column5: int64(limit)})
	}
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return t.scopes(rows)
}

// Same reports whether a request_id stands for the same content, and of which workspace. ok is false where it is new.
func (t *Tx) Same(ctx context.Context, principal, requestID, content string) (workspace string, same, ok bool, err error) {
	row, err := t.q.GetRequest(ctx, db.GetRequestParams{PrincipalUID: principal, RequestMac: t.key.MAC("request", principal, requestID)})
	if err = sqldb.Fault(err); fault.Is(err, codes.NotFound) {
		return "", false, false, nil
	} else if err != nil {
		return "", false, false, err
	}
	return row.WorkspaceUID, string(row.ContentMac) == string(t.key.MAC("request_content", principal, content)), true, nil
}

// Remember keeps what a request_id stands for.
func (t *Tx) Remember(ctx context.Context, principal, requestID, content, workspace string) error {
	return sqldb.Fault(t.q.InsertRequest(ctx, db.InsertRequestParams{
		PrincipalUID: principal, RequestMac: t.key.MAC("request", principal, requestID), ContentMac: t.key.MAC("request_content", principal, content),
		WorkspaceUID: workspace, CreateTime: t.now.UnixMicro(),
	}))
}

// ForgetRequests forgets the request_ids of a workspace that was never made.
func (t *Tx) ForgetRequests(ctx context.Context, workspace string) error {
	return sqldb.Fault(t.q.DeleteRequestsOf(ctx, workspace))
}
