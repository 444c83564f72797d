// Package targets is compute targets, and gives runs to the hosts that claim from them.
//
// Trust boundary: the chain has decided that the caller may. A host of a self-hosted target gets a join token for one run, and no more.
//
// Invariants: a run is given to one claimer, and one claim has one run. A target that runs wait for, or run on, is not deleted.
//
// Failure: a claim whose answer was lost is repeated by its claimer, with the same claim id, and gives the same run. One that is not repeated
// has started no agent: its run is LOST when the time to start is over.
package targets

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/news"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Config of the part. Store, News, Queue and Now are required.
type Config struct {
	Store *store.Store
	Queue *queue.Queue
	// NoLocalTargets is as in compute.Config.
	NoLocalTargets bool
	// ConnectionAge is after what time connections are asked to go; 0 is long. A call that waits for work ends well before its connection does: a run
	// whose answer is lost with it has no agent.
	ConnectionAge time.Duration
	Now           func() time.Time
}

// claimWait is how long a call may wait for a run that would like to wait for so long.
func (c Config) claimWait(wanted time.Duration) time.Duration {
	longest := maxClaimWait
	if c.ConnectionAge > 0 {
		longest = min(longest, c.ConnectionAge/4)
	}
	return min(max(wanted, 0), longest)
}

// Service is compute targets, and what hosts ask of them.
type Service struct {
	computev1.UnsafeComputeServiceServer
	cfg Config
}

var _ computev1.ComputeServiceServer = (*Service)(nil)

// New makes it.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// CreateCompute implements computev1.ComputeServiceServer.
func (h *Service) CreateCompute(ctx context.Context, req *computev1.CreateComputeRequest) (*computev1.Compute, error) {
	if err := resource.ValidIDField("compute_id", req.GetComputeId()); err != nil {
		return nil, err
	}
	if req.GetKind() == computev1.Compute_KIND_LOCAL && h.cfg.NoLocalTargets {
		return nil, fault.New(codes.FailedPrecondition, faultv1.Reason_TARGET_KIND_OFF, "%s", queue.NoLocalTargets)
	}
	call := rpc.From(ctx)
	c := store.Compute{
		UID: resource.NewUID("cmp"), Workspace: call.Scope.WorkspaceUID, ID: req.GetComputeId(), Kind: req.GetKind(), MaxRuns: max(1, int(req.GetMaxRuns())),
		Created: h.cfg.Now(), CreatedBy: call.Principal,
	}
	if err := h.cfg.Store.InsertCompute(ctx, c, view.Record("compute", c.ID, "kind", c.Kind.String())); err != nil {
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
func (h *Service) find(ctx context.Context, name string) (store.Compute, error) {
	call := rpc.From(ctx)
	c, err := h.cfg.Store.Compute(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID())
	return c, view.Absent(err, name)
}

// GetCompute implements computev1.ComputeServiceServer.
func (h *Service) GetCompute(ctx context.Context, req *computev1.GetComputeRequest) (*computev1.Compute, error) {
	c, err := h.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return message(rpc.From(ctx).Scope.Name.Parent().String(), c), nil
}

// ListComputes implements computev1.ComputeServiceServer.
func (h *Service) ListComputes(ctx context.Context, req *computev1.ListComputesRequest) (*computev1.ListComputesResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	ws := rpc.From(ctx).Scope.WorkspaceUID
	cur, next, err := view.Page(ctx, h.cfg.Store, ws, "compute/computes/"+ws, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, cur, err := h.cfg.Store.ListComputes(ctx, ws, cur, n)
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
func (h *Service) DeleteCompute(ctx context.Context, req *computev1.DeleteComputeRequest) (*emptypb.Empty, error) {
	c, err := h.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := h.cfg.Store.DeleteCompute(ctx, c.UID, view.Record()); err != nil {
		return nil, view.Absent(err, req.GetName())
	}
	return &emptypb.Empty{}, nil
}

// maxClaimWait is the longest that ClaimRun waits for a run.
const maxClaimWait = 30 * time.Second

// ClaimRun implements computev1.ComputeServiceServer. The run leaves QUEUED in the same way as on a local target, so it is given
// to one claimer only.
func (h *Service) ClaimRun(ctx context.Context, req *computev1.ClaimRunRequest) (*computev1.ClaimRunResponse, error) {
	c, err := h.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if c.Kind != computev1.Compute_KIND_SELF_HOSTED {
		return nil, fault.FailedPrecondition("runs of this compute are started by the platform; only a self-hosted one is claimed from")
	}
	claim, err := h.cfg.Store.ClaimMAC(ctx, c, rpc.From(ctx).Principal, req.GetClaimId())
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, h.cfg.claimWait(req.GetWait().AsDuration()))
	defer cancel()
	b, err := h.again(ctx, c, claim)
	if err != nil {
		return nil, err
	}
	if b != nil {
		return given(ctx, b)
	}
	err = news.Each(wait, h.cfg.Store, store.ComputeTopic(c.UID), func() (bool, error) {
		var err error
		b, err = h.cfg.Queue.Claim(ctx, c, claim)
		return b != nil, err
	})
	if err != nil && wait.Err() != nil && ctx.Err() == nil && errors.Is(err, wait.Err()) {
		err = nil // nothing came
	}
	if err != nil {
		return nil, err
	}
	return given(ctx, b)
}

// again gives the run that was given for a claim before, nil where there is none.
func (h *Service) again(ctx context.Context, c store.Compute, claim []byte) (*computev1.AgentBootstrap, error) {
	if claim == nil {
		return nil, nil //nolint:nilnil // nothing to be had again
	}
	b, err := h.cfg.Queue.Reclaim(ctx, c, claim)
	if fault.Is(err, codes.NotFound) {
		return nil, nil //nolint:nilnil // the claim is new
	}
	if err == nil {
		rpc.From(ctx).Detail("repeated", "true")
	}
	return b, err
}

func given(ctx context.Context, b *computev1.AgentBootstrap) (*computev1.ClaimRunResponse, error) {
	if b != nil {
		run, err := resource.Parse(b.GetRun())
		if err != nil {
			return nil, err
		}
		rpc.From(ctx).Detail("run", run.ID())
	}
	return &computev1.ClaimRunResponse{Bootstrap: b}, nil
}
