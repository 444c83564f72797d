package compute

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// Run carries the queue until ctx ends: it starts what may start, adopts what still runs, and ends what was cancelled, timed out
// or lost.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(max(s.cfg.Heartbeat/4, 50*time.Millisecond))
	defer tick.Stop()
	adopted := false
	for {
		if !adopted {
			adopted = s.adopt(ctx) == nil
		}
		if err := s.startQueued(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("the queue could not be worked on", "error", err)
		}
		if adopted {
			if err := s.watchActive(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("the active runs could not be looked after", "error", err)
			}
			if err := s.revokeEnded(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("tokens of ended runs could not be revoked yet", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.queue:
		case <-tick.C:
		}
	}
}

// adopt takes up, after a start, the runs whose agents have gone on meanwhile. An agent that is there gets the time of a heartbeat to
// say so.
func (s *Service) adopt(ctx context.Context) error {
	active, err := s.store.ActiveUIDs(ctx) // the key of a workspace may not be there yet: its agents are not to be swept away for that
	if err != nil {
		return err
	}
	keep := make(map[string]bool, len(active))
	now := s.cfg.Now()
	for _, uid := range active {
		keep[uid] = true
		if err := s.store.Touch(ctx, uid, now); err != nil {
			return err
		}
		s.cfg.Logger.Info("a run goes on from before", "run_uid", uid, "agent_alive", s.driver.Alive(uid))
	}
	s.driver.Sweep(keep)
	return nil
}

// startQueued starts what waits for local targets, oldest first, as far as there is room. Each target is worked on by itself: what
// is wrong with the runs of one, or how many wait for it, holds up no other.
func (s *Service) startQueued(ctx context.Context) error {
	targets, err := s.store.WaitedFor(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, uid := range targets {
		failed = append(failed, s.startOn(ctx, uid))
	}
	return errors.Join(failed...)
}

// lookahead is how many runs more than there is room for are looked at, should the first ones not be startable.
const lookahead = 16

func (s *Service) startOn(ctx context.Context, uid string) error {
	c, err := s.store.ComputeByUID(ctx, uid)
	gone := fault.Is(err, codes.NotFound)
	if err != nil && !gone || !gone && c.Kind != computev1.Compute_KIND_LOCAL {
		return err
	}
	queued, err := s.store.QueuedOn(ctx, uid, c.MaxRuns+lookahead)
	if err != nil {
		return err
	}
	var failed []error
	for _, r := range queued {
		if gone {
			s.endRun(ctx, r.UID, computev1.Run_STATE_FAILED, "the compute was deleted", faultv1.Reason_RESOURCE_NOT_FOUND)
			continue
		}
		active, err := s.store.ActiveOn(ctx, uid)
		if err != nil {
			return err
		}
		if active >= int64(c.MaxRuns) {
			break
		}
		if err := s.startLocal(ctx, r); err != nil {
			if ctx.Err() != nil {
				return err
			}
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// startLocal hands a run to the driver.
func (s *Service) startLocal(ctx context.Context, r *store.Run) error {
	started, join, err := s.startable(ctx, r)
	if err != nil || started == nil {
		return err
	}
	err = s.driver.Start(ctx, Placement{
		Gateway: s.cfg.Gateway, PublicURL: s.cfg.PublicURL, CAPEM: string(s.cfg.CA), Run: started.Name(), RunUID: started.UID,
		JoinToken: join.GetJoinToken(), HeartbeatMS: s.cfg.Heartbeat.Milliseconds(),
	})
	if err != nil {
		s.cfg.Logger.Error("an agent could not be started", "run_uid", r.UID, "error", err)
		s.endRun(ctx, r.UID, computev1.Run_STATE_FAILED, "the agent could not be started on the compute service's machine", fault.ReasonOf(err))
	}
	return nil
}

// startable takes a run out of the queue, once: its submitter's rights are looked at anew, then the run is STARTING in a committed
// change, and then there is a join token for its agent. It gives nil where the run is not to be started now; an error is
// one of ours, and the run stays as it is.
func (s *Service) startable(ctx context.Context, r *store.Run) (*store.Run, *identityv1.AgentJoin, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := s.mayStart(ctx, r); err != nil {
		switch fault.Code(err) {
		case codes.PermissionDenied, codes.NotFound, codes.Unauthenticated, codes.FailedPrecondition:
			s.endRun(ctx, r.UID, computev1.Run_STATE_FAILED, "the submitter may not run this any more: "+fault.Describe(err).Message(), faultv1.Reason_RUN_SUBMITTER_DENIED)
			return nil, nil, nil
		}
		return nil, nil, err
	}
	now := s.cfg.Now()
	errMoved := errors.New("moved")
	started, err := s.store.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.State != computev1.Run_STATE_QUEUED {
			return errMoved
		}
		r.State, r.Heartbeat, r.Generation = computev1.Run_STATE_STARTING, now, r.Generation+1
		return s.platformEvent(ctx, tx, r, "start")
	}, nil)
	if errors.Is(err, errMoved) || fault.Is(err, codes.Aborted) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	s.news.changed(r.UID)
	// Outside a caller's own call: the join is the platform's, whoever claims it.
	join, err := s.cfg.Agents.CreateAgentJoin(ctx, &identityv1.CreateAgentJoinRequest{
		RunUid: started.UID, WorkspaceUid: started.Workspace, Submitter: started.Submitter, Actions: runActions(started), Ttl: durationpb.New(s.cfg.StartGrace),
	})
	if err != nil {
		s.endRun(ctx, r.UID, computev1.Run_STATE_FAILED, "identity gave no join token for the agent: "+fault.Describe(fault.FromStatus(err)).Message(), fault.ReasonOf(err))
		return nil, nil, nil
	}
	return started, join, nil
}

// mayStart looks at the submitter's rights as they are now, and at whether he still exists. The snapshot is looked up in his
// name, with a token that identity refuses for an account that is disabled.
func (s *Service) mayStart(ctx context.Context, r *store.Run) error {
	for _, need := range needs(r) {
		if err := s.cfg.Engine.Fresh(s.cfg.Now()); err != nil {
			return err
		}
		name, err := resource.Parse(need.name)
		if err != nil {
			return err
		}
		scope, ok := s.cfg.Engine.Resolve(name)
		if !ok || scope.WorkspaceUID != r.Workspace {
			return fault.NotFound("its workspace is gone")
		}
		if d := s.cfg.Engine.Decide(authz.Query{Principal: r.Submitter, Action: need.action, Scope: scope}); !d.Allowed {
			return fault.New(codes.PermissionDenied, d.Reason, "the action %s is missing", need.action)
		}
	}
	t, err := s.cfg.Tokens.ActAs(ctx, &identityv1.ActAsRequest{Principal: r.Submitter, Audience: "workspace", RunUid: r.UID, WorkspaceUid: r.Workspace})
	if err != nil {
		return fault.FromStatus(err)
	}
	_, err = s.cfg.Snapshots.GetSnapshot(rpc.WithToken(ctx, t.GetAccessToken()), &workspacev1.GetSnapshotRequest{Name: r.Spec.GetSnapshot()})
	return fault.FromStatus(err)
}

// watchActive ends what was cancelled, timed out or lost.
func (s *Service) watchActive(ctx context.Context) error {
	active, err := s.store.Active(ctx)
	if err != nil {
		return err
	}
	now := s.cfg.Now()
	for _, r := range active {
		silent := now.Sub(r.Heartbeat)
		timeout := r.Spec.GetLimits().GetTimeout().AsDuration()
		switch {
		case r.Cancel && now.Sub(r.CanceledAt) > s.cfg.CancelGrace:
			s.driver.Kill(r.UID)
			if r.Outcome.GetReason() == faultv1.Reason_DEADLINE_PASSED.String() {
				s.endRun(ctx, r.UID, computev1.Run_STATE_FAILED, r.Outcome.GetMessage(), faultv1.Reason_DEADLINE_PASSED)
				continue
			}
			s.endRun(ctx, r.UID, computev1.Run_STATE_CANCELED, "cancelled; the agent did not report in time and was stopped", faultv1.Reason_REASON_UNSPECIFIED)
		case r.State == computev1.Run_STATE_STARTING && silent > s.cfg.StartGrace:
			s.driver.Kill(r.UID)
			s.endRun(ctx, r.UID, computev1.Run_STATE_LOST, "no agent asked for the run in time", faultv1.Reason_SERVICE_UNAVAILABLE)
		case r.State == computev1.Run_STATE_STARTING && s.driver.Gone(r.UID):
			s.endRun(ctx, r.UID, computev1.Run_STATE_LOST, "the agent ended before it asked for the run; its log is in the compute service's folder", faultv1.Reason_SERVICE_UNAVAILABLE)
		case r.State != computev1.Run_STATE_STARTING && silent > 3*s.cfg.Heartbeat:
			s.driver.Kill(r.UID)
			s.endRun(ctx, r.UID, computev1.Run_STATE_LOST, "the agent went silent", faultv1.Reason_SERVICE_UNAVAILABLE)
		case timeout > 0 && !r.Cancel && !r.Started.IsZero() && now.Sub(r.Started) > timeout:
			s.timeOut(ctx, r.UID, timeout)
		}
	}
	return nil
}

// timeOut asks a run to stop that has had its time.
func (s *Service) timeOut(ctx context.Context, uid string, timeout time.Duration) {
	errOver := errors.New("ended or cancelled meanwhile")
	_, err := s.store.Update(ctx, uid, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		if r.HasEnded() || r.Cancel {
			return errOver
		}
		r.Cancel, r.CanceledAt = true, s.cfg.Now()
		r.Outcome.Message, r.Outcome.Reason = "the run took longer than its timeout of "+timeout.String(), faultv1.Reason_DEADLINE_PASSED.String()
		return nil
	}, nil)
	if errors.Is(err, errOver) {
		return
	}
	if err != nil {
		s.cfg.Logger.Warn("a run's timeout could not be noted", "run_uid", uid, "error", err)
		return
	}
	s.news.changed(uid)
}

// end puts a run into one of its last states.
func end(r *store.Run, state computev1.Run_State, message string, reason faultv1.Reason, now time.Time) {
	r.State, r.Ended = state, now
	r.Outcome.State, r.Outcome.Message = state, message
	if reason != faultv1.Reason_REASON_UNSPECIFIED {
		r.Outcome.Reason = reason.String()
	}
}

// endRun ends a run in the platform's own name. A run that has ended meanwhile stays as it is.
func (s *Service) endRun(ctx context.Context, uid string, state computev1.Run_State, message string, reason faultv1.Reason) {
	errEnded := errors.New("ended")
	r, err := s.store.Update(context.WithoutCancel(ctx), uid, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.HasEnded() {
			return errEnded
		}
		end(r, state, message, reason, s.cfg.Now())
		return s.platformEvent(ctx, tx, r, "end")
	}, nil)
	if err != nil {
		if !errors.Is(err, errEnded) {
			s.cfg.Logger.Error("a run could not be ended", "run_uid", uid, "error", err)
		}
		return
	}
	s.ended(r)
}

// ended tells everyone who waits for the end of a run, or for its room.
func (s *Service) ended(r *store.Run) {
	s.driver.Clean(r.UID)
	s.news.changed(r.UID)
	s.news.changed(r.Compute)
	s.wake()
}

// revokeEnded kills the tokens of runs that have ended, until identity has said that it is done.
func (s *Service) revokeEnded(ctx context.Context) error {
	list, err := s.store.NotRevoked(ctx)
	if err != nil {
		return err
	}
	for _, r := range list {
		if err := s.revoke(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) revoke(ctx context.Context, r *store.Run) error {
	if _, err := s.cfg.Tokens.RevokeRun(ctx, &identityv1.RevokeRunRequest{RunUid: r.UID, WorkspaceUid: r.Workspace}); err != nil {
		return fault.FromStatus(err)
	}
	_, err := s.store.Update(ctx, r.UID, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		r.Revoked = true
		return nil
	}, nil)
	return err
}

// platformEvent records what the platform does with a run, in the submitter's name, in the transaction of the change.
func (s *Service) platformEvent(ctx context.Context, tx *sqldb.Tx, r *store.Run, what string) error {
	name, err := resource.Parse(r.Name())
	if err != nil {
		return err
	}
	scope, _ := s.cfg.Engine.Resolve(name)
	return s.cfg.Outbox.Append(ctx, tx, &audit.Event{
		Uid: resource.NewUID("evt"), Time: timestamppb.New(s.cfg.Now()), Service: "compute", Method: "/compute/runs/" + what, Action: "compute/runs/" + what,
		Scope: r.Name(), ScopeUid: r.UID, Principal: r.Submitter, Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: codes.OK.String(), Count: 1,
		RunUid: r.UID, WorkspaceUid: r.Workspace, ResourceGroupUid: scope.ResourceGroupUID, SubscriptionUid: scope.SubscriptionUID,
		Details: map[string]string{"state": r.State.String(), "reason": r.Outcome.GetReason()},
	})
}
