package compute

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

type agents struct {
	computev1.UnsafeAgentRunServiceServer
	s *Service
}

var _ computev1.AgentRunServiceServer = agents{}

func runEnded() error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_RUN_ENDED, "the run has ended")
}

// carried finds the run that the calling agent carries, which is the one that has got its assignment.
func (h agents) carried(ctx context.Context, name string) (*store.Run, error) {
	r, err := h.meant(ctx, name)
	if err != nil {
		return nil, err
	}
	if r.AgentKey == "" {
		return nil, fault.FailedPrecondition("ask for the assignment first")
	}
	return r, nil
}

// meant finds the run of the calling agent: the chain has matched the token with the run's name; here the token's run and key are
// matched with the run's own.
func (h agents) meant(ctx context.Context, name string) (*store.Run, error) {
	r, err := h.s.run(ctx, name)
	if err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	if call.Claims == nil || call.Claims.Run != r.UID || call.Claims.Confirmation == "" {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN, "only the agent that carries a run may do this, with its own token")
	}
	if r.HasEnded() {
		return nil, runEnded()
	}
	if r.AgentKey != "" && r.AgentKey != call.Claims.Confirmation {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN, "another agent carries this run")
	}
	return r, nil
}

// GetAssignment implements computev1.AgentRunServiceServer. The first key that asks carries the run from then on.
func (h agents) GetAssignment(ctx context.Context, req *computev1.GetAssignmentRequest) (*computev1.Assignment, error) {
	r, err := h.meant(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	key, now := rpc.From(ctx).Claims.Confirmation, h.s.cfg.Now()
	r, err = h.s.store.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		switch {
		case r.HasEnded():
			return runEnded()
		case r.AgentKey != "" && r.AgentKey != key:
			return fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN, "another agent carries this run")
		case r.State == computev1.Run_STATE_QUEUED:
			return fault.FailedPrecondition("the run is not started")
		}
		r.Heartbeat = now
		if r.State == computev1.Run_STATE_STARTING {
			r.State, r.Started, r.AgentKey = computev1.Run_STATE_RUNNING, now, key
			return h.s.platformEvent(ctx, tx, r, "running")
		}
		return nil
	}, nil)
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	h.s.news.changed(r.UID)
	limits := &computev1.RunLimits{}
	if r.Spec.GetLimits() != nil {
		limits = proto.CloneOf(r.Spec.GetLimits())
	}
	limits.LogBytes = h.s.logLimit(r)
	return &computev1.Assignment{
		Run: r.Name(), RunUid: r.UID, WorkspaceUid: r.Workspace, Command: r.Spec.GetCommand(), Environment: r.Spec.GetEnvironment(), Snapshot: r.Spec.GetSnapshot(),
		Limits: limits, Experiment: r.Spec.GetExperiment(), Heartbeat: durationpb.New(h.s.cfg.Heartbeat), LogOffset: r.LogBytes, CreateTime: timestamppb.New(r.Created),
		Serve: r.Replica.GetServe(),
	}, nil
}

func (s *Service) logLimit(r *store.Run) int64 {
	if n := r.Spec.GetLimits().GetLogBytes(); n > 0 && n < s.cfg.MaxLogBytes {
		return n
	}
	return s.cfg.MaxLogBytes
}

// Heartbeat implements computev1.AgentRunServiceServer.
func (h agents) Heartbeat(ctx context.Context, req *computev1.HeartbeatRequest) (*computev1.HeartbeatResponse, error) {
	r, err := h.carried(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if err := h.s.store.Touch(ctx, r.UID, h.s.cfg.Now()); err != nil {
		return nil, err
	}
	return &computev1.HeartbeatResponse{Cancel: r.Cancel}, nil
}

// AppendLogs implements computev1.AgentRunServiceServer.
func (h agents) AppendLogs(stream grpc.BidiStreamingServer[computev1.AppendLogsRequest, computev1.AppendLogsResponse]) error {
	ctx := stream.Context()
	var r *store.Run
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) && r != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if r == nil {
			if r, err = h.carried(ctx, req.GetName()); err != nil {
				return err
			}
		}
		stored, full, err := h.s.store.AppendLog(ctx, r, req.GetOffset(), req.GetData(), h.s.logLimit(r), h.s.cfg.Now())
		if err != nil {
			return err
		}
		h.s.news.changed(r.UID)
		if err := stream.Send(&computev1.AppendLogsResponse{Stored: stored, Full: full}); err != nil {
			return err
		}
	}
}

// ReportRun implements computev1.AgentRunServiceServer: the run ends in the transaction of this report.
func (h agents) ReportRun(ctx context.Context, req *computev1.ReportRunRequest) (*computev1.Run, error) {
	switch req.GetState() {
	case computev1.Run_STATE_COMPLETED, computev1.Run_STATE_FAILED, computev1.Run_STATE_CANCELED:
	default:
		return nil, fault.InvalidArgument("an agent reports COMPLETED, FAILED or CANCELED").Field("state", "is not an end that an agent reports")
	}
	r, err := h.carried(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	now := h.s.cfg.Now()
	r, err = h.s.store.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.HasEnded() {
			return runEnded()
		}
		if r.LogBytes < req.GetLogBytes() && r.LogBytes < h.s.logLimit(r) {
			return fault.FailedPrecondition("%d bytes of the log are stored, of %d; send the rest first", r.LogBytes, req.GetLogBytes())
		}
		outputs, err := store.CountAgentOutputs(ctx, tx, r.UID)
		if err != nil {
			return err
		}
		if outputs != int64(req.GetOutputs()) {
			return fault.FailedPrecondition("%d outputs are stored, of %d; send the rest first", outputs, req.GetOutputs())
		}
		state, message, reason := req.GetState(), req.GetMessage(), faultv1.Reason(faultv1.Reason_value[req.GetReason()])
		if r.Cancel && state != computev1.Run_STATE_COMPLETED && r.Outcome.GetReason() == faultv1.Reason_DEADLINE_PASSED.String() {
			state, message, reason = computev1.Run_STATE_FAILED, r.Outcome.GetMessage(), faultv1.Reason_DEADLINE_PASSED
		}
		r.Outcome.ExitCode = req.GetExitCode()
		end(r, state, message, reason, now)
		return nil
	}, record("state", req.GetState().String()))
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	// The run has ended whether or not identity answers now; the queue tells it again until it has.
	if err := h.s.revoke(ctx, r); err != nil {
		h.s.cfg.Logger.Warn("tokens of an ended run could not be revoked yet", "run_uid", r.UID, "error", err)
	}
	h.s.ended(r)
	return runMessage(r), nil
}
