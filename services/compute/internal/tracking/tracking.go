// Package tracking is experiments, runs that are only tracked, their files, and the search for runs.
//
// Trust boundary: a run that is only tracked is its client's word. A filter is parsed here; it never becomes SQL.
//
// Invariants: what the platform carries is not ended from outside. A search shows of what telemetry keeps only what its caller may read
// there, nothing that was opened for it outlives the call, and it takes no more memory than its bounds.
//
// Failure: a search that needs what telemetry keeps fails where telemetry is away; one that does not, goes on.
package tracking

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/outputs"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Config of the part. All of it is required.
type Config struct {
	Store   *store.Store
	Outputs *outputs.Outputs
	RunData RunData
	// Bounds are what a search may take of memory.
	Bounds *Bounds
	Now    func() time.Time
}

// Service is runs that are only tracked, what is said of all runs, and the search for them.
type Service struct {
	computev1.UnsafeTrackingServiceServer
	cfg Config
}

var _ computev1.TrackingServiceServer = (*Service)(nil)

// New makes it.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// clientTime reads a time that a client says, which is absent where it says none.
func clientTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if !t.IsValid() || t.GetSeconds() < 0 {
		return time.Time{}, fault.InvalidArgument("%s is no time since 1970", field).Field(field, "is out of range")
	}
	return t.AsTime(), nil
}

// CreateTrackedRun implements computev1.TrackingServiceServer.
func (h *Service) CreateTrackedRun(ctx context.Context, req *computev1.CreateTrackedRunRequest) (*computev1.Run, error) {
	call, now := rpc.From(ctx), h.cfg.Now()
	id := req.GetRunId()
	if id == "" {
		id = strings.ToLower(rand.Text())
	} else if err := resource.ValidRunID(id); err != nil {
		return nil, err
	}
	experiment := store.DefaultExperiment
	if req.GetExperiment() != "" {
		if call.Uses[0].WorkspaceUID != call.Scope.WorkspaceUID {
			return nil, fault.InvalidArgument("a run is in an experiment of its own workspace").Field("experiment", "is of another workspace")
		}
		experiment = call.Uses[0].Name.ID()
	}
	started, err := clientTime("start_time", req.GetStartTime())
	if err != nil {
		return nil, err
	}
	if started.IsZero() {
		started = now
	}
	r := &store.Run{
		UID: resource.NewUID("run"), Workspace: call.Scope.WorkspaceUID, Kind: computev1.Run_KIND_TRACKED, Experiment: experiment,
		Spec:   &computev1.SubmitRunRequest{Parent: req.GetParent(), RunId: id},
		Labels: &computev1.CreateTrackedRunRequest{DisplayName: req.GetDisplayName(), User: req.GetUser()}, Submitter: call.Principal,
		State: computev1.Run_STATE_RUNNING, Created: now, Started: started,
	}
	stored, err := h.cfg.Store.InsertRun(ctx, r, "", view.Record("run", id, "experiment", experiment))
	if err != nil {
		if fault.Is(err, codes.NotFound) {
			return nil, rpc.NotFound(req.GetExperiment())
		}
		return nil, err
	}
	return view.Run(ctx, h.cfg.Store, stored)
}

// update is one change of a run that others than its agent make.
func (h *Service) update(ctx context.Context, name string, change func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error) (*computev1.Run, error) {
	r, err := view.Find(ctx, h.cfg.Store, name)
	if err != nil {
		return nil, err
	}
	r, err = h.cfg.Store.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.Kind == computev1.Run_KIND_REPLICA {
			return view.NotDeployed()
		}
		return change(ctx, tx, r)
	}, view.Record())
	if err != nil {
		return nil, view.Absent(err, name)
	}
	return view.Run(ctx, h.cfg.Store, r)
}

// UpdateTrackedRun implements computev1.TrackingServiceServer.
func (h *Service) UpdateTrackedRun(ctx context.Context, req *computev1.UpdateTrackedRunRequest) (*computev1.Run, error) {
	switch req.GetState() {
	case computev1.Run_STATE_STARTING, computev1.Run_STATE_FINALIZING, computev1.Run_STATE_LOST:
		return nil, fault.InvalidArgument("a tracked run is QUEUED, RUNNING, COMPLETED, FAILED or CANCELED").Field("state", "is one of the platform's")
	}
	ended, err := clientTime("end_time", req.GetEndTime())
	if err != nil {
		return nil, err
	}
	return h.update(ctx, req.GetName(), func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if err := view.Deleted(r); err != nil {
			return err
		}
		if req.GetState() != computev1.Run_STATE_UNSPECIFIED || req.GetEndTime() != nil {
			if err := track(r, req.GetState(), ended, h.cfg.Now()); err != nil {
				return err
			}
		}
		if req.DisplayName == nil {
			return nil
		}
		r.Labels = &computev1.CreateTrackedRunRequest{DisplayName: req.GetDisplayName(), User: r.Labels.GetUser()}
		return h.cfg.Store.Relabel(ctx, tx, r)
	})
}

// track sets what a client says of a run that it carries itself. One that goes on again has no end.
func track(r *store.Run, state computev1.Run_State, ended, now time.Time) error {
	if r.Kind != computev1.Run_KIND_TRACKED {
		return fault.FailedPrecondition("the platform carries this run: its state and its times are not set from outside; CancelRun stops it")
	}
	if state != computev1.Run_STATE_UNSPECIFIED {
		r.State = state
	}
	switch {
	case !r.HasEnded():
		r.Ended = time.Time{}
	case !ended.IsZero():
		r.Ended = ended
	case r.Ended.IsZero():
		r.Ended = now
	}
	return nil
}

// DeleteRun implements computev1.TrackingServiceServer.
func (h *Service) DeleteRun(ctx context.Context, req *computev1.DeleteRunRequest) (*emptypb.Empty, error) {
	_, err := h.update(ctx, req.GetName(), func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if err := view.Deleted(r); err != nil {
			return err
		}
		if r.Kind != computev1.Run_KIND_TRACKED && !r.HasEnded() {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "the run waits or runs; cancel it, and delete it when it has ended")
		}
		r.Deleted = store.DeletedItself
		return h.cfg.Store.Mark(ctx, tx, r)
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// RestoreRun implements computev1.TrackingServiceServer. A run whose experiment is deleted comes back alone.
func (h *Service) RestoreRun(ctx context.Context, req *computev1.RestoreRunRequest) (*computev1.Run, error) {
	return h.update(ctx, req.GetName(), func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if r.Deleted == store.NotDeleted {
			return fault.FailedPrecondition("the run is not deleted")
		}
		r.Deleted = store.NotDeleted
		return h.cfg.Store.Mark(ctx, tx, r)
	})
}
