package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// denied reports whether the submitter may not start the run any more. A token of ours that is refused for its times or its key is no word about
// him: clocks may be apart for a while.
func denied(err error) bool {
	switch fault.Code(err) {
	case codes.PermissionDenied, codes.NotFound, codes.FailedPrecondition:
		return true
	case codes.Unauthenticated:
		return fault.ReasonOf(err) == faultv1.Reason_TOKEN_REVOKED
	}
	return false
}

// startable takes a run out of the queue, once: its submitter's rights are looked at anew, then the run is STARTING in a committed
// change, if its target has room, and then there is a join token for its agent. instance is the one that starts the agent on its own
// machine, if one does; claim is what it is claimed by, if it is. It gives nil where the run is not to be started now; an error is one of ours, and
// the run stays as it is.
func (q *Queue) startable(ctx context.Context, r *store.Run, room int, instance string, claim []byte) (*store.Run, *identityv1.AgentJoin, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := q.mayStart(ctx, r); err != nil {
		switch {
		case denied(err):
			q.deny(ctx, r.UID, err)
			return nil, nil, nil
		case fault.Is(err, codes.Unauthenticated):
			return nil, nil, q.refused(ctx, r, err)
		}
		return nil, nil, err
	}
	q.waits.over(r.UID)
	// What others have answered may be over by the commit: what can be known here is decided on a view of the fence, and again at the commit.
	decided, release, err := q.cfg.Decide(ctx, func() error { return q.may(r) })
	if err != nil {
		if denied(err) {
			q.deny(ctx, r.UID, err)
			return nil, nil, nil
		}
		return nil, nil, err
	}
	now := q.cfg.Now()
	errMoved := errors.New("moved, or no room")
	started, err := q.leave(decided, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.State != computev1.Run_STATE_QUEUED {
			return errMoved
		}
		active, err := store.ActiveOnIn(ctx, tx, r.Compute) // others claim at the same time
		if err != nil {
			return err
		}
		if active >= int64(room) {
			return errMoved
		}
		r.Outcome.Message = "" // why it waited
		r.State, r.Heartbeat, r.Generation, r.Instance = computev1.Run_STATE_STARTING, now, r.Generation+1, instance
		r.Claim = claim
		return q.Event(ctx, tx, r, "start")
	})
	release() // what follows rests on no right of the submitter's, or ends his run
	if errors.Is(err, errMoved) || fault.Is(err, codes.Aborted) {
		return nil, nil, nil
	}
	if claim != nil && fault.Is(err, codes.AlreadyExists) {
		return nil, nil, fault.Aborted("another call with this claim has a run; repeat it")
	}
	if errors.Is(err, errMayNot) { // since
		q.deny(ctx, r.UID, err)
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	join, err := q.join(ctx, started)
	if err != nil && claim != nil && passing(err) {
		return nil, nil, err // whoever claims it comes again, with the same claim
	}
	if err != nil {
		q.End(ctx, r.UID, computev1.Run_STATE_FAILED, "identity gave no join token for the agent: "+fault.Describe(err).Message(), fault.ReasonOf(err))
		return nil, nil, nil
	}
	return started, join, nil
}

// join has identity make the token with which the agent of a run enrols, in place of one that none has come with. It is outside a caller's own
// call: the join is the platform's, whoever claims it.
func (q *Queue) join(ctx context.Context, r *store.Run) (*identityv1.AgentJoin, error) {
	j, err := q.cfg.Agents.CreateAgentJoin(ctx, &identityv1.CreateAgentJoinRequest{
		RunUid: r.UID, WorkspaceUid: r.Workspace, Submitter: r.Submitter, Actions: Actions(r), Ttl: durationpb.New(q.cfg.StartGrace),
	})
	return j, fault.FromStatus(err)
}

// passing reports whether an error says nothing of what was asked: it may be asked again.
func passing(err error) bool {
	switch fault.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted:
		return true
	}
	return false
}

// claimUsed refuses a claim whose run is not to be had any more.
func claimUsed() error {
	return fault.New(codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED, "the run that was given for this claim has its agent, or has ended: make a new claim_id for another run").
		Field("claim_id", "is used")
}

// refused has a run wait whose start is kept up by a token of ours that is refused, for a while: where clocks are apart, they may be set.
func (q *Queue) refused(ctx context.Context, r *store.Run, why error) error {
	since, first := q.waits.since(r.UID, q.cfg.Now(), q.cfg.StartWait)
	said := fault.Describe(why).Message()
	if q.cfg.Now().Sub(since) > q.cfg.StartWait {
		q.waits.over(r.UID)
		q.End(ctx, r.UID, computev1.Run_STATE_FAILED, fmt.Sprintf("the platform's own token for it was refused for %v (%s): look at the clocks of the machines that its services run on, and submit it again", q.cfg.StartWait, said), faultv1.Reason_SERVICE_UNAVAILABLE)
		return nil
	}
	if !first {
		return why
	}
	errLeft := errors.New("it waits no longer")
	_, err := q.cfg.Store.Update(ctx, r.UID, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		if r.State != computev1.Run_STATE_QUEUED {
			return errLeft
		}
		r.Outcome.Message = fmt.Sprintf("it waits: the platform's own token for it is refused (%s), as where clocks are apart; it is tried again for %v", said, q.cfg.StartWait)
		return nil
	}, nil)
	if errors.Is(err, errLeft) {
		err = nil
	}
	return errors.Join(why, err)
}

// waits is since when runs wait for a token of ours to be taken, as this instance has seen it.
type waits struct {
	mu    sync.Mutex
	begun map[string]time.Time
}

func (w *waits) since(uid string, now time.Time, most time.Duration) (since time.Time, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t, ok := w.begun[uid]; ok {
		return t, false
	}
	if w.begun == nil {
		w.begun = make(map[string]time.Time)
	}
	maps.DeleteFunc(w.begun, func(_ string, t time.Time) bool { return now.Sub(t) > 2*most }) // of runs that were cancelled
	w.begun[uid] = now
	return now, true
}

func (w *waits) over(uid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.begun, uid)
}

// mayStart looks at the submitter's rights as they are now, and at whether he still exists. The snapshot is looked up in his
// name, with a token that identity refuses for an account that is disabled.
func (q *Queue) mayStart(ctx context.Context, r *store.Run) error {
	if err := q.may(r); err != nil {
		return err
	}
	t, err := q.cfg.Tokens.ActAs(ctx, &identityv1.ActAsRequest{Principal: r.Submitter, Audience: "workspace", RunUid: r.UID, WorkspaceUid: r.Workspace})
	if err != nil {
		return fault.FromStatus(err)
	}
	_, err = q.cfg.Snapshots.GetSnapshot(rpc.WithToken(ctx, t.GetAccessToken()), &workspacev1.GetSnapshotRequest{Name: r.Spec.GetSnapshot()})
	return fault.FromStatus(err)
}

// errMayNot marks what may finds against a run's submitter.
var errMayNot = errors.New("he may not")

// may is the part of mayStart that is known here, from what the security streams have brought: it asks nobody.
func (q *Queue) may(r *store.Run) error {
	if err := q.cfg.Engine.Fresh(q.cfg.Now()); err != nil {
		return err
	}
	if q.over(r.Submitter, r.Created) {
		return mayNot(fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, accountOver))
	}
	for _, need := range Needs(r) {
		name, err := resource.Parse(need.Name)
		if err != nil {
			return err
		}
		scope, ok := q.cfg.Engine.Resolve(name)
		if !ok || scope.WorkspaceUID != r.Workspace {
			return mayNot(fault.NotFound("its workspace is gone"))
		}
		if d := q.cfg.Engine.Decide(authz.Query{Principal: r.Submitter, Action: need.Action, Scope: scope}); !d.Allowed {
			return mayNot(fault.New(codes.PermissionDenied, d.Reason, "the action %s is missing", need.Action))
		}
	}
	return nil
}

func mayNot(err error) error { return &refusal{err} }

// refusal is errMayNot, and why.
type refusal struct{ error }

func (r *refusal) Is(target error) bool { return target == errMayNot }
func (r *refusal) Unwrap() error        { return r.error }

// deny ends a run that waits.
func (q *Queue) deny(ctx context.Context, uid string, why error) {
	q.End(ctx, uid, computev1.Run_STATE_FAILED, "the submitter may not run this any more: "+fault.Describe(why).Message(), faultv1.Reason_RUN_SUBMITTER_DENIED)
}

// Reclaim gives the run of a claim again, for as long as no agent has come with it; then the claim is used up. NOT_FOUND says that it has none yet.
// It is asked once, when a call begins: a call whose caller has gone, and that still waits, would take the join token from the one after it.
func (q *Queue) Reclaim(ctx context.Context, c store.Compute, claim []byte) (*computev1.AgentBootstrap, error) {
	r, err := q.cfg.Store.Claimed(ctx, c.UID, claim)
	if err != nil {
		return nil, err
	}
	// Its agent has as long to come as if it were given for the first time.
	r, err = q.cfg.Store.Update(ctx, r.UID, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		if !isStarting(r) || r.AgentKey != "" || r.Cancel {
			return claimUsed()
		}
		r.Heartbeat = q.cfg.Now()
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	join, err := q.join(ctx, r)
	if fault.Is(err, codes.AlreadyExists) { // it has enrolled, and not asked for its assignment yet
		return nil, claimUsed()
	}
	if err != nil {
		return nil, err
	}
	return bootstrap(r, join), nil
}

func bootstrap(r *store.Run, join *identityv1.AgentJoin) *computev1.AgentBootstrap {
	return &computev1.AgentBootstrap{Run: r.Name(), RunUid: r.UID, JoinToken: join.GetJoinToken(), ExpireTime: join.GetExpireTime()}
}

// Claim takes the oldest run that waits for a target and that may start. claim, made by store.ClaimMAC, may be nil. Where another call with the
// same claim was first it is ABORTED.
func (q *Queue) Claim(ctx context.Context, c store.Compute, claim []byte) (*computev1.AgentBootstrap, error) {
	queued, err := q.cfg.Store.QueuedOn(ctx, c.UID, c.MaxRuns)
	if err != nil {
		return nil, err
	}
	for _, r := range queued {
		active, err := q.cfg.Store.ActiveOn(ctx, c.UID)
		if err != nil {
			return nil, err
		}
		if active >= int64(c.MaxRuns) {
			return nil, nil //nolint:nilnil // no run, no error: the claimer waits
		}
		started, join, err := q.startable(ctx, r, c.MaxRuns, "", claim)
		if err != nil {
			return nil, err
		}
		if started == nil {
			continue
		}
		return bootstrap(started, join), nil
	}
	return nil, nil //nolint:nilnil // no run, no error: the claimer waits
}

// Needs are the rights that a run's submitter must have when it starts, each with the resource it is for.
func Needs(r *store.Run) []Need {
	list := []Need{{r.Spec.GetCompute(), "compute/computes/use"}, {r.Spec.GetSnapshot(), "workspace/snapshots/read"}}
	if r.Kind != computev1.Run_KIND_REPLICA {
		return append([]Need{{r.Spec.GetParent(), "compute/runs/submit"}}, list...)
	}
	for _, m := range r.Replica.GetServe().GetModels() {
		list = append(list, Need{m, "inference/models/content/read"})
	}
	return append([]Need{{r.Replica.GetDeployment(), "inference/endpoints/deployments/write"}}, list...)
}

// Need is a right at a resource.
type Need struct{ Name, Action string }

// Actions are all that a run's token opens: each action with the one resource it may be used on.
func Actions(r *store.Run) []string {
	relative := func(name string) string {
		n, _ := resource.Parse(name)
		return n.Relative()
	}
	run := " runs/" + r.Spec.GetRunId()
	list := []string{"compute/runs/execute" + run, "workspace/snapshots/read " + relative(r.Spec.GetSnapshot())}
	if r.Kind != computev1.Run_KIND_REPLICA {
		return append(list, "telemetry/metrics/write"+run)
	}
	for _, m := range r.Replica.GetServe().GetModels() {
		list = append(list, "inference/models/content/read "+relative(m))
	}
	return list
}
