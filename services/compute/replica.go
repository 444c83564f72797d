package compute

import (
	"context"
	"errors"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/runspec"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// replicas is what inference asks: runs that serve until they are stopped.
type replicas struct {
	computev1.UnsafeReplicaServiceServer
	s *Service
}

var _ computev1.ReplicaServiceServer = replicas{}

// StartReplica implements computev1.ReplicaServiceServer.
func (h replicas) StartReplica(ctx context.Context, req *computev1.StartReplicaRequest) (*computev1.ReplicaStatus, error) {
	if err := h.s.checkReplica(req); err != nil {
		return nil, err
	}
	known, err := h.s.store.Run(ctx, req.GetWorkspaceUid(), req.GetReplicaId())
	switch {
	case err == nil:
		return again(known, req)
	case !fault.Is(err, codes.NotFound):
		return nil, err
	}
	target, err := resource.Parse(req.GetCompute())
	if err != nil {
		return nil, err
	}
	c, err := h.s.store.Compute(ctx, req.GetWorkspaceUid(), target.ID())
	if err != nil {
		return nil, absent(err, req.GetCompute())
	}
	r := &store.Run{
		UID: resource.NewUID("run"), Workspace: req.GetWorkspaceUid(), Kind: computev1.Run_KIND_REPLICA, Compute: c.UID, Submitter: req.GetPrincipal(),
		Replica: proto.CloneOf(req), Spec: store.ReplicaSpec(req), State: computev1.Run_STATE_QUEUED, Created: h.s.cfg.Now(),
	}
	stored, err := h.s.store.InsertRun(ctx, r, "", record("replica", req.GetReplicaId(), "run_uid", r.UID, "workspace_uid", r.Workspace,
		"deployment", req.GetDeployment(), "subject", r.Submitter, "compute", c.ID))
	if fault.Is(err, codes.AlreadyExists) { // the same call, at the same time
		if known, err = h.s.store.Run(ctx, req.GetWorkspaceUid(), req.GetReplicaId()); err == nil {
			return again(known, req)
		}
	}
	if err != nil {
		return nil, err
	}
	h.s.news.changed(c.UID)
	h.s.wake()
	return replicaStatus(stored), nil
}

// again is the answer to a replica_id that is known.
func again(known *store.Run, req *computev1.StartReplicaRequest) (*computev1.ReplicaStatus, error) {
	if known.Replica == nil || !proto.Equal(known.Replica, req) {
		return nil, fault.AlreadyExists("the replica_id is another run's, or was used for another replica; take a new one")
	}
	return replicaStatus(known), nil
}

// checkReplica refuses what the contract's constraints cannot say: above all, what is not of the one workspace.
func (s *Service) checkReplica(req *computev1.StartReplicaRequest) error {
	if err := resource.ValidRunID(req.GetReplicaId()); err != nil {
		return err
	}
	ws, err := resource.Parse(req.GetWorkspace())
	if err != nil {
		return err
	}
	scope, ok := s.cfg.Engine.Resolve(ws)
	if ws.Kind() != resource.KindWorkspace || !ok || scope.UID != req.GetWorkspaceUid() {
		return fault.InvalidArgument("workspace and workspace_uid do not name one workspace").Field("workspace_uid", "is not the workspace's")
	}
	serve := req.GetServe()
	for field, names := range map[string]struct {
		kind resource.Kind
		list []string
	}{
		"compute": {resource.KindCompute, []string{req.GetCompute()}}, "snapshot": {resource.KindSnapshot, []string{req.GetSnapshot()}},
		"deployment": {resource.KindDeployment, []string{req.GetDeployment()}}, "serve.models": {resource.KindModelVersion, serve.GetModels()},
	} {
		for _, text := range names.list {
			name, err := resource.Parse(text)
			if err != nil {
				return err
			}
			if name.Kind() != names.kind || !strings.HasPrefix(text, req.GetWorkspace()+"/") {
				return fault.InvalidArgument("a replica uses what is of its own workspace").Field(field, "is not the name of a "+names.kind.String()+" of the workspace")
			}
		}
	}
	if err := runspec.Path("serve.entry_script", "the entry script", serve.GetEntryScript()); err != nil {
		return err
	}
	if req.GetLimits().GetTimeout() != nil {
		return fault.InvalidArgument("a replica serves until it is stopped").Field("limits.timeout", "cannot be set")
	}
	return runspec.Environment(req.GetEnvironment())
}

// StopReplica implements computev1.ReplicaServiceServer.
func (h replicas) StopReplica(ctx context.Context, req *computev1.StopReplicaRequest) (*emptypb.Empty, error) {
	r, err := h.replica(ctx, req.GetWorkspaceUid(), req.GetReplicaId())
	if fault.Is(err, codes.NotFound) {
		return &emptypb.Empty{}, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := h.s.cancel(ctx, r.UID, "replica", req.GetReplicaId(), "run_uid", r.UID, "workspace_uid", r.Workspace); err != nil && !fault.Is(err, codes.NotFound) {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// replica finds a run that is one.
func (h replicas) replica(ctx context.Context, workspace, id string) (*store.Run, error) {
	r, err := h.s.store.Run(ctx, workspace, id)
	if err == nil && r.Kind != computev1.Run_KIND_REPLICA {
		err = fault.NotFound("there is no such replica")
	}
	return r, err
}

// WatchReplicas implements computev1.ReplicaServiceServer.
func (h replicas) WatchReplicas(req *computev1.WatchReplicasRequest, stream grpc.ServerStreamingServer[computev1.ReplicaStatus]) error {
	ctx, stop := context.WithCancelCause(stream.Context())
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stop(nil)
	statuses := make(chan *computev1.ReplicaStatus)
	for _, id := range req.GetReplicaIds() {
		watchers.Go(func() {
			if err := h.watch(ctx, req.GetWorkspaceUid(), id, statuses); err != nil {
				stop(err)
			}
		})
	}
	all := make(chan struct{})
	go func() {
		watchers.Wait()
		close(all)
	}()
	for {
		select {
		case m := <-statuses:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-all:
			return context.Cause(ctx) // nil: all have ended
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watch tells of one replica until it has ended. One that is not there is told of as STATE_UNSPECIFIED.
func (h replicas) watch(ctx context.Context, workspace, id string, to chan<- *computev1.ReplicaStatus) error {
	tell := func(m *computev1.ReplicaStatus) error {
		select {
		case to <- m:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r, err := h.replica(ctx, workspace, id)
	if fault.Is(err, codes.NotFound) {
		return tell(&computev1.ReplicaStatus{ReplicaId: id})
	}
	if err != nil {
		return err
	}
	uid, sent := r.UID, int64(0)
	return h.s.news.each(ctx, uid, func() (bool, error) {
		r, err := h.s.store.RunByUID(ctx, uid)
		if fault.Is(err, codes.NotFound) { // its workspace was deleted
			return true, tell(&computev1.ReplicaStatus{ReplicaId: id})
		}
		if err != nil {
			return false, err
		}
		if r.Version != sent {
			if err := tell(replicaStatus(r)); err != nil {
				return false, err
			}
			sent = r.Version
		}
		return r.HasEnded(), nil
	})
}

// ReadReplicaLogs implements computev1.ReplicaServiceServer.
func (h replicas) ReadReplicaLogs(req *computev1.ReadReplicaLogsRequest, stream grpc.ServerStreamingServer[computev1.LogChunk]) error {
	name := "replicas/" + req.GetReplicaId()
	r, err := h.replica(stream.Context(), req.GetWorkspaceUid(), req.GetReplicaId())
	if err != nil {
		return absent(err, name)
	}
	return h.s.sendLog(stream, r.UID, name, req.GetOffset(), req.GetFollow())
}

func replicaStatus(r *store.Run) *computev1.ReplicaStatus {
	return &computev1.ReplicaStatus{
		ReplicaId: r.Spec.GetRunId(), RunUid: r.UID, State: r.State, Message: r.Outcome.GetMessage(), Reason: r.Outcome.GetReason(),
		ExitCode: r.Outcome.GetExitCode(), CreateTime: timestamppb.New(r.Created),
	}
}

// errNotDeployed refuses what only a deployment does with its replicas.
func errNotDeployed() error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "the run is a replica of a deployment: delete the deployment or give it fewer replicas instead")
}

// cancel asks a run to stop, or ends it if it has not started. What has ended, or was asked before, is given back as it is.
func (s *Service) cancel(ctx context.Context, uid string, details ...string) (*store.Run, error) {
	var as *store.Run
	errNothing := errors.New("nothing to cancel")
	r, err := s.store.Update(ctx, uid, func(_ context.Context, _ *sqldb.Tx, r *store.Run) error {
		switch {
		case r.HasEnded() || r.Cancel:
			as = r
			return errNothing
		case r.State == computev1.Run_STATE_QUEUED:
			end(r, computev1.Run_STATE_CANCELED, "cancelled before it started", faultv1.Reason_REASON_UNSPECIFIED, s.cfg.Now())
		default:
			r.Cancel, r.CanceledAt = true, s.cfg.Now()
		}
		return nil
	}, record(details...))
	if errors.Is(err, errNothing) {
		return as, nil
	}
	if err != nil {
		return nil, err
	}
	s.news.changed(r.UID)
	s.wake()
	return r, nil
}

// needs are the rights that a run's submitter must have when it starts, each with the resource it is for.
func needs(r *store.Run) []need {
	list := []need{{r.Spec.GetCompute(), "compute/computes/use"}, {r.Spec.GetSnapshot(), "workspace/snapshots/read"}}
	if r.Kind != computev1.Run_KIND_REPLICA {
		return append([]need{{r.Spec.GetParent(), "compute/runs/submit"}}, list...)
	}
	for _, m := range r.Replica.GetServe().GetModels() {
		list = append(list, need{m, "inference/models/content/read"})
	}
	return append([]need{{r.Replica.GetDeployment(), "inference/endpoints/deployments/write"}}, list...)
}

type need struct{ name, action string }

// runActions is all that a run's token opens: each action with the one resource it may be used on.
func runActions(r *store.Run) []string {
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
