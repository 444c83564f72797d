package compute

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

type computes struct {
	computev1.UnsafeComputeServiceServer
	s *Service
}

var _ computev1.ComputeServiceServer = computes{}

// CreateCompute implements computev1.ComputeServiceServer.
func (h computes) CreateCompute(ctx context.Context, req *computev1.CreateComputeRequest) (*computev1.Compute, error) {
	if err := resource.ValidIDField("compute_id", req.GetComputeId()); err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	c := store.Compute{
		UID: resource.NewUID("cmp"), Workspace: call.Scope.WorkspaceUID, ID: req.GetComputeId(), Kind: req.GetKind(), MaxRuns: max(1, int(req.GetMaxRuns())),
		Created: h.s.cfg.Now(), CreatedBy: call.Principal,
	}
	if err := h.s.store.InsertCompute(ctx, c, record("compute", c.ID, "kind", c.Kind.String())); err != nil {
		return nil, err
	}
	return message(req.GetParent(), c), nil
}

func message(parent string, c store.Compute) *computev1.Compute {
	return &computev1.Compute{
		Name: parent + "/computes/" + c.ID, Uid: c.UID, Kind: c.Kind, MaxRuns: int32(c.MaxRuns), CreateTime: timestamppb.New(c.Created), CreatedBy: c.CreatedBy,
	}
}

// find gives the target that a call is about.
func (h computes) find(ctx context.Context, name string) (store.Compute, error) {
	call := rpc.From(ctx)
	c, err := h.s.store.Compute(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID())
	return c, absent(err, name)
}

// GetCompute implements computev1.ComputeServiceServer.
func (h computes) GetCompute(ctx context.Context, req *computev1.GetComputeRequest) (*computev1.Compute, error) {
	c, err := h.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return message(rpc.From(ctx).Scope.Name.Parent().String(), c), nil
}

// ListComputes implements computev1.ComputeServiceServer.
func (h computes) ListComputes(ctx context.Context, req *computev1.ListComputesRequest) (*computev1.ListComputesResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	ws := rpc.From(ctx).Scope.WorkspaceUID
	cur, next, err := h.s.page(ctx, ws, "compute/computes/"+ws, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, cur, err := h.s.store.ListComputes(ctx, ws, cur, n)
	if err != nil {
		return nil, err
	}
	out := &computev1.ListComputesResponse{}
	for _, c := range list {
		out.Computes = append(out.Computes, message(req.GetParent(), c))
	}
	out.NextPageToken, err = next(cur, len(list), n)
	return out, err
}

// DeleteCompute implements computev1.ComputeServiceServer.
func (h computes) DeleteCompute(ctx context.Context, req *computev1.DeleteComputeRequest) (*emptypb.Empty, error) {
	c, err := h.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := h.s.store.DeleteCompute(ctx, c.UID, record()); err != nil {
		return nil, absent(err, req.GetName())
	}
	return &emptypb.Empty{}, nil
}

// maxClaimWait is the longest that ClaimRun waits for a run.
const maxClaimWait = 30 * time.Second

// ClaimRun implements computev1.ComputeServiceServer. The run leaves QUEUED in the same way as on a local target, so it is given
// to one claimer only.
func (h computes) ClaimRun(ctx context.Context, req *computev1.ClaimRunRequest) (*computev1.ClaimRunResponse, error) {
	c, err := h.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if c.Kind != computev1.Compute_KIND_SELF_HOSTED {
		return nil, fault.FailedPrecondition("runs of this compute are started by the platform; only a self-hosted one is claimed from")
	}
	wait := min(max(req.GetWait().AsDuration(), 0), maxClaimWait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		changed, leave := h.s.news.next(c.UID)
		b, err := h.s.claim(ctx, c)
		if err != nil || b != nil {
			leave()
			return &computev1.ClaimRunResponse{Bootstrap: b}, err
		}
		select {
		case <-changed:
			leave()
		case <-timer.C:
			leave()
			return &computev1.ClaimRunResponse{}, nil
		case <-ctx.Done():
			leave()
			return nil, ctx.Err()
		}
	}
}

// claim takes the oldest run that waits for a target and that may start.
func (s *Service) claim(ctx context.Context, c store.Compute) (*computev1.AgentBootstrap, error) {
	queued, err := s.store.QueuedOn(ctx, c.UID, c.MaxRuns)
	if err != nil {
		return nil, err
	}
	for _, r := range queued {
		active, err := s.store.ActiveOn(ctx, c.UID)
		if err != nil {
			return nil, err
		}
		if active >= int64(c.MaxRuns) {
			return nil, nil //nolint:nilnil // no run, no error: the claimer waits
		}
		started, join, err := s.startable(ctx, r)
		if err != nil {
			return nil, err
		}
		if started == nil {
			continue
		}
		rpc.From(ctx).Detail("run", started.Spec.GetRunId())
		return &computev1.AgentBootstrap{Run: started.Name(), RunUid: started.UID, JoinToken: join.GetJoinToken(), ExpireTime: join.GetExpireTime()}, nil
	}
	return nil, nil //nolint:nilnil // no run, no error: the claimer waits
}
