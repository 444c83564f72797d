package compute

import (
	"context"
	"maps"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

type experiments struct {
	computev1.UnimplementedExperimentServiceServer
	s *Service
}

var _ computev1.ExperimentServiceServer = experiments{}

// maxExperimentTags is how many tags an experiment may have: they are opened with it.
const maxExperimentTags = 1000

func experimentMessage(parent string, e *store.Experiment) *computev1.Experiment {
	m := &computev1.Experiment{
		Name: parent + "/experiments/" + e.ID, Uid: e.UID, DisplayName: e.DisplayName, Tags: e.Tags, Deleted: e.Deleted, CreatedBy: e.CreatedBy,
	}
	if !e.Created.IsZero() {
		m.CreateTime, m.UpdateTime = timestamppb.New(e.Created), timestamppb.New(e.Updated)
	}
	return m
}

// mayJoin says who gets into the experiment that a run names by its display name.
func mayJoin(call *rpc.Call) func(e *store.Experiment, makes bool) error {
	return func(e *store.Experiment, makes bool) error {
		workspace, ok := call.Scope.Name.Workspace()
		action := "compute/experiments/read"
		if makes {
			action = "compute/experiments/write"
		}
		if !ok || !call.May(action, false, workspace) {
			return fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING, "the action %s is missing for the experiment that the run names; leave it out, or ask for the action", action).
				With("action", action).With("scope", workspace.String())
		}
		call.Detail("experiment", e.ID)
		return nil
	}
}

// shown is a run with what its experiment is called now.
func (s *Service) shown(ctx context.Context, r *store.Run) (*computev1.Run, error) {
	out, err := s.allShown(ctx, []*store.Run{r})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

func (s *Service) allShown(ctx context.Context, list []*store.Run) ([]*computev1.Run, error) {
	names, out := make(map[string]string), make([]*computev1.Run, 0, len(list))
	for _, r := range list {
		name, ok := names[r.Experiment]
		if !ok {
			e, err := s.store.Experiment(ctx, r.Workspace, r.Experiment)
			if err != nil {
				return nil, err
			}
			name = e.DisplayName
			names[r.Experiment] = name
		}
		m := runMessage(r)
		m.Experiment = name
		out = append(out, m)
	}
	return out, nil
}

// CreateExperiment implements computev1.ExperimentServiceServer.
func (h experiments) CreateExperiment(ctx context.Context, req *computev1.CreateExperimentRequest) (*computev1.Experiment, error) {
	call := rpc.From(ctx)
	id, err := store.NewExperimentID()
	if err != nil {
		return nil, err
	}
	e := &store.Experiment{
		UID: resource.NewUID("exp"), Workspace: call.Scope.WorkspaceUID, ID: id, DisplayName: req.GetDisplayName(), Tags: req.GetTags(),
		Created: h.s.cfg.Now(), CreatedBy: call.Principal,
	}
	if err := h.s.store.InsertExperiment(ctx, e, record("experiment", id)); err != nil {
		return nil, err
	}
	return experimentMessage(req.GetParent(), e), nil
}

// GetExperiment implements computev1.ExperimentServiceServer.
func (h experiments) GetExperiment(ctx context.Context, req *computev1.GetExperimentRequest) (*computev1.Experiment, error) {
	call := rpc.From(ctx)
	e, err := h.s.store.Experiment(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID())
	if err != nil {
		return nil, absent(err, req.GetName())
	}
	return experimentMessage(call.Scope.Name.Parent().String(), e), nil
}

// LookupExperiment implements computev1.ExperimentServiceServer.
func (h experiments) LookupExperiment(ctx context.Context, req *computev1.LookupExperimentRequest) (*computev1.Experiment, error) {
	e, err := h.s.store.ExperimentByName(ctx, rpc.From(ctx).Scope.WorkspaceUID, req.GetDisplayName())
	if err != nil {
		if fault.Is(err, codes.NotFound) {
			return nil, fault.NotFound("the workspace has no experiment of that display name")
		}
		return nil, err
	}
	return experimentMessage(req.GetParent(), e), nil
}

// change is one change of an experiment.
func (h experiments) change(ctx context.Context, name string, change func(e *store.Experiment) error) (*computev1.Experiment, error) {
	call := rpc.From(ctx)
	e, err := h.s.store.UpdateExperiment(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID(), call.Principal, h.s.cfg.Now(), change, record())
	if err != nil {
		return nil, absent(err, name)
	}
	return experimentMessage(call.Scope.Name.Parent().String(), e), nil
}

func experimentDeleted(e *store.Experiment) error {
	if e.Deleted {
		return fault.FailedPrecondition("the experiment %s is deleted; restore it first", e.ID)
	}
	return nil
}

// UpdateExperiment implements computev1.ExperimentServiceServer.
func (h experiments) UpdateExperiment(ctx context.Context, req *computev1.UpdateExperimentRequest) (*computev1.Experiment, error) {
	return h.change(ctx, req.GetName(), func(e *store.Experiment) error {
		e.DisplayName = req.GetDisplayName()
		return experimentDeleted(e)
	})
}

// SetExperimentTag implements computev1.ExperimentServiceServer.
func (h experiments) SetExperimentTag(ctx context.Context, req *computev1.SetExperimentTagRequest) (*computev1.Experiment, error) {
	return h.change(ctx, req.GetName(), func(e *store.Experiment) error {
		if err := experimentDeleted(e); err != nil {
			return err
		}
		tags := maps.Clone(e.Tags)
		if tags == nil {
			tags = make(map[string]string)
		}
		if _, has := tags[req.GetKey()]; req.GetRemove() {
			if !has {
				return fault.NotFound("the experiment %s has no such tag", e.ID)
			}
			delete(tags, req.GetKey())
		} else {
			if !has && len(tags) >= maxExperimentTags {
				return fault.ResourceExhausted("the experiment has %d tags, which is the most; remove one first", maxExperimentTags)
			}
			tags[req.GetKey()] = req.GetValue()
		}
		e.Tags = tags
		return nil
	})
}

// DeleteExperiment implements computev1.ExperimentServiceServer.
func (h experiments) DeleteExperiment(ctx context.Context, req *computev1.DeleteExperimentRequest) (*emptypb.Empty, error) {
	_, err := h.change(ctx, req.GetName(), func(e *store.Experiment) error {
		if e.ID == store.DefaultExperiment {
			return fault.FailedPrecondition("every workspace has the experiment 0; it is not deleted")
		}
		err := experimentDeleted(e)
		e.Deleted = true
		return err
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// RestoreExperiment implements computev1.ExperimentServiceServer.
func (h experiments) RestoreExperiment(ctx context.Context, req *computev1.RestoreExperimentRequest) (*computev1.Experiment, error) {
	return h.change(ctx, req.GetName(), func(e *store.Experiment) error {
		if !e.Deleted {
			return fault.FailedPrecondition("the experiment %s is not deleted", e.ID)
		}
		e.Deleted = false
		return nil
	})
}
