package tracking

import (
	"strings"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

// experiment is an experiment in an answer.
type experiment struct {
	ExperimentID     string          `json:"experiment_id"`
	Name             string          `json:"name"`
	ArtifactLocation string          `json:"artifact_location"`
	LifecycleStage   string          `json:"lifecycle_stage"`
	LastUpdateTime   int64           `json:"last_update_time"`
	CreationTime     int64           `json:"creation_time"`
	Tags             []call.KeyValue `json:"tags"`
	Workspace        string          `json:"workspace"`
}

func stageOf(deleted bool) string {
	if deleted {
		return "deleted"
	}
	return "active"
}

func experimentOf(e *computev1.Experiment) *experiment {
	id := call.Last(e.GetName())
	parts := strings.Split(e.GetName(), "/")
	workspace := ""
	if len(parts) > 5 {
		workspace = parts[5]
	}
	return &experiment{
		ExperimentID: id, Name: e.GetDisplayName(), ArtifactLocation: call.Scheme + "/" + id, LifecycleStage: stageOf(e.GetDeleted()),
		LastUpdateTime: call.Millis(e.GetUpdateTime()), CreationTime: call.Millis(e.GetCreateTime()), Tags: call.TagsOf(e.GetTags()), Workspace: workspace,
	}
}

// viewOf reads which of the living and the deleted are shown.
func viewOf(s string) (computev1.View, error) {
	switch s {
	case "", "ACTIVE_ONLY":
		return computev1.View_VIEW_ACTIVE, nil
	case "DELETED_ONLY":
		return computev1.View_VIEW_DELETED, nil
	case "ALL":
		return computev1.View_VIEW_ALL, nil
	}
	return 0, mlflow.BadParameter("a view is ACTIVE_ONLY, DELETED_ONLY or ALL")
}

func (h *routes) experimentRoutes() map[string]call.Route {
	return map[string]call.Route{
		"POST experiments/create":                h.createExperiment,
		"GET experiments/get":                    h.getExperiment,
		"GET experiments/get-by-name":            h.getExperimentByName,
		"POST experiments/search":                h.searchExperiments,
		"GET experiments/search":                 h.searchExperiments,
		"POST experiments/delete":                h.deleteExperiment,
		"POST experiments/restore":               h.restoreExperiment,
		"POST experiments/update":                h.updateExperiment,
		"POST experiments/set-experiment-tag":    func(c *call.Call) (any, error) { return h.tagExperiment(c, false) },
		"POST experiments/delete-experiment-tag": func(c *call.Call) (any, error) { return h.tagExperiment(c, true) },
		"POST experiments/search-datasets":       h.searchDatasets,
	}
}

func (h *routes) createExperiment(c *call.Call) (any, error) {
	q, err := call.In[struct {
		Name             string        `json:"name"`
		ArtifactLocation string        `json:"artifact_location"`
		Tags             []mlflow.Text `json:"tags"`
	}](c)
	if err != nil {
		return nil, err
	}
	switch {
	case q.Name == "":
		return nil, mlflow.BadParameter("name is missing")
	case q.ArtifactLocation != "":
		return nil, mlflow.BadParameter("artifacts are kept by the installation: leave artifact_location out")
	}
	tags, err := call.TagMap(q.Tags, call.MostResourceTag)
	if err != nil {
		return nil, err
	}
	e, err := h.experiments.CreateExperiment(c.Ctx, &computev1.CreateExperimentRequest{Parent: c.Workspace, DisplayName: q.Name, Tags: tags})
	if err != nil {
		return nil, err
	}
	return map[string]string{"experiment_id": call.Last(e.GetName())}, nil
}

type experimentID struct {
	ExperimentID string `json:"experiment_id"`
}

// oneExperiment reads a request that is about one experiment.
func oneExperiment(c *call.Call) (string, error) {
	q, err := call.In[experimentID](c)
	if err != nil {
		return "", err
	}
	return c.ExperimentName(q.ExperimentID)
}

func (h *routes) getExperiment(c *call.Call) (any, error) {
	name, err := oneExperiment(c)
	if err != nil {
		return nil, err
	}
	e, err := h.experiments.GetExperiment(c.Ctx, &computev1.GetExperimentRequest{Name: name})
	return call.Answer("experiment", experimentOf(e), err)
}

func (h *routes) getExperimentByName(c *call.Call) (any, error) {
	q, err := call.In[struct {
		Name string `json:"experiment_name"`
	}](c)
	if err != nil {
		return nil, err
	}
	if q.Name == "" {
		return nil, mlflow.BadParameter("experiment_name is missing")
	}
	e, err := h.experiments.LookupExperiment(c.Ctx, &computev1.LookupExperimentRequest{Parent: c.Workspace, DisplayName: q.Name})
	return call.Answer("experiment", experimentOf(e), err)
}

func (h *routes) searchExperiments(c *call.Call) (any, error) {
	q, err := call.In[struct {
		MaxResults *mlflow.Integer `json:"max_results"`
		PageToken  string          `json:"page_token"`
		Filter     string          `json:"filter"`
		OrderBy    call.Texts      `json:"order_by"`
		ViewType   string          `json:"view_type"`
	}](c)
	if err != nil {
		return nil, err
	}
	view, err := viewOf(q.ViewType)
	if err != nil {
		return nil, err
	}
	size, err := call.PageSize(q.MaxResults)
	if err != nil {
		return nil, err
	}
	res, err := h.experiments.SearchExperiments(c.Ctx, &computev1.SearchExperimentsRequest{
		Parent: c.Workspace, Filter: q.Filter, OrderBy: q.OrderBy, View: view, PageSize: size, PageToken: q.PageToken,
	})
	if err != nil {
		return nil, err
	}
	out := call.Page{Key: "experiments", Items: make([]any, 0, len(res.GetExperiments())), Next: res.GetNextPageToken()}
	for _, e := range res.GetExperiments() {
		out.Items = append(out.Items, experimentOf(e))
	}
	return out.Answer(), nil
}

func (h *routes) deleteExperiment(c *call.Call) (any, error) {
	name, err := oneExperiment(c)
	if err == nil {
		_, err = h.experiments.DeleteExperiment(c.Ctx, &computev1.DeleteExperimentRequest{Name: name})
	}
	return nil, err
}

func (h *routes) restoreExperiment(c *call.Call) (any, error) {
	name, err := oneExperiment(c)
	if err == nil {
		_, err = h.experiments.RestoreExperiment(c.Ctx, &computev1.RestoreExperimentRequest{Name: name})
	}
	return nil, err
}

func (h *routes) updateExperiment(c *call.Call) (any, error) {
	q, err := call.In[struct {
		experimentID
		NewName string `json:"new_name"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ExperimentName(q.ExperimentID)
	if err != nil {
		return nil, err
	}
	if q.NewName == "" {
		return nil, mlflow.BadParameter("new_name is missing")
	}
	_, err = h.experiments.UpdateExperiment(c.Ctx, &computev1.UpdateExperimentRequest{Name: name, DisplayName: q.NewName})
	return nil, err
}

func (h *routes) tagExperiment(c *call.Call, remove bool) (any, error) {
	q, err := call.In[struct {
		experimentID
		mlflow.Text
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.ExperimentName(q.ExperimentID)
	if err != nil {
		return nil, err
	}
	if bad := mlflow.CheckKey(q.Key); bad != nil {
		return nil, bad
	}
	value := ""
	if !remove {
		if q.Value == nil {
			return nil, mlflow.BadParameter("value is missing")
		}
		value = *q.Value
	}
	_, err = h.experiments.SetExperimentTag(c.Ctx, &computev1.SetExperimentTagRequest{Name: name, Key: q.Key, Value: value, Remove: remove})
	return nil, err
}
