// Package replicas starts and stops the replicas of deployments, which are runs.
//
// Trust boundary: only inference calls. What it asks for is checked all the same: above all, that it is of one workspace.
//
// Invariants: a replica_id makes one replica. A replica is in no list of runs, and serves until it is stopped.
//
// Failure: a start whose answer was lost is repeated, and finds the replica that it made.
package replicas

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/runspec"
	"github.com/redoubt-ml/redoubt/services/compute/internal/news"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Config of the part. All of it is required.
type Config struct {
	Store  *store.Store
	Queue  *queue.Queue
	Engine *authz.Engine
	Now    func() time.Time
}

// Service is what inference asks: runs that serve until they are stopped.
type Service struct {
	computev1.UnsafeReplicaServiceServer
	cfg Config
}

var _ computev1.ReplicaServiceServer = (*Service)(nil)

// New makes it.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// StartReplica implements computev1.ReplicaServiceServer.
func (h *Service) StartReplica(ctx context.Context, req *computev1.StartReplicaRequest) (*computev1.ReplicaStatus, error) {
	if err := h.checkReplica(req); err != nil {
		return nil, err
	}
	known, err := h.cfg.Store.Run(ctx, req.GetWorkspaceUid(), req.GetReplicaId())
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
	c, err := h.cfg.Store.Compute(ctx, req.GetWorkspaceUid(), target.ID())
	if err != nil {
		return nil, view.Absent(err, req.GetCompute())
	}
	r := &store.Run{
		UID: resource.NewUID("run"), Workspace: req.GetWorkspaceUid(), Kind: computev1.Run_KIND_REPLICA, Compute: c.UID, Submitter: req.GetPrincipal(),
		Replica: proto.CloneOf(req), Spec: store.ReplicaSpec(req), State: computev1.Run_STATE_QUEUED, Created: h.cfg.Now(),
	}
	stored, err := h.cfg.Store.InsertRun(ctx, r, "", view.Record("replica", req.GetReplicaId(), "run_uid", r.UID, "workspace_uid", r.Workspace,
		"deployment", req.GetDeployment(), "subject", r.Submitter, "compute", c.ID))
	if fault.Is(err, codes.AlreadyExists) { // the same call, at the same time
		if known, err = h.cfg.Store.Run(ctx, req.GetWorkspaceUid(), req.GetReplicaId()); err == nil {
			return again(known, req)
		}
	}
	if err != nil {
		return nil, err
	}
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
func (h *Service) checkReplica(req *computev1.StartReplicaRequest) error {
	if err := resource.ValidRunID(req.GetReplicaId()); err != nil {
		return err
	}
	ws, err := resource.Parse(req.GetWorkspace())
	if err != nil {
		return err
	}
	scope, ok := h.cfg.Engine.Resolve(ws)
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
func (h *Service) StopReplica(ctx context.Context, req *computev1.StopReplicaRequest) (*emptypb.Empty, error) {
	r, err := h.replica(ctx, req.GetWorkspaceUid(), req.GetReplicaId())
	if fault.Is(err, codes.NotFound) {
		return &emptypb.Empty{}, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := h.cfg.Queue.Cancel(ctx, r.UID, "replica", req.GetReplicaId(), "run_uid", r.UID, "workspace_uid", r.Workspace); err != nil && !fault.Is(err, codes.NotFound) {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// replica finds a run that is one.
func (h *Service) replica(ctx context.Context, workspace, id string) (*store.Run, error) {
	r, err := h.cfg.Store.Run(ctx, workspace, id)
	if err == nil && r.Kind != computev1.Run_KIND_REPLICA {
		err = fault.NotFound("there is no such replica")
	}
	return r, err
}

// WatchReplicas implements computev1.ReplicaServiceServer.
func (h *Service) WatchReplicas(req *computev1.WatchReplicasRequest, stream grpc.ServerStreamingServer[computev1.ReplicaStatus]) error {
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
func (h *Service) watch(ctx context.Context, workspace, id string, to chan<- *computev1.ReplicaStatus) error {
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
	return news.Each(ctx, h.cfg.Store, store.RunTopic(uid), func() (bool, error) {
		r, err := h.cfg.Store.RunByUID(ctx, uid)
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
func (h *Service) ReadReplicaLogs(req *computev1.ReadReplicaLogsRequest, stream grpc.ServerStreamingServer[computev1.LogChunk]) error {
	name := "replicas/" + req.GetReplicaId()
	r, err := h.replica(stream.Context(), req.GetWorkspaceUid(), req.GetReplicaId())
	if err != nil {
		return view.Absent(err, name)
	}
	return view.SendLog(stream, h.cfg.Store, r.UID, name, req.GetOffset(), req.GetFollow())
}

func replicaStatus(r *store.Run) *computev1.ReplicaStatus {
	return &computev1.ReplicaStatus{
		ReplicaId: r.Spec.GetRunId(), RunUid: r.UID, State: r.State, Message: r.Outcome.GetMessage(), Reason: r.Outcome.GetReason(),
		ExitCode: r.Outcome.GetExitCode(), CreateTime: timestamppb.New(r.Created),
	}
}
