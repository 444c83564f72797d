// Package runs is the runs as users ask for them, and what other services ask about them.
//
// Trust boundary: the chain has decided that the caller may. What a run is to do is sealed, and looked at anew when it starts.
//
// Invariants: a request id makes one run. A watch tells of every state that it comes to see, and ends with the run.
//
// Failure: a workspace whose runs cannot all be ended is not purged; the call is repeated.
package runs

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/news"
	"github.com/redoubt-ml/redoubt/services/compute/internal/outputs"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Config of the part. All of it is required.
type Config struct {
	Store     *store.Store
	Queue     *queue.Queue
	Outputs   *outputs.Outputs
	Blobs     *blob.Store
	Snapshots workspacev1.SnapshotServiceClient

	Now func() time.Time
}

// Service is what users ask about runs.
type Service struct {
	computev1.UnsafeRunServiceServer
	cfg Config
}

var _ computev1.RunServiceServer = (*Service)(nil)

// New makes it.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

func requestReused() error {
	return fault.New(codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED, "this request_id was used for another request; take a new one")
}

// GetRun implements computev1.RunServiceServer.
func (h *Service) GetRun(ctx context.Context, req *computev1.GetRunRequest) (*computev1.Run, error) {
	r, err := view.Find(ctx, h.cfg.Store, req.GetName())
	if err != nil {
		return nil, err
	}
	return view.Run(ctx, h.cfg.Store, r)
}

// ListRuns implements computev1.RunServiceServer.
func (h *Service) ListRuns(ctx context.Context, req *computev1.ListRunsRequest) (*computev1.ListRunsResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	ws := rpc.From(ctx).Scope.WorkspaceUID
	cur, next, err := view.Page(ctx, h.cfg.Store, ws, fmt.Sprintf("compute/runs/%s/%v/%t", ws, req.GetState(), req.GetShowDeleted()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, cur, err := h.cfg.Store.ListRuns(ctx, ws, req.GetState(), req.GetShowDeleted(), cur, n)
	if err != nil {
		return nil, err
	}
	out := &computev1.ListRunsResponse{}
	if out.Runs, err = view.Runs(ctx, h.cfg.Store, list); err != nil {
		return nil, err
	}
	out.NextPageToken, err = next(cur, len(list), n)
	return out, err
}

// WatchRun implements computev1.RunServiceServer.
func (h *Service) WatchRun(req *computev1.WatchRunRequest, stream grpc.ServerStreamingServer[computev1.Run]) error {
	ctx := stream.Context()
	r, err := view.Find(ctx, h.cfg.Store, req.GetName())
	if err != nil {
		return err
	}
	uid, sent := r.UID, int64(0)
	return news.Each(ctx, h.cfg.Store, store.RunTopic(uid), func() (bool, error) {
		r, err := h.cfg.Store.RunByUID(ctx, uid)
		if err != nil {
			return false, view.Absent(err, req.GetName())
		}
		if r.Version != sent {
			m, err := view.Run(ctx, h.cfg.Store, r)
			if err != nil {
				return false, err
			}
			if err := stream.Send(m); err != nil {
				return false, err
			}
			sent = r.Version
		}
		return r.HasEnded(), nil
	})
}

// CancelRun implements computev1.RunServiceServer.
func (h *Service) CancelRun(ctx context.Context, req *computev1.CancelRunRequest) (*computev1.Run, error) {
	r, err := view.Find(ctx, h.cfg.Store, req.GetName())
	if err != nil {
		return nil, err
	}
	switch r.Kind {
	case computev1.Run_KIND_REPLICA:
		return nil, view.NotDeployed()
	case computev1.Run_KIND_TRACKED:
		return nil, fault.FailedPrecondition("the platform does not carry this run; stop it where it runs, and say so with UpdateTrackedRun")
	}
	if r, err = h.cfg.Queue.Cancel(ctx, r.UID); err != nil {
		return nil, view.Absent(err, req.GetName())
	}
	// Its agent hears of it by its next heartbeat; that its token opens nothing but what delivers is so everywhere before the answer. The queue
	// sees to it where identity does not answer.
	if r.AgentKey != "" && r.Cancel && !r.Narrowed && !r.HasEnded() {
		if err := h.cfg.Queue.Revoke(ctx, r); err != nil {
			return nil, notNarrowed(err)
		}
	}
	return view.Run(ctx, h.cfg.Store, r)
}

// notNarrowed says that a run is asked to stop, and that its token may open more than what delivers, somewhere.
func notNarrowed(err error) error {
	if fault.ReasonOf(err) == faultv1.Reason_CHANGE_PENDING {
		return err
	}
	return fault.Wrap(err, codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING,
		"the run is asked to stop, but it is not known yet that its token is limited everywhere: identity does not answer, and is asked until it does")
}

// StreamLogs implements computev1.RunServiceServer.
func (h *Service) StreamLogs(req *computev1.StreamLogsRequest, stream grpc.ServerStreamingServer[computev1.LogChunk]) error {
	r, err := view.Find(stream.Context(), h.cfg.Store, req.GetName())
	if err != nil {
		return err
	}
	return view.SendLog(stream, h.cfg.Store, r.UID, req.GetName(), req.GetOffset(), req.GetFollow())
}

// ListOutputs implements computev1.RunServiceServer.
func (h *Service) ListOutputs(ctx context.Context, req *computev1.ListOutputsRequest) (*computev1.ListOutputsResponse, error) {
	r, err := view.Find(ctx, h.cfg.Store, req.GetName())
	if err != nil {
		return nil, err
	}
	list, err := h.cfg.Store.Outputs(ctx, r)
	if err != nil {
		return nil, err
	}
	out := &computev1.ListOutputsResponse{}
	for _, o := range list {
		out.Outputs = append(out.Outputs, outputs.Message(o))
	}
	return out, nil
}

// DownloadOutput implements computev1.RunServiceServer.
func (h *Service) DownloadOutput(req *computev1.DownloadOutputRequest, stream grpc.ServerStreamingServer[computev1.DownloadOutputResponse]) error {
	ctx := stream.Context()
	r, err := view.Find(ctx, h.cfg.Store, req.GetName())
	if err != nil {
		return err
	}
	o, err := h.cfg.Store.Output(ctx, r, req.GetPath())
	if err != nil {
		return view.Absent(err, req.GetName()+" output "+req.GetPath())
	}
	return h.cfg.Outputs.Send(ctx, r, o, func(data []byte) error {
		return stream.Send(&computev1.DownloadOutputResponse{Data: data})
	})
}
