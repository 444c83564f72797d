package compute

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/filter"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

type experiments struct {
	computev1.UnsafeExperimentServiceServer
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

// experimentRecord is an experiment as a filter looks at it.
type experimentRecord struct{ *store.Experiment }

// Text implements filter.Record.
func (r experimentRecord) Text(k filter.Key) (string, bool) {
	switch {
	case k.Entity == filter.Tag:
		v, ok := r.Tags[k.Name]
		return v, ok
	case k.Name == filter.Name:
		return r.DisplayName, true
	}
	return r.ID, k.Name == filter.ExperimentID
}

// Number implements filter.Record.
func (r experimentRecord) Number(k filter.Key) (float64, bool) {
	if k.Name == filter.LastUpdateTime {
		return millis(r.Updated)
	}
	return millis(r.Created)
}

// SearchExperiments implements computev1.ExperimentServiceServer: the newest first, where nothing else is asked for, and Default last.
func (h experiments) SearchExperiments(ctx context.Context, req *computev1.SearchExperimentsRequest) (*computev1.SearchExperimentsResponse, error) {
	call := rpc.From(ctx)
	limit, err := resource.PageSize(req.GetPageSize(), searchPage, searchMost)
	if err != nil {
		return nil, err
	}
	f, err := filter.Parse("filter", req.GetFilter(), filter.Experiments())
	if err != nil {
		return nil, err
	}
	order, err := filter.ParseOrder("order_by", req.GetOrderBy(), filter.Experiments())
	if err != nil {
		return nil, err
	}
	query, err := searchQuery("compute/search/experiments/", req)
	if err != nil {
		return nil, err
	}
	from, seal, err := h.s.place(ctx, query, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	least, most := deletedIn(req.GetView())
	var all []found
	err = h.s.store.EachExperiment(ctx, call.Scope.WorkspaceUID, func(e *store.Experiment) {
		if e.Deleted && most == store.NotDeleted || !e.Deleted && least != store.NotDeleted || !f.Match(experimentRecord{e}) {
			return
		}
		one := found{uid: e.ID, id: e.ID, place: order.Of(experimentRecord{e})}
		if !e.Created.IsZero() {
			one.started = e.Created.UnixMicro()
		}
		all = append(all, one)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b found) int {
		if c := order.Compare(a.place, b.place); c != 0 {
			return c
		}
		return cmp.Or(-cmp.Compare(a.started, b.started), strings.Compare(a.id, b.id))
	})
	next := from.after(len(all), func(i int) string { return all[i].uid })
	out, size := &computev1.SearchExperimentsResponse{}, 0
	for ; next < len(all) && len(out.GetExperiments()) < limit; next++ {
		e, err := h.s.store.Experiment(ctx, call.Scope.WorkspaceUID, all[next].id)
		if fault.Is(err, codes.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m := experimentMessage(req.GetParent(), e)
		if size += proto.Size(m); size > h.s.bounds.answer && len(out.GetExperiments()) > 0 {
			break
		}
		out.Experiments = append(out.Experiments, m)
	}
	if next < len(all) {
		out.NextPageToken, err = seal(all, next)
	}
	return out, err
}
