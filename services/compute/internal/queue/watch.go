package queue

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// Recover ends, after a start, the runs that this instance had taken out of the queue and not started any more. Their agents cannot come.
func (q *Queue) Recover(ctx context.Context) error {
	starting, err := q.cfg.Store.StartingOn(ctx, q.cfg.Instance)
	if err != nil {
		return err
	}
	left := q.cfg.Driver.Left()
	for _, uid := range starting {
		if !slices.Contains(left, uid) {
			q.endIf(ctx, uid, isStarting, 0, computev1.Run_STATE_LOST, "the compute service ended before it had started the agent", faultv1.Reason_SERVICE_UNAVAILABLE)
		}
	}
	return nil
}

func isStarting(r *store.Run) bool { return r.State == computev1.Run_STATE_STARTING }

// Adopt takes up the runs whose agents have gone on while nobody looked. Each gets the time of its silence to say so.
func (q *Queue) Adopt(ctx context.Context) error {
	active, err := q.cfg.Store.ActiveUIDs(ctx) // the key of a workspace may not be there yet
	if err != nil {
		return err
	}
	now := q.cfg.Now()
	for _, uid := range active {
		if err := q.cfg.Store.Touch(ctx, uid, now); err != nil {
			return err
		}
		q.cfg.Logger.Info("a run goes on from before", "run_uid", uid)
	}
	return nil
}

// Tend looks after what this machine has of runs: it cleans up after those that have ended, or are gone, and ends those whose agents
// have died. Only here is that known: whoever ends a run elsewhere has no hand on this machine.
func (q *Queue) Tend(ctx context.Context) error {
	var failed []error
	for _, uid := range q.cfg.Driver.Left() {
		run, err := q.cfg.Store.Left(ctx, uid)
		switch {
		case fault.Is(err, codes.NotFound): // its workspace was deleted
			q.cfg.Driver.Kill(uid)
			q.cfg.Driver.Clean(uid)
		case err != nil:
			failed = append(failed, err)
		case run.HasEnded():
			switch late := !run.DeliverUntil.IsZero(); {
			case late && q.cfg.Now().Before(run.DeliverUntil) && !q.cfg.Driver.Gone(uid):
				continue // it was silent for too long, and may come back with what it has
			case late, run.Stopped:
				q.cfg.Driver.Kill(uid)
			}
			q.cfg.Driver.Clean(uid)
		case !q.cfg.Driver.Gone(uid):
		case run.State == computev1.Run_STATE_STARTING:
			q.endIf(ctx, uid, isStarting, 0, computev1.Run_STATE_LOST, "the agent ended before it asked for the run", faultv1.Reason_SERVICE_UNAVAILABLE)
		default: // a report that came before it ended has ended the run
			q.End(ctx, uid, computev1.Run_STATE_LOST, "the agent ended before it had reported the end of the run", faultv1.Reason_SERVICE_UNAVAILABLE)
		}
	}
	return errors.Join(failed...)
}

// WatchActive ends what was cancelled, timed out or lost.
func (q *Queue) WatchActive(ctx context.Context) error {
	active, err := q.cfg.Store.Active(ctx)
	if err != nil {
		return err
	}
	now := q.cfg.Now()
	for _, r := range active {
		timeout := r.Spec.GetLimits().GetTimeout().AsDuration()
		silent := func(r *store.Run) bool { // also asked again of a run from which something was heard meanwhile
			if isStarting(r) {
				return now.Sub(r.Heartbeat) > q.cfg.StartGrace
			}
			return now.Sub(r.Heartbeat) > q.cfg.Silence
		}
		if r.Heartbeat.After(now) { // by a clock that was ahead: else the run would be waited for until then
			if err := q.cfg.Store.Touch(ctx, r.UID, now); err != nil {
				return err
			}
		}
		switch {
		case r.Cancel && now.Sub(r.CanceledAt) > q.cfg.CancelGrace:
			if r.Outcome.GetReason() == faultv1.Reason_DEADLINE_PASSED.String() {
				q.End(ctx, r.UID, computev1.Run_STATE_FAILED, r.Outcome.GetMessage(), faultv1.Reason_DEADLINE_PASSED)
				continue
			}
			q.End(ctx, r.UID, computev1.Run_STATE_CANCELED, "cancelled; the agent did not report in time and was stopped", faultv1.Reason_REASON_UNSPECIFIED)
		case silent(r) && isStarting(r):
			q.endIf(ctx, r.UID, silent, 0, computev1.Run_STATE_LOST, "no agent asked for the run in time", faultv1.Reason_SERVICE_UNAVAILABLE)
		case silent(r):
			q.endIf(ctx, r.UID, silent, q.cfg.LostGrace, computev1.Run_STATE_LOST, "the agent went silent: it, its machine or the way from there is gone", faultv1.Reason_SERVICE_UNAVAILABLE)
		case timeout > 0 && !r.Cancel && !r.Started.IsZero() && now.Sub(r.Started) > timeout:
			q.TimeOut(ctx, r.UID, timeout)
		}
	}
	return nil
}

// TimeOut asks a run to stop that has had its time.
func (q *Queue) TimeOut(ctx context.Context, uid string, timeout time.Duration) {
	errOver := errors.New("ended or cancelled meanwhile")
	_, err := q.cfg.Store.Update(ctx, uid, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		if r.HasEnded() || r.Cancel {
			return errOver
		}
		q.stop(r)
		r.Outcome.Message, r.Outcome.Reason = "the run took longer than its timeout of "+timeout.String(), faultv1.Reason_DEADLINE_PASSED.String()
		return nil
	}, nil)
	if errors.Is(err, errOver) {
		return
	}
	if err != nil {
		q.cfg.Logger.Warn("a run's timeout could not be noted", "run_uid", uid, "error", err)
	}
}
