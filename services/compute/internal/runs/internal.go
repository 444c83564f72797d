package runs

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Internal is what other services ask about runs.
type Internal struct {
	computev1.UnsafeRunInternalServiceServer
	cfg Config
}

var _ computev1.RunInternalServiceServer = (*Internal)(nil)

// NewInternal makes it.
func NewInternal(cfg Config) *Internal { return &Internal{cfg: cfg} }

// DescribeRun implements computev1.RunInternalServiceServer.
func (h *Internal) DescribeRun(ctx context.Context, req *computev1.DescribeRunRequest) (*computev1.DescribeRunResponse, error) {
	r, err := h.cfg.Store.Run(ctx, req.GetWorkspaceUid(), req.GetRunId())
	if err != nil {
		return nil, view.Absent(err, "runs/"+req.GetRunId())
	}
	return &computev1.DescribeRunResponse{RunUid: r.UID, State: r.State, Kind: r.Kind, Deleted: r.Deleted != store.NotDeleted}, nil
}

// PurgeWorkspace implements computev1.RunInternalServiceServer: what runs is stopped, then everything goes.
func (h *Internal) PurgeWorkspace(ctx context.Context, req *computev1.PurgeWorkspaceRequest) (*emptypb.Empty, error) {
	list, err := h.cfg.Store.OfWorkspace(ctx, req.GetWorkspaceUid())
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		if !r.HasEnded() && r.Kind != computev1.Run_KIND_TRACKED {
			h.cfg.Queue.End(ctx, r.UID, computev1.Run_STATE_CANCELED, "the workspace was deleted", faultv1.Reason_REASON_UNSPECIFIED)
		}
	}
	// Read again: a token that was not revoked in time must not outlive the row that remembers it.
	if list, err = h.cfg.Store.OfWorkspace(ctx, req.GetWorkspaceUid()); err != nil {
		return nil, err
	}
	for _, r := range list {
		if r.Kind == computev1.Run_KIND_TRACKED {
			continue
		}
		if !r.HasEnded() {
			return nil, fault.Unavailable("a run of the workspace could not be ended; repeat the call")
		}
		if r.Generation > 0 && !r.Revoked {
			r.DeliverUntil = time.Time{} // there is nothing any more that an agent could deliver to
			if err := h.cfg.Queue.Revoke(ctx, r); err != nil {
				return nil, err
			}
		}
		h.cfg.Queue.Ended(r) // here; elsewhere it is noticed that the row is gone
	}
	if err := h.cfg.Blobs.DeletePrefix(ctx, req.GetWorkspaceUid()); err != nil {
		return nil, err
	}
	if err := h.cfg.Store.Purge(ctx, req.GetWorkspaceUid(), view.Record("workspace_uid", req.GetWorkspaceUid())); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
