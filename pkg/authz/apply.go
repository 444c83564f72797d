package authz

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// stream follows the order of one stream's messages.
type stream struct {
	seq     uint64
	synced  bool // a full state has come, and nothing was missed since
	loading bool // a full state is coming
}

// What a message is for the stream.
type step int

const (
	alive  step = iota // a heartbeat at the present state
	part               // of a full state that goes on
	whole              // the last part of a full state
	change             // a delta
)

var errOrder = errors.New("authz: a message is missing or out of order; start the stream over")

// next says what a message is, or that it cannot be taken; then only a message with reset helps.
//
// A full state is one message with reset, or several of which the last has complete. Each of them has the number of the
// state, or counts up by one; each change after it counts up by one; a heartbeat has the number of the message before it.
func (s *stream) next(seq uint64, reset, complete, heartbeat bool) (step, error) {
	was := *s
	*s = stream{} // until it is known to be right
	switch {
	case reset && heartbeat:
		return 0, errOrder
	case reset:
		*s = stream{seq: seq, synced: complete, loading: !complete}
		if complete {
			return whole, nil
		}
		return part, nil
	case was.loading && heartbeat && seq == was.seq:
		*s = was
		return part, nil
	case was.loading && !heartbeat && (seq == was.seq || seq == was.seq+1):
		*s = stream{seq: seq, synced: complete, loading: !complete}
		if complete {
			return whole, nil
		}
		return part, nil
	case was.synced && heartbeat && seq == was.seq:
		*s = was
		return alive, nil
	case was.synced && !heartbeat && seq == was.seq+1:
		*s = stream{seq: seq, synced: true}
		return change, nil
	}
	return 0, errOrder
}

// ApplyAuthorization takes one message of workspace's stream, in order. When it has returned without an error, decisions are
// made with it. An error means that the message was not taken and that the stream must be started over; the state before it
// stays, to go stale.
func (e *Engine) ApplyAuthorization(m *workspacev1.WatchAuthorizationResponse) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.cfg.Now()
	st, err := e.authorization.next(m.GetSeq(), m.GetReset_(), m.GetComplete(), m.GetHeartbeat())
	if err != nil {
		e.loadingAuthorization = nil
		return err
	}
	switch st {
	case alive:
		e.seen.authorization.Store(&now)
		return nil
	case part, whole:
		if m.GetReset_() {
			e.loadingAuthorization = nil
		}
		e.loadingAuthorization = append(e.loadingAuthorization, m)
		if st == part {
			return nil
		}
	case change:
		e.loadingAuthorization = []*workspacev1.WatchAuthorizationResponse{m}
	}
	msgs := e.loadingAuthorization
	e.loadingAuthorization = nil
	d := e.state.Load().edit()
	if st == whole {
		d.forgetAuthorization()
	}
	if err := d.authorization(msgs); err != nil {
		e.authorization = stream{}
		return err
	}
	next := d.done()
	next.authorization = true
	e.publish(next)
	e.seen.authorization.Store(&now)
	e.applied(Workspace, m.GetSeq())
	return nil
}

// forgetAuthorization empties what workspace has told, and keeps what identity has.
func (d *draft) forgetAuthorization() {
	d.nodes.clear()
	d.names.clear()
	d.roles.clear()
	d.assignments.clear()
	for id, old := range d.from.who.all() {
		if len(old.assignments) > 0 {
			d.entry(id).assignments = nil
		}
	}
	d.grants = true
}

// authorization works the records of one change, or of a full state, into the draft: removals first, then scopes from the top
// of the tree down, roles and assignments.
func (d *draft) authorization(msgs []*workspacev1.WatchAuthorizationResponse) error {
	var scopes []*workspacev1.ScopeRecord
	removed := map[string]bool{}
	for _, m := range msgs {
		for _, uid := range m.GetRemoved() {
			if uid == "" {
				return errors.New("authz: a removed uid is empty")
			}
			removed[uid] = true
			d.remove(uid)
		}
		scopes = append(scopes, m.GetScopes()...)
	}
	type named struct {
		rec  *workspacev1.ScopeRecord
		name resource.Name
	}
	ordered := make([]named, 0, len(scopes))
	for _, rec := range scopes {
		name, err := resource.Parse(rec.GetName())
		if err != nil {
			return fmt.Errorf("authz: scope %q: %w", rec.GetUid(), err)
		}
		ordered = append(ordered, named{rec, name})
	}
	slices.SortStableFunc(ordered, func(a, b named) int { return cmp.Compare(a.name.Kind(), b.name.Kind()) })
	for _, n := range ordered {
		if removed[n.rec.GetUid()] {
			return fmt.Errorf("authz: scope %q is there and removed", n.rec.GetUid())
		}
		if err := d.scope(n.rec, n.name); err != nil {
			return fmt.Errorf("authz: scope %q: %w", n.rec.GetUid(), err)
		}
	}
	for _, m := range msgs {
		for _, def := range m.GetRoles() {
			if def.GetName() == "" {
				return errors.New("authz: a role has no name")
			}
			d.roles.set(def.GetName(), compile(def))
			d.grants = true
		}
		for _, rec := range m.GetAssignments() {
			switch {
			case rec.GetUid() == "" || rec.GetRole() == "" || rec.GetPrincipalUid() == "":
				return fmt.Errorf("authz: assignment %q lacks its uid, role or principal", rec.GetUid())
			case removed[rec.GetUid()]:
				return fmt.Errorf("authz: assignment %q is there and removed", rec.GetUid())
			}
			d.assign(rec)
		}
	}
	return nil
}

// scope adds a scope or changes whether it is active; nothing else of it ever changes.
func (d *draft) scope(rec *workspacev1.ScopeRecord, name resource.Name) error {
	uid := rec.GetUid()
	switch name.Kind() {
	case resource.KindSubscription, resource.KindResourceGroup, resource.KindWorkspace:
	default:
		return fmt.Errorf("%q is not a scope of the tree", name)
	}
	parent := root
	if rec.GetParentUid() != "" {
		var ok bool
		if parent, ok = d.nodes.get(rec.GetParentUid()); !ok {
			return errors.New("its parent is not known")
		}
	}
	switch {
	case uid == "":
		return errors.New("it has no uid")
	case parent.name != name.Parent():
		return errors.New("its parent has another name than its own name says")
	}
	n := &node{uid: uid, parent: parent.uid, name: name, depth: parent.depth + 1, active: rec.GetActive(), live: rec.GetActive() && parent.live}
	n.up[0] = uid
	copy(n.up[1:], parent.path())
	old, known := d.nodes.get(uid)
	if known && (old.name != n.name || old.parent != n.parent) {
		return errors.New("it has changed its name or parent")
	}
	if twin, ok := d.names.get(name.String()); ok && twin.uid != uid {
		return fmt.Errorf("its name belongs to %q", twin.uid)
	}
	d.put(n)
	if known && old.active != n.active {
		d.enliven(n)
	}
	return nil
}

func values[K, V any](seq iter.Seq2[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range seq {
			if !yield(v) {
				return
			}
		}
	}
}
