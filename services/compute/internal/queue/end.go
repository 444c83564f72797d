package queue

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Finish puts a run into one of its last states.
func Finish(r *store.Run, state computev1.Run_State, message string, reason faultv1.Reason, now time.Time) {
	r.State, r.Ended, r.DeliverUntil = state, now, time.Time{}
	r.Outcome.State, r.Outcome.Message = state, message
	if reason != faultv1.Reason_REASON_UNSPECIFIED {
		r.Outcome.Reason = reason.String()
	}
}

// End ends a run in the platform's own name, and what is left of its agent. A run that has ended meanwhile stays as it is.
func (q *Queue) End(ctx context.Context, uid string, state computev1.Run_State, message string, reason faultv1.Reason) {
	q.endIf(ctx, uid, func(*store.Run) bool { return true }, 0, state, message, reason)
}

// endIf is End for a run of which still holds, asked in the transaction that ends it. Its agent, if it has one, may deliver for as long as grace.
func (q *Queue) endIf(ctx context.Context, uid string, still func(r *store.Run) bool, grace time.Duration, state computev1.Run_State, message string, reason faultv1.Reason) {
	errOver := errors.New("ended, or not to be ended")
	r, err := q.cfg.Store.Update(context.WithoutCancel(ctx), uid, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.HasEnded() || !still(r) {
			return errOver
		}
		state, message, reason := state, message, reason
		if state == computev1.Run_STATE_LOST && q.over(r.Submitter, r.Created) { // its agent was refused since, and has given up
			state, message, reason = computev1.Run_STATE_FAILED, accountOver, faultv1.Reason_RUN_SUBMITTER_DENIED
		}
		now, before := q.cfg.Now(), r.DeliverUntil
		Finish(r, state, message, reason, now)
		if state == computev1.Run_STATE_LOST && grace > 0 && r.AgentKey != "" {
			if r.DeliverUntil = now.Add(grace); r.Cancel && before.Before(r.DeliverUntil) {
				r.DeliverUntil = before // it was asked to stop, and gets no more time by being silent
			}
		}
		r.Stopped = !r.Delivers(now)
		return q.Event(ctx, tx, r, "end")
	}, nil)
	if err != nil {
		if !errors.Is(err, errOver) {
			q.cfg.Logger.Error("a run could not be ended", "run_uid", uid, "error", err)
		}
		return
	}
	if !r.Stopped {
		return // its agent may come back, and is seen to by Tend
	}
	// Not before: what was refused a leader of yesterday kills nothing. Agents of other machines are seen to there.
	q.cfg.Driver.Kill(r.UID)
	q.Ended(r)
}

const accountOver = "the account that submitted the run was disabled or deleted"

// over reports whether an account was disabled or deleted at some time after since. What was asked for before that is not taken up again
// when it is enabled.
func (q *Queue) over(account string, since time.Time) bool {
	return q.cfg.Engine.Revocations().Revoked(account, "", "", "", nil, since)
}

// EndOfAccounts ends what waits and what goes on in the name of accounts that were disabled or deleted.
func (q *Queue) EndOfAccounts(ctx context.Context) error {
	if err := q.cfg.Engine.Fresh(q.cfg.Now()); err != nil {
		return err
	}
	standing, err := q.cfg.Store.NotEnded(ctx)
	if err != nil {
		return err
	}
	for _, r := range standing {
		if q.over(r.Submitter, r.Created) {
			q.End(ctx, r.UID, computev1.Run_STATE_FAILED, accountOver, faultv1.Reason_RUN_SUBMITTER_DENIED)
		}
	}
	return nil
}

// Ended cleans up after a run that has ended, if its agent was of this machine.
func (q *Queue) Ended(r *store.Run) { q.cfg.Driver.Clean(r.UID) }

// RevokeEnded kills the tokens of runs that have ended, and limits those of runs that may only deliver, until identity has said that it is done.
func (q *Queue) RevokeEnded(ctx context.Context) error {
	list, err := q.cfg.Store.NotRevoked(ctx, q.cfg.Now())
	if err != nil {
		return err
	}
	for _, r := range list {
		if err := q.revoke(ctx, r); err != nil { // a note that is missing too: who leads no more stops here
			return err
		}
	}
	return nil
}

// noteTime bounds a change of one row.
const noteTime = 5 * time.Second

// Revoke kills the tokens of a run that has ended. Those of one whose agent may still deliver open nothing else from then on, and are killed
// when that time is over. Its error says that this is not known to be so everywhere.
func (q *Queue) Revoke(ctx context.Context, r *store.Run) error {
	if err := q.revoke(ctx, r); err != nil && !errors.Is(err, errNotNoted) {
		return err
	} else if err != nil {
		// It is so all the same: identity is told once more.
		q.cfg.Logger.Warn("what identity was told about a run's tokens could not be noted yet", "run_uid", r.UID, "error", err)
	}
	return nil
}

// errNotNoted says that identity has done what it was asked for, and only the note of it is missing.
var errNotNoted = errors.New("not noted")

func (q *Queue) revoke(ctx context.Context, r *store.Run) error {
	req, deliver := &identityv1.RevokeRunRequest{RunUid: r.UID, WorkspaceUid: r.Workspace}, r.MayDeliver(q.cfg.Now())
	if deliver {
		req.DeliverUntil = timestamppb.New(r.DeliverUntil)
	}
	if _, err := q.cfg.Tokens.RevokeRun(ctx, req); err != nil {
		return fault.FromStatus(err)
	}
	noting := ctx
	if rpc.From(ctx).Claims != nil {
		// The call may be the agent's, by the token that is dead now. What is noted rests on nobody's right, so it is noted outside of the call.
		var cancel context.CancelFunc
		noting, cancel = context.WithTimeout(context.Background(), noteTime)
		defer cancel()
	}
	if err := q.cfg.Store.MarkTold(noting, r.UID, deliver); err != nil {
		return errors.Join(errNotNoted, err)
	}
	return nil
}

// Cancel asks a run to stop, or ends it if it has not started. What has ended, or was asked before, is given back as it is.
func (q *Queue) Cancel(ctx context.Context, uid string, details ...string) (*store.Run, error) {
	var as *store.Run
	errNothing := errors.New("nothing to cancel")
	r, err := q.cfg.Store.Update(ctx, uid, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		switch {
		case r.HasEnded() || r.Cancel:
			as = r
			return errNothing
		case r.State == computev1.Run_STATE_QUEUED:
			Finish(r, computev1.Run_STATE_CANCELED, "cancelled before it started", faultv1.Reason_REASON_UNSPECIFIED, q.cfg.Now())
		default:
			q.stop(r)
		}
		return nil
	}, view.Record(details...))
	if errors.Is(err, errNothing) {
		return as, nil
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// stop notes that a run is to end. From then on its agent has the time to deliver, and no other right.
func (q *Queue) stop(r *store.Run) {
	now := q.cfg.Now()
	r.Cancel, r.CanceledAt, r.DeliverUntil = true, now, now.Add(q.cfg.CancelGrace)
}

// Event records what the platform does with a run, in the submitter's name, in the transaction of the change.
func (q *Queue) Event(ctx context.Context, tx *sqldb.Tx, r *store.Run, what string) error {
	name, err := resource.Parse(r.Name())
	if err != nil {
		return err
	}
	scope, _ := q.cfg.Engine.Resolve(name)
	return q.cfg.Outbox.Append(ctx, tx, &audit.Event{
		Uid: resource.NewUID("evt"), Time: timestamppb.New(q.cfg.Now()), Service: "compute", Method: "/compute/runs/" + what, Action: "compute/runs/" + what,
		Scope: r.Name(), ScopeUid: r.UID, Principal: r.Submitter, Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: codes.OK.String(), Count: 1,
		RunUid: r.UID, WorkspaceUid: r.Workspace, ResourceGroupUid: scope.ResourceGroupUID, SubscriptionUid: scope.SubscriptionUID,
		Details: map[string]string{"state": r.State.String(), "reason": r.Outcome.GetReason()},
	})
}
