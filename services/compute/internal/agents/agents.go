// Package agents answers the agents that carry runs.
//
// Trust boundary: an agent is believed only about the one run that its token names, and only the first key that asks for a run's
// assignment carries it. What it sends of user code is data.
//
// Invariants: a log has no gap and no overlap, whichever instance takes its pieces. A run ends when its log, its outputs and the report
// are committed. Of the agent of a run that was given up as lost what it delivers is taken for a while, and one report; the run stays LOST.
//
// Failure: what was not acknowledged is sent again, and taken once.
package agents

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/runspec"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/outputs"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Config of the part. All of it is required.
type Config struct {
	Store   *store.Store
	Queue   *queue.Queue
	Outputs *outputs.Outputs
	// Heartbeat is how often agents report, MaxLogBytes what one run may print.
	Heartbeat   time.Duration
	MaxLogBytes int64

	Now    func() time.Time
	Logger *slog.Logger
}

// Service is what agents ask about the runs that they carry.
type Service struct {
	computev1.UnsafeAgentRunServiceServer
	cfg Config
}

var _ computev1.AgentRunServiceServer = (*Service)(nil)

// New makes it.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

func runEnded() error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_RUN_ENDED, "the run has ended")
}

// carried finds the run that the calling agent carries, which is the one that has got its assignment.
func (h *Service) carried(ctx context.Context, name string) (*store.Run, error) {
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
func (h *Service) meant(ctx context.Context, name string) (*store.Run, error) {
	r, err := view.Find(ctx, h.cfg.Store, name)
	if err != nil {
		return nil, err
	}
	call := rpc.From(ctx)
	if call.Claims == nil || call.Claims.Run != r.UID || call.Claims.Confirmation == "" {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN, "only the agent that carries a run may do this, with its own token")
	}
	if r.HasEnded() && !r.Delivers(h.cfg.Now()) {
		return nil, runEnded()
	}
	if r.AgentKey != "" && r.AgentKey != call.Claims.Confirmation {
		return nil, fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN, "another agent carries this run")
	}
	return r, nil
}

// GetAssignment implements computev1.AgentRunServiceServer. The first key that asks carries the run from then on.
func (h *Service) GetAssignment(ctx context.Context, req *computev1.GetAssignmentRequest) (*computev1.Assignment, error) {
	r, err := h.meant(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	key, now := rpc.From(ctx).Claims.Confirmation, h.cfg.Now()
	r, err = h.cfg.Store.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		switch {
		case r.HasEnded():
			return runEnded()
		case r.AgentKey != "" && r.AgentKey != key:
			return fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN, "another agent carries this run")
		case !queue.Left(r):
			return fault.FailedPrecondition("the run is not started")
		}
		r.Heartbeat = now
		if r.State == computev1.Run_STATE_STARTING {
			r.State, r.Started, r.AgentKey = computev1.Run_STATE_RUNNING, now, key
			return h.cfg.Queue.Event(ctx, tx, r, "running")
		}
		return nil
	}, nil)
	if err != nil {
		return nil, view.Absent(err, req.GetName())
	}
	limits := &computev1.RunLimits{}
	if r.Spec.GetLimits() != nil {
		limits = proto.CloneOf(r.Spec.GetLimits())
	}
	limits.LogBytes = h.logLimit(r)
	return &computev1.Assignment{
		Run: r.Name(), RunUid: r.UID, WorkspaceUid: r.Workspace, Command: r.Spec.GetCommand(), Environment: r.Spec.GetEnvironment(), Snapshot: r.Spec.GetSnapshot(),
		Limits: limits, Experiment: r.Spec.GetExperiment(), Heartbeat: durationpb.New(h.cfg.Heartbeat), LogOffset: r.LogBytes, CreateTime: timestamppb.New(r.Created),
		Serve: r.Replica.GetServe(),
	}, nil
}

func (h *Service) logLimit(r *store.Run) int64 {
	if n := r.Spec.GetLimits().GetLogBytes(); n > 0 && n < h.cfg.MaxLogBytes {
		return n
	}
	return h.cfg.MaxLogBytes
}

// Heartbeat implements computev1.AgentRunServiceServer.
func (h *Service) Heartbeat(ctx context.Context, req *computev1.HeartbeatRequest) (*computev1.HeartbeatResponse, error) {
	r, err := h.carried(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if r.HasEnded() { // it comes back too late to go on, and may deliver
		return &computev1.HeartbeatResponse{Cancel: true}, nil
	}
	if err := h.cfg.Store.Touch(ctx, r.UID, h.cfg.Now()); err != nil {
		return nil, err
	}
	return &computev1.HeartbeatResponse{Cancel: r.Cancel}, nil
}

// AppendLogs implements computev1.AgentRunServiceServer.
func (h *Service) AppendLogs(stream grpc.BidiStreamingServer[computev1.AppendLogsRequest, computev1.AppendLogsResponse]) error {
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
		stored, full, err := h.cfg.Store.AppendLog(ctx, r, req.GetOffset(), req.GetData(), h.logLimit(r), h.cfg.Now())
		if err != nil {
			return err
		}
		if err := stream.Send(&computev1.AppendLogsResponse{Stored: stored, Full: full}); err != nil {
			return err
		}
	}
}

// ReportRun implements computev1.AgentRunServiceServer: the run ends in the transaction of this report. One that was given up as lost has
// ended, and stays so: whoever has seen that may have acted on it.
func (h *Service) ReportRun(ctx context.Context, req *computev1.ReportRunRequest) (*computev1.Run, error) {
	switch req.GetState() {
	case computev1.Run_STATE_COMPLETED, computev1.Run_STATE_FAILED, computev1.Run_STATE_CANCELED:
	default:
		return nil, fault.InvalidArgument("an agent reports COMPLETED, FAILED or CANCELED").Field("state", "is not an end that an agent reports")
	}
	r, err := h.carried(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	now := h.cfg.Now()
	r, err = h.cfg.Store.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.HasEnded() && !r.Delivers(now) {
			return runEnded()
		}
		if r.LogBytes < req.GetLogBytes() && r.LogBytes < h.logLimit(r) {
			return fault.FailedPrecondition("%d bytes of the log are stored, of %d; send the rest first", r.LogBytes, req.GetLogBytes())
		}
		outputs, err := store.CountAgentOutputs(ctx, tx, r.UID)
		if err != nil {
			return err
		}
		if outputs != int64(req.GetOutputs()) {
			return fault.FailedPrecondition("%d outputs are stored, of %d; send the rest first", outputs, req.GetOutputs())
		}
		if r.HasEnded() {
			late(r, req, now)
			return nil
		}
		state, message, reason := req.GetState(), req.GetMessage(), faultv1.Reason(faultv1.Reason_value[req.GetReason()])
		if r.Cancel && state != computev1.Run_STATE_COMPLETED && r.Outcome.GetReason() == faultv1.Reason_DEADLINE_PASSED.String() {
			state, message, reason = computev1.Run_STATE_FAILED, r.Outcome.GetMessage(), faultv1.Reason_DEADLINE_PASSED
		}
		r.Outcome.ExitCode = req.GetExitCode()
		queue.Finish(r, state, message, reason, now)
		return nil
	}, view.Record("state", req.GetState().String()))
	if err != nil {
		return nil, view.Absent(err, req.GetName())
	}
	h.cfg.Queue.Ended(r)
	// The run has ended whether or not identity answers now; the queue tells it again until it has. The agent hears what is so.
	if err := h.cfg.Queue.Revoke(ctx, r); err != nil {
		h.cfg.Logger.Warn("tokens of an ended run could not be revoked yet", "run_uid", r.UID, "error", err)
		return nil, pending(err)
	}
	return view.Message(r), nil
}

// late notes the report of a run that was given up as lost. Nothing more is taken of its agent.
func late(r *store.Run, req *computev1.ReportRunRequest, now time.Time) {
	r.Reported, r.ReportedAt, r.DeliverUntil = req.GetState(), now, time.Time{}
	r.Outcome.ExitCode = req.GetExitCode()
	r.Outcome.Message += fmt.Sprintf("; it came back after %v and delivered: %s, exit code %d",
		now.Sub(r.Ended).Round(time.Second), strings.TrimPrefix(req.GetState().String(), "STATE_"), req.GetExitCode())
	if req.GetMessage() != "" {
		r.Outcome.Message += ": " + req.GetMessage()
	}
}

// pending says that a run has ended, and that its tokens are not known to be refused everywhere yet.
func pending(err error) error {
	if fault.ReasonOf(err) == faultv1.Reason_CHANGE_PENDING {
		return err
	}
	return fault.Wrap(err, codes.DeadlineExceeded, faultv1.Reason_CHANGE_PENDING,
		"the run has ended, but it is not known yet that its token is refused everywhere: identity does not answer, and is asked until it does")
}

// UploadOutput implements computev1.AgentRunServiceServer. The content is stored under a name of its own, and the run's list points
// to it only when it has arrived whole.
func (h *Service) UploadOutput(stream grpc.ClientStreamingServer[computev1.UploadOutputRequest, computev1.Output]) error {
	ctx := stream.Context()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	r, err := h.carried(ctx, first.GetName())
	if err != nil {
		return err
	}
	if err := runspec.Path("path", "the path of an output", first.GetPath()); err != nil {
		return err
	}
	if first.GetSize() < 0 || len(first.GetDigest()) != sha256.Size {
		return fault.InvalidArgument("the first message has size and SHA-256 digest").Field("digest", "has 32 bytes")
	}
	if _, err := h.cfg.Outputs.Room(ctx, r, first.GetPath(), first.GetSize()); err != nil {
		return err
	}
	o, err := h.cfg.Outputs.Take(ctx, r, store.Output{Path: first.GetPath(), Size: first.GetSize(), Digest: first.GetDigest()}, first.GetData(), func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	}, nil)
	if err != nil {
		return err
	}
	return stream.SendAndClose(outputs.Message(o))
}
