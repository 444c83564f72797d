package tracking

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
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/compute/internal/filter"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// Experiments is what users ask about experiments.
type Experiments struct {
	computev1.UnsafeExperimentServiceServer
	cfg Config
}

var _ computev1.ExperimentServiceServer = (*Experiments)(nil)

// NewExperiments makes it.
func NewExperiments(cfg Config) *Experiments { return &Experiments{cfg: cfg} }

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

// CreateExperiment implements computev1.ExperimentServiceServer.
func (h *Experiments) CreateExperiment(ctx context.Context, req *computev1.CreateExperimentRequest) (*computev1.Experiment, error) {
	call := rpc.From(ctx)
	id, err := store.NewExperimentID()
	if err != nil {
		return nil, err
	}
	e := &store.Experiment{
		UID: resource.NewUID("exp"), Workspace: call.Scope.WorkspaceUID, ID: id, DisplayName: req.GetDisplayName(), Tags: req.GetTags(),
		Created: h.cfg.Now(), CreatedBy: call.Principal,
	}
	if err := h.cfg.Store.InsertExperiment(ctx, e, view.Record("experiment", id)); err != nil {
		return nil, err
	}
	return experimentMessage(req.GetParent(), e), nil
}

// GetExperiment implements computev1.ExperimentServiceServer.
func (h *Experiments) GetExperiment(ctx context.Context, req *computev1.GetExperimentRequest) (*computev1.Experiment, error) {
	call := rpc.From(ctx)
	e, err := h.cfg.Store.Experiment(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID())
	if err != nil {
		return nil, view.Absent(err, req.GetName())
	}
	return experimentMessage(call.Scope.Name.Parent().String(), e), nil
}

// LookupExperiment implements computev1.ExperimentServiceServer.
func (h *Experiments) LookupExperiment(ctx context.Context, req *computev1.LookupExperimentRequest) (*computev1.Experiment, error) {
	e, err := h.cfg.Store.ExperimentByName(ctx, rpc.From(ctx).Scope.WorkspaceUID, req.GetDisplayName())
	if err != nil {
		if fault.Is(err, codes.NotFound) {
			return nil, fault.NotFound("the workspace has no experiment of that display name")
		}
		return nil, err
	}
	return experimentMessage(req.GetParent(), e), nil
}

// change is one change of an experiment.
func (h *Experiments) change(ctx context.Context, name string, change func(e *store.Experiment) error) (*computev1.Experiment, error) {
	call := rpc.From(ctx)
	e, err := h.cfg.Store.UpdateExperiment(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID(), call.Principal, h.cfg.Now(), change, view.Record())
	if err != nil {
		return nil, view.Absent(err, name)
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
func (h *Experiments) UpdateExperiment(ctx context.Context, req *computev1.UpdateExperimentRequest) (*computev1.Experiment, error) {
	return h.change(ctx, req.GetName(), func(e *store.Experiment) error {
		e.DisplayName = req.GetDisplayName()
		return experimentDeleted(e)
	})
}

// SetExperimentTag implements computev1.ExperimentServiceServer.
func (h *Experiments) SetExperimentTag(ctx context.Context, req *computev1.SetExperimentTagRequest) (*computev1.Experiment, error) {
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
func (h *Experiments) DeleteExperiment(ctx context.Context, req *computev1.DeleteExperimentRequest) (*emptypb.Empty, error) {
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
func (h *Experiments) RestoreExperiment(ctx context.Context, req *computev1.RestoreExperimentRequest) (*computev1.Experiment, error) {
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
func (h *Experiments) SearchExperiments(ctx context.Context, req *computev1.SearchExperimentsRequest) (*computev1.SearchExperimentsResponse, error) {
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
	from, seal, err := openPlace(ctx, h.cfg.Store, query, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	least, most := deletedIn(req.GetView())
	var all []found
	err = h.cfg.Store.EachExperiment(ctx, call.Scope.WorkspaceUID, func(e *store.Experiment) {
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
		e, err := h.cfg.Store.Experiment(ctx, call.Scope.WorkspaceUID, all[next].id)
		if fault.Is(err, codes.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m := experimentMessage(req.GetParent(), e)
		if size += proto.Size(m); size > h.cfg.Bounds.Answer && len(out.GetExperiments()) > 0 {
			break
		}
		out.Experiments = append(out.Experiments, m)
	}
	if next < len(all) {
		out.NextPageToken, err = seal(all, next)
	}
	return out, err
}
