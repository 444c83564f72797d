package endpoints

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

type internal struct {
	inferencev1.UnsafeInferenceInternalServiceServer
	s *Service
}

var _ inferencev1.InferenceInternalServiceServer = internal{}

// DescribeEndpoint implements inferencev1.InferenceInternalServiceServer.
func (h internal) DescribeEndpoint(ctx context.Context, req *inferencev1.DescribeEndpointRequest) (*inferencev1.DescribeEndpointResponse, error) {
	x, err := h.s.reader(ctx, req.GetWorkspaceUid())
	if err != nil {
		return nil, err
	}
	e, err := x.Find(ctx, req.GetEndpointId())
	if err != nil {
		return nil, absent(err, "endpoints/"+req.GetEndpointId())
	}
	return &inferencev1.DescribeEndpointResponse{EndpointUid: e.UID}, nil
}

// PurgeWorkspace implements inferencev1.InferenceInternalServiceServer: endpoints are closed, nobody looks after deployments any more,
// and then everything goes. The runs of replicas are compute's to end, which is asked next. It can be repeated, also when the
// workspace's key is gone.
func (h internal) PurgeWorkspace(ctx context.Context, req *inferencev1.PurgeWorkspaceRequest) (*emptypb.Empty, error) {
	ws := req.GetWorkspaceUid()
	endpoints, err := h.s.store.EndpointsOfWorkspace(ctx, ws)
	if err != nil {
		return nil, err
	}
	if err := h.s.keepers.Leave(ctx, ws); err != nil {
		return nil, err
	}
	for _, uid := range endpoints {
		h.s.close(uid)
	}
	rows, err := h.s.store.ReplicasOfWorkspace(ctx, ws)
	if err != nil {
		return nil, err
	}
	err = h.s.store.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := store.PurgeEndpoints(ctx, tx, ws); err != nil {
			return err
		}
		if err := h.s.cfg.Models.Purge(ctx, tx, ws); err != nil {
			return err
		}
		if err := h.s.cfg.Keys.DestroyIn(ctx, tx, ws); err != nil {
			return err
		}
		return rpc.From(ctx).Audit(ctx, tx, "workspace_uid", ws)
	})
	if err != nil {
		return nil, err
	}
	h.s.cfg.Keys.Forget(ws)
	for _, r := range rows {
		if r.RunUID != "" {
			h.s.cfg.Listener.Forget(r.RunUID)
		}
	}
	return &emptypb.Empty{}, h.s.cfg.DB.Scrub(ctx)
}

// close makes an endpoint unknown to the listener.
func (s *Service) close(uid string) {
	defer s.locks.lock(uid)()
	s.cfg.Listener.Remove(uid)
}
