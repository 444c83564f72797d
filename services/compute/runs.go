package compute

import (
	"context"
	"fmt"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

type runs struct {
	computev1.UnsafeRunServiceServer
	s *Service
}

var _ computev1.RunServiceServer = runs{}

func requestReused() error {
	return fault.New(codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED, "this request_id was used for another request; take a new one")
}

func runMessage(r *store.Run) *computev1.Run {
	m := &computev1.Run{
		Name: r.Name(), Uid: r.UID, State: r.State, DisplayName: r.DisplayName(), Experiment: r.Spec.GetExperiment(), Compute: r.Spec.GetCompute(),
		Snapshot: r.Spec.GetSnapshot(), Command: r.Spec.GetCommand(), Submitter: r.Submitter, CreateTime: timestamppb.New(r.Created),
		ExitCode: r.Outcome.GetExitCode(), Message: r.Outcome.GetMessage(), Reason: r.Outcome.GetReason(), CancelRequested: r.Cancel,
		Environment: r.Spec.GetEnvironment(), Limits: r.Spec.GetLimits(), LogBytes: r.LogBytes, Etag: strconv.FormatInt(r.Version, 10), Kind: r.Kind,
		ExperimentName: r.Spec.GetParent() + "/experiments/" + r.Experiment, Deleted: r.Deleted != store.NotDeleted, User: r.Labels.GetUser(),
	}
	if !r.Started.IsZero() {
		m.StartTime = timestamppb.New(r.Started)
	}
	if !r.Ended.IsZero() {
		m.EndTime = timestamppb.New(r.Ended)
	}
	return m
}

// GetRun implements computev1.RunServiceServer.
func (h runs) GetRun(ctx context.Context, req *computev1.GetRunRequest) (*computev1.Run, error) {
	r, err := h.s.run(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return h.s.shown(ctx, r)
}

// ListRuns implements computev1.RunServiceServer.
func (h runs) ListRuns(ctx context.Context, req *computev1.ListRunsRequest) (*computev1.ListRunsResponse, error) {
	n, err := resource.PageSize(req.GetPageSize(), 100, 1000)
	if err != nil {
		return nil, err
	}
	ws := rpc.From(ctx).Scope.WorkspaceUID
	cur, next, err := h.s.page(ctx, ws, fmt.Sprintf("compute/runs/%s/%v/%t", ws, req.GetState(), req.GetShowDeleted()), req.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, cur, err := h.s.store.ListRuns(ctx, ws, req.GetState(), req.GetShowDeleted(), cur, n)
	if err != nil {
		return nil, err
	}
	out := &computev1.ListRunsResponse{}
	if out.Runs, err = h.s.allShown(ctx, list); err != nil {
		return nil, err
	}
	out.NextPageToken, err = next(cur, len(list), n)
	return out, err
}

// WatchRun implements computev1.RunServiceServer.
func (h runs) WatchRun(req *computev1.WatchRunRequest, stream grpc.ServerStreamingServer[computev1.Run]) error {
	ctx := stream.Context()
	r, err := h.s.run(ctx, req.GetName())
	if err != nil {
		return err
	}
	uid, sent := r.UID, int64(0)
	return h.s.news.each(ctx, uid, func() (bool, error) {
		r, err := h.s.store.RunByUID(ctx, uid)
		if err != nil {
			return false, absent(err, req.GetName())
		}
		if r.Version != sent {
			m, err := h.s.shown(ctx, r)
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
func (h runs) CancelRun(ctx context.Context, req *computev1.CancelRunRequest) (*computev1.Run, error) {
	r, err := h.s.run(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	switch r.Kind {
	case computev1.Run_KIND_REPLICA:
		return nil, errNotDeployed()
	case computev1.Run_KIND_TRACKED:
		return nil, fault.FailedPrecondition("the platform does not carry this run; stop it where it runs, and say so with UpdateTrackedRun")
	}
	if r, err = h.s.cancel(ctx, r.UID); err != nil {
		return nil, absent(err, req.GetName())
	}
	return h.s.shown(ctx, r)
}

// logPieces is how many pieces of a log are read at once.
const logPieces = 16

// StreamLogs implements computev1.RunServiceServer.
func (h runs) StreamLogs(req *computev1.StreamLogsRequest, stream grpc.ServerStreamingServer[computev1.LogChunk]) error {
	r, err := h.s.run(stream.Context(), req.GetName())
	if err != nil {
		return err
	}
	return h.s.sendLog(stream, r.UID, req.GetName(), req.GetOffset(), req.GetFollow())
}

// sendLog sends the log of a run from offset, and with follow goes on until it has ended. name is what its absence is told by.
func (s *Service) sendLog(stream grpc.ServerStreamingServer[computev1.LogChunk], uid, name string, offset int64, follow bool) error {
	ctx := stream.Context()
	return s.news.each(ctx, uid, func() (bool, error) {
		r, err := s.store.RunByUID(ctx, uid)
		if err != nil {
			return false, absent(err, name)
		}
		for {
			pieces, err := s.store.ReadLog(ctx, r, offset, logPieces)
			if err != nil {
				return false, err
			}
			for _, p := range pieces {
				if err := stream.Send(p); err != nil {
					return false, err
				}
				offset = p.GetOffset() + int64(len(p.GetData()))
			}
			if len(pieces) < logPieces {
				return !follow || r.HasEnded(), nil
			}
		}
	})
}

// ListOutputs implements computev1.RunServiceServer.
func (h runs) ListOutputs(ctx context.Context, req *computev1.ListOutputsRequest) (*computev1.ListOutputsResponse, error) {
	r, err := h.s.run(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	list, err := h.s.store.Outputs(ctx, r)
	if err != nil {
		return nil, err
	}
	out := &computev1.ListOutputsResponse{}
	for _, o := range list {
		out.Outputs = append(out.Outputs, outputMessage(o))
	}
	return out, nil
}

func outputMessage(o store.Output) *computev1.Output {
	return &computev1.Output{Path: o.Path, Size: o.Size, Digest: o.Digest, CreateTime: timestamppb.New(o.Created)}
}
