package workspace

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

const (
	// undoWithin bounds the taking back of what could not be made; Run goes on where it was not enough.
	undoWithin = 20 * time.Second
	// orphanAfter is from when a workspace that another process is making or removing is taken for forgotten. The call that does it ends
	// after 60 s.
	orphanAfter = 90 * time.Second
)

// creation is a workspace that is to be made.
type creation struct {
	scope              store.Scope
	body               store.Body
	parent             string // name of the resource group
	requestID, content string
	ownerAbove         bool // the creator may give roles in the group
}

// create makes a workspace: a row that nobody can reach, then the parts at the peers, then everything becomes visible in one
// transaction with its record. If a part fails, those before it are taken back and its error is the answer.
func (s *Service) create(ctx context.Context, in creation) (store.Scope, error) {
	sc := in.scope
	defer s.claim(sc.UID)()
	known, err := s.begin(ctx, in)
	if err != nil || known.UID != "" {
		return known, err
	}
	identity, err := s.cfg.Identity.CreateManagedIdentity(ctx, &identityv1.CreateManagedIdentityRequest{WorkspaceUid: sc.UID, DisplayName: sc.ID})
	if err != nil {
		return s.giveUp(ctx, sc, fault.FromStatus(err))
	}
	if _, err := s.cfg.Vaults.CreateVault(ctx, &keyvaultv1.CreateVaultRequest{WorkspaceUid: sc.UID}); err != nil {
		return s.giveUp(ctx, sc, fault.FromStatus(err))
	}
	call := rpc.From(ctx)
	err = s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		active, err := t.Activate(ctx, sc, identity.GetUid())
		if err != nil {
			return err
		}
		if !active {
			return fault.Aborted("the workspace was given up while it was made; repeat the call")
		}
		// B4, the narrow choice: the identity may work in its workspace and nowhere else.
		if _, _, err := t.Assign(ctx, sc.UID, authz.Contributor, identity.GetUid(), ""); err != nil {
			return err
		}
		if !in.ownerAbove {
			if _, _, err := t.Assign(ctx, sc.UID, authz.Owner, call.Principal, ""); err != nil {
				return err
			}
		}
		if sc, err = t.GetScope(ctx, sc.UID); err != nil {
			return err
		}
		return call.Audit(ctx, t.Raw(), "id", sc.ID, "uid", sc.UID, "managed_identity", identity.GetUid())
	})
	if err != nil {
		return s.giveUp(ctx, sc, err)
	}
	return sc, nil
}

// begin stores the row, or answers a request that was made before.
func (s *Service) begin(ctx context.Context, in creation) (known store.Scope, err error) {
	sealed, err := s.store.SealBody(ctx, store.Workspace, in.scope.UID, in.body)
	if err != nil {
		return known, err
	}
	err = s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		if in.requestID != "" {
			uid, same, ok, err := t.Same(ctx, in.scope.CreatedBy, in.requestID, in.content)
			if err != nil {
				return err
			}
			if ok {
				known, err = s.replay(ctx, t, uid, same)
				return err
			}
		}
		if err := parent(ctx, t, in.scope.ParentUID, in.parent); err != nil {
			return err
		}
		added, err := t.AddScope(ctx, in.scope, sealed)
		if err != nil {
			return err
		}
		if !added {
			return taken(ctx, t, in.scope)
		}
		if in.requestID == "" {
			return nil
		}
		return t.Remember(ctx, in.scope.CreatedBy, in.requestID, in.content, in.scope.UID)
	})
	if err != nil || known.UID != "" {
		// The key of a workspace that was not made; without it nothing is lost but a row.
		if e := s.cfg.Own.Destroy(context.WithoutCancel(ctx), store.BodyOwner(store.Workspace, in.scope.UID)); e != nil {
			s.cfg.Logger.WarnContext(ctx, "the key of a workspace that was not made could not be destroyed", "error", e)
		}
	}
	return known, err
}

// taken says why a name cannot be had.
func taken(ctx context.Context, t *store.Tx, want store.Scope) error {
	there, err := t.FindScope(ctx, want.Kind, want.ParentUID, want.ID)
	if err != nil {
		return err
	}
	if there.State == store.Deleting || there.State == store.Abandoned {
		return fault.Aborted("a workspace %q is still being removed there; repeat the call in a moment", want.ID).Retry(time.Second)
	}
	return exists(want.ID)
}

// claim keeps Run away from a workspace that a call of this process is making or removing.
func (s *Service) claim(uid string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims[uid]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.claims[uid]--; s.claims[uid] == 0 {
			delete(s.claims, uid)
		}
	}
}

// giveUp takes back what was made of a workspace, and returns the cause. If the workspace turns out to be whole, because only the
// answer of the last commit was lost, it is returned instead.
func (s *Service) giveUp(ctx context.Context, sc store.Scope, cause error) (store.Scope, error) {
	// Whoever asked may be gone, and the deadline may be why.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	whole, err := s.abandon(ctx, sc, anybody)
	if err == nil && whole.UID != "" {
		return whole, nil
	}
	if err == nil {
		sc.State = store.Abandoned
		err = s.undo(ctx, sc, nil)
	}
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "what was made of a workspace is not taken back yet; it is tried again", "workspace_uid", sc.UID, "error", err)
	}
	return store.Scope{}, cause
}

// check says in a transaction whether who opened it may write.
type check func(ctx context.Context, tx *sqldb.Tx) error

// anybody is the check of a call: what it writes it writes as any instance may.
func anybody(context.Context, *sqldb.Tx) error { return nil }

// abandon stops the making of a workspace for good. If it was active already, that is returned. It can be repeated.
func (s *Service) abandon(ctx context.Context, sc store.Scope, may check) (whole store.Scope, err error) {
	err = s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		if err := may(ctx, t.Raw()); err != nil {
			return err
		}
		now, err := t.GetScope(ctx, sc.UID)
		if err != nil {
			return err
		}
		if now.State == store.Active {
			whole = now
			return nil
		}
		_, err = t.Move(ctx, sc, store.Creating, store.Abandoned, "")
		return err
	})
	return whole, err
}

// undo takes back a workspace that was never active. Every step can be repeated.
func (s *Service) undo(ctx context.Context, sc store.Scope, record func(context.Context, *store.Tx, store.Scope) error) error {
	if _, err := s.cfg.Vaults.DeleteVault(ctx, &keyvaultv1.DeleteVaultRequest{WorkspaceUid: sc.UID}); err != nil {
		return fault.FromStatus(err)
	}
	if _, err := s.cfg.Identity.DeleteManagedIdentity(ctx, &identityv1.DeleteManagedIdentityRequest{WorkspaceUid: sc.UID}); err != nil {
		return fault.FromStatus(err)
	}
	return s.erase(ctx, sc, record)
}

// deleteWorkspace removes an active workspace, or goes on with a removal that has begun.
func (s *Service) deleteWorkspace(ctx context.Context, sc store.Scope) error {
	call := rpc.From(ctx)
	// Whoever finishes a removal writes its record; this call is still there to write its own, with who asked for it and from where.
	defer s.claim(sc.UID)()
	err := s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		now, err := t.GetScope(ctx, sc.UID)
		if err != nil {
			return err
		}
		switch sc = now; now.State {
		case store.Active:
			_, err = t.Move(ctx, sc, store.Active, store.Deleting, call.Principal)
			sc.State, sc.RemovedBy = store.Deleting, call.Principal
			return err
		case store.Deleting:
			return nil
		}
		return fault.Aborted("the workspace is still being made; repeat the call in a moment").Retry(time.Second)
	})
	if fault.Is(err, codes.NotFound) {
		return nil // another call was faster
	}
	if err != nil {
		return err
	}
	// Compute may refuse while runs are going, and has then changed nothing: the workspace stays.
	if err := s.purgeRuns(ctx, sc); fault.Is(err, codes.FailedPrecondition) {
		if e := s.revive(ctx, sc); e != nil {
			return errors.Join(err, e)
		}
		return err
	} else if err != nil {
		return err
	}
	return s.remove(ctx, sc, func(ctx context.Context, t *store.Tx, sc store.Scope) error {
		return call.Audit(ctx, t.Raw(), "uid", sc.UID)
	})
}

func (s *Service) purgeRuns(ctx context.Context, sc store.Scope) error {
	if _, err := s.cfg.Runs.PurgeWorkspace(ctx, &computev1.PurgeWorkspaceRequest{WorkspaceUid: sc.UID}); err != nil {
		return fault.FromStatus(err)
	}
	return nil
}

// revive takes back the beginning of a removal.
func (s *Service) revive(ctx context.Context, sc store.Scope) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	return s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		_, err := t.Move(ctx, sc, store.Deleting, store.Active, "")
		return err
	})
}

// remove takes everything of a workspace away, the row last. Endpoints go before the runs that answer for them, so that nobody starts
// those anew. Every step can be repeated, so it can begin anew wherever it was broken off.
func (s *Service) remove(ctx context.Context, sc store.Scope, record func(context.Context, *store.Tx, store.Scope) error) error {
	if _, err := s.cfg.Endpoints.PurgeWorkspace(ctx, &inferencev1.PurgeWorkspaceRequest{WorkspaceUid: sc.UID}); err != nil {
		return fault.FromStatus(err)
	}
	if err := s.purgeRuns(ctx, sc); err != nil {
		return err
	}
	if _, err := s.cfg.Ingest.PurgeWorkspace(ctx, &telemetryv1.PurgeWorkspaceRequest{WorkspaceUid: sc.UID}); err != nil {
		return fault.FromStatus(err)
	}
	if err := s.cfg.Blobs.DeletePrefix(ctx, sc.UID); err != nil {
		return err
	}
	return s.undo(ctx, sc, record)
}

// erase removes the row and the keys, in one transaction with the record.
func (s *Service) erase(ctx context.Context, sc store.Scope, record func(context.Context, *store.Tx, store.Scope) error) error {
	err := s.change(ctx, func(ctx context.Context, t *store.Tx) error {
		now, err := t.GetScope(ctx, sc.UID)
		if fault.Is(err, codes.NotFound) {
			return nil // it is done
		}
		if err != nil {
			return err
		}
		if record != nil {
			if err := record(ctx, t, now); err != nil {
				return err
			}
		}
		if err := t.RemoveSnapshots(ctx, sc.UID); err != nil {
			return err
		}
		if now.State == store.Abandoned {
			if err := t.ForgetRequests(ctx, sc.UID); err != nil {
				return err
			}
		}
		if err := s.cfg.Keys.DestroyIn(ctx, t.Raw(), sc.UID); err != nil {
			return err
		}
		if err := s.store.DestroyKey(ctx, t, sc.UID); err != nil {
			return err
		}
		return t.RemoveScope(ctx, now)
	})
	if err != nil {
		return err
	}
	s.cfg.Keys.Forget(sc.UID)
	if err := s.store.ForgetKey(ctx, sc.UID); err != nil {
		s.cfg.Logger.WarnContext(ctx, "the log of the database was not emptied after a key was destroyed", "error", err)
	}
	return nil
}

// settle finishes what calls have left: workspaces that nobody makes any more are taken back, removals go on. What it asks of other
// services can be repeated, by whoever; what it writes passes may.
func (s *Service) settle(ctx context.Context, may check) error {
	var open []store.Scope
	err := s.store.Read(ctx, func(ctx context.Context, t *store.Tx) (err error) {
		open, err = t.Unsettled(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var failed []error
	for _, sc := range open {
		if ctx.Err() != nil {
			break
		}
		short, cancel := context.WithTimeout(ctx, undoWithin)
		if err := s.settleOne(short, sc, may); err != nil {
			failed = append(failed, err)
		}
		cancel()
	}
	return errors.Join(failed...)
}

func (s *Service) settleOne(ctx context.Context, sc store.Scope, may check) error {
	led := func(record func(context.Context, *store.Tx, store.Scope) error) func(context.Context, *store.Tx, store.Scope) error {
		return func(ctx context.Context, t *store.Tx, sc store.Scope) error {
			if err := may(ctx, t.Raw()); err != nil {
				return err
			}
			return record(ctx, t, sc)
		}
	}
	switch sc.State {
	case store.Deleting:
		if s.busy(sc, sc.Updated) {
			return nil
		}
		return s.remove(ctx, sc, led(s.recordRemoval))
	case store.Abandoned, store.Creating:
		if s.busy(sc, sc.Created) {
			return nil
		}
		whole, err := s.abandon(ctx, sc, may)
		if err != nil || whole.UID != "" {
			return err
		}
		return s.undo(ctx, sc, led(s.recordRollback))
	}
	return nil
}

// busy reports whether somebody may still be at a workspace since begun, making or removing it. Only one process has a SQLite file; of a
// PostgreSQL schema there may be several.
func (s *Service) busy(sc store.Scope, begun time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claims[sc.UID] > 0 || s.cfg.DB.Dialect() != sqldb.SQLite && s.cfg.Now().Sub(begun) < orphanAfter
}

// recordRemoval is the record of a removal that no call is there for any more.
func (s *Service) recordRemoval(ctx context.Context, t *store.Tx, sc store.Scope) error {
	return s.record(ctx, t, sc, workspacev1.ResourceService_DeleteWorkspace_FullMethodName, "workspace/workspaces/delete", sc.RemovedBy, nil)
}

// recordRollback is the record of a workspace that was begun and is gone.
func (s *Service) recordRollback(ctx context.Context, t *store.Tx, sc store.Scope) error {
	return s.record(ctx, t, sc, workspacev1.ResourceService_CreateWorkspace_FullMethodName, "workspace/workspaces/write", sc.CreatedBy,
		fault.Aborted("the process ended while the workspace was made"))
}

func (s *Service) record(ctx context.Context, t *store.Tx, sc store.Scope, method, action, principal string, cause error) error {
	name, err := t.Path(ctx, sc)
	if err != nil {
		return err
	}
	group, err := t.GetScope(ctx, sc.ParentUID)
	if err != nil {
		return err
	}
	ev := &audit.Event{
		Method: method, Action: action, Scope: name, ScopeUid: sc.UID, Principal: principal, WorkspaceUid: sc.UID,
		ResourceGroupUid: group.UID, SubscriptionUid: group.ParentUID,
		Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: codes.OK.String(), Details: map[string]string{"uid": sc.UID, "finished": "after the call that began it had ended"},
	}
	if cause != nil {
		ev.Result, ev.Code, ev.Reason = telemetryv1.ActivityEvent_RESULT_FAILED, fault.Code(cause).String(), fault.ReasonOf(cause).String()
	}
	return s.cfg.Outbox.Append(ctx, t.Raw(), ev)
}
