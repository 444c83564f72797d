package replicas

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

const (
	// callLimit bounds one call to compute. After it, a call that was sent cannot take effect any more.
	callLimit = 15 * time.Second
	// againAfter is when something is tried again that compute could not do.
	againAfter = time.Second
	// drainGrace is how much longer than a request may take a replica is waited for that is drained.
	drainGrace = 5 * time.Second
)

// start asks compute for the replicas that are wanted and that it has not answered about yet. Asking twice is harmless.
func (k *keeper) start(ctx context.Context, d *store.Deployment, rows []*store.Replica) {
	k.mu.Lock()
	k.again = time.Time{}
	k.mu.Unlock()
	for _, r := range rows {
		if r.RunUID != "" || !Active(r) || r.Generation != d.Generation || d.Deleting {
			continue
		}
		short, cancel := context.WithTimeout(ctx, callLimit)
		m, err := k.s.cfg.Compute.StartReplica(short, k.s.request(d, r))
		cancel()
		err = fault.FromStatus(err)
		switch {
		case err == nil:
			k.see(r.ID, func(s *sight) { s.status = m })
		case Passing(err):
			k.s.cfg.Logger.WarnContext(ctx, "compute was asked for a replica in vain; it is asked again", "deployment_uid", k.uid, "error", err)
			k.later()
			return
		default:
			if fault.Is(err, codes.AlreadyExists) {
				k.stopOther(ctx, r)
			}
			k.see(r.ID, func(s *sight) { s.refused = err })
		}
	}
}

// stopOther stops what runs under the id of a replica though it was asked for in other words.
func (k *keeper) stopOther(ctx context.Context, r *store.Replica) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if _, err := k.s.cfg.Compute.StopReplica(ctx, &computev1.StopReplicaRequest{WorkspaceUid: k.workspace, ReplicaId: r.ID}); err != nil {
		k.s.cfg.Logger.WarnContext(ctx, "a replica that is not wanted could not be stopped", "deployment_uid", k.uid, "replica_id", r.ID, "error", err)
	}
}

func (k *keeper) later() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again = k.s.cfg.Now().Add(againAfter)
}

// Passing reports whether an error says nothing about the request.
func Passing(err error) bool {
	switch fault.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.Unauthenticated:
		return true
	}
	return false
}

// request is what compute is asked for. It is the same whenever it is asked again.
func (s *Keepers) request(d *store.Deployment, r *store.Replica) *computev1.StartReplicaRequest {
	workspace := ""
	if n, err := resource.Parse(d.Name); err == nil {
		if ws, ok := n.Workspace(); ok {
			workspace = ws.String()
		}
	}
	out := &computev1.StartReplicaRequest{
		Workspace: workspace, WorkspaceUid: d.Workspace, Principal: d.DeployedBy, ReplicaId: r.ID, Compute: d.Spec.GetCompute(), Snapshot: d.Spec.GetSnapshot(),
		Environment: d.Spec.GetEnvironment(), Deployment: d.Name, Serve: &computev1.ServeSpec{
			Models: []string{d.Spec.GetModel()}, EntryScript: d.Spec.GetEntryScript(), Workers: d.Spec.GetWorkers(), RequestTimeout: d.Spec.GetRequestTimeout(),
			StartTimeout: d.Spec.GetStartTimeout(), Address: s.cfg.Address, MaxBodyBytes: d.Spec.GetMaxBodyBytes(),
		},
	}
	if m := d.Spec.GetMemoryBytes(); m > 0 {
		out.Limits = &computev1.RunLimits{MemoryBytes: m}
	}
	return out
}

// drain sees to it that replicas which take no new requests finish those that they have, and are stopped then.
func (k *keeper) drain(ctx context.Context, d *store.Deployment, rows []*store.Replica) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range rows {
		if r.State != inferencev1.Replica_STATE_DRAINING || k.draining[r.ID] {
			continue
		}
		k.draining[r.ID] = true
		limit := d.Spec.GetRequestTimeout().AsDuration() + drainGrace
		id, run := r.ID, r.RunUID
		k.jobs.Go(func() { k.end(ctx, id, run, limit) })
	}
}

// end drains one replica and has it stopped.
func (k *keeper) end(ctx context.Context, id, run string, limit time.Duration) {
	if run != "" {
		short, cancel := context.WithTimeout(ctx, limit)
		if err := k.s.cfg.Listener.Drain(short, run); err != nil && ctx.Err() == nil {
			k.s.cfg.Logger.WarnContext(ctx, "a replica is stopped with requests on it that took longer than they may", "deployment_uid", k.uid, "run_uid", run, "error", err)
		}
		cancel()
	}
	if !k.stop(ctx, id) {
		return
	}
	if run == "" {
		// It may have been asked for and not have arrived; when that cannot happen any more, it is stopped for good.
		if !wait(ctx, callLimit) || !k.stop(ctx, id) {
			return
		}
	}
	k.see(id, func(s *sight) { s.stopped = true })
	k.poke()
}

// stop asks compute until it has said yes; false when ctx has ended before.
func (k *keeper) stop(ctx context.Context, id string) bool {
	for {
		short, cancel := context.WithTimeout(ctx, callLimit)
		_, err := k.s.cfg.Compute.StopReplica(short, &computev1.StopReplicaRequest{WorkspaceUid: k.workspace, ReplicaId: id})
		cancel()
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			k.s.cfg.Logger.WarnContext(ctx, "a replica could not be stopped; it is tried again", "deployment_uid", k.uid, "replica_id", id, "error", fault.FromStatus(err))
		}
		if !wait(ctx, againAfter) {
			return false
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch hears of the replicas that compute has.
func (k *keeper) watch(ctx context.Context, rows []*store.Replica) {
	var ids []string
	for _, r := range rows {
		if r.RunUID != "" && r.State != inferencev1.Replica_STATE_ENDED {
			ids = append(ids, r.ID)
		}
	}
	slices.Sort(ids)
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Equal(ids, k.watched) {
		return
	}
	if k.unwatch != nil {
		k.unwatch()
		k.unwatch = nil
	}
	k.watched = ids
	if len(ids) == 0 {
		return
	}
	ctx, k.unwatch = context.WithCancel(ctx)
	k.jobs.Go(func() { k.hear(ctx, ids) })
}

func (k *keeper) stopWatch() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unwatch != nil {
		k.unwatch()
	}
}

// hear takes what compute says, and asks again when it says no more.
func (k *keeper) hear(ctx context.Context, ids []string) {
	for ctx.Err() == nil {
		stream, err := k.s.cfg.Compute.WatchReplicas(ctx, &computev1.WatchReplicasRequest{WorkspaceUid: k.workspace, ReplicaIds: ids})
		for err == nil {
			var m *computev1.ReplicaStatus
			if m, err = stream.Recv(); err == nil {
				k.see(m.GetReplicaId(), func(s *sight) { s.status = m })
				k.poke()
			}
		}
		if !wait(ctx, againAfter) {
			return
		}
	}
}
