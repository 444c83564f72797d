package mlflowapi

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// mostResults is how many a page of a search has at most.
const mostResults = 50_000

// keyValue is a tag in an answer.
type keyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// tagsOf are tags in the order of their keys.
func tagsOf(tags map[string]string) []keyValue {
	out := make([]keyValue, 0, len(tags))
	for k, v := range tags {
		out = append(out, keyValue{k, v})
	}
	slices.SortFunc(out, func(a, b keyValue) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// tagMap reads the tags of a request.
func tagMap(tags []mlflow.Text, most int) (map[string]string, error) {
	out := make(map[string]string, len(tags))
	for _, t := range tags {
		if bad := t.Check(most); bad != nil {
			return nil, bad
		}
		if had, twice := out[t.Key]; twice && had != *t.Value {
			return nil, mlflow.BadParameter("the same tag stands there twice, with two values")
		}
		out[t.Key] = *t.Value
	}
	return out, nil
}

// millis is a time as MLflow has it; 0 for none.
func millis(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return t.AsTime().UnixMilli()
}

// experiment is an experiment in an answer.
type experiment struct {
	ExperimentID     string     `json:"experiment_id"`
	Name             string     `json:"name"`
	ArtifactLocation string     `json:"artifact_location"`
	LifecycleStage   string     `json:"lifecycle_stage"`
	LastUpdateTime   int64      `json:"last_update_time"`
	CreationTime     int64      `json:"creation_time"`
	Tags             []keyValue `json:"tags"`
	Workspace        string     `json:"workspace"`
}

func stageOf(deleted bool) string {
	if deleted {
		return "deleted"
	}
	return "active"
}

func last(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func experimentOf(e *computev1.Experiment) *experiment {
	id := last(e.GetName())
	parts := strings.Split(e.GetName(), "/")
	workspace := ""
	if len(parts) > 5 {
		workspace = parts[5]
	}
	return &experiment{
		ExperimentID: id, Name: e.GetDisplayName(), ArtifactLocation: scheme + "/" + id, LifecycleStage: stageOf(e.GetDeleted()),
		LastUpdateTime: millis(e.GetUpdateTime()), CreationTime: millis(e.GetCreateTime()), Tags: tagsOf(e.GetTags()), Workspace: workspace,
	}
}

// experimentName is the name of the experiment of this id.
func (c *call) experimentName(id string) (string, error) {
	if id == "" {
		return "", mlflow.BadParameter("experiment_id is missing")
	}
	name := c.workspace + "/experiments/" + id
	if n, err := resource.Parse(name); err != nil || n.Kind() != resource.KindExperiment {
		return "", mlflow.BadParameter("experiment_id is not the id of an experiment")
	}
	return name, nil
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

// pageOf reads how many results a page has.
func pageOf(n *mlflow.Integer) (int32, error) {
	switch {
	case n == nil:
		return 0, nil
	case *n < 1 || *n > mostResults:
		return 0, mlflow.BadParameter("max_results is 1 to 50000")
	}
	return int32(*n), nil
}

func (h *Handler) experimentRoutes() map[string]route {
	return map[string]route{
		"POST experiments/create":                h.createExperiment,
		"GET experiments/get":                    h.getExperiment,
		"GET experiments/get-by-name":            h.getExperimentByName,
		"POST experiments/search":                h.searchExperiments,
		"GET experiments/search":                 h.searchExperiments,
		"POST experiments/delete":                h.deleteExperiment,
		"POST experiments/restore":               h.restoreExperiment,
		"POST experiments/update":                h.updateExperiment,
		"POST experiments/set-experiment-tag":    func(c *call) (any, error) { return h.tagExperiment(c, false) },
		"POST experiments/delete-experiment-tag": func(c *call) (any, error) { return h.tagExperiment(c, true) },
		"POST experiments/search-datasets":       h.searchDatasets,
	}
}

func (h *Handler) createExperiment(c *call) (any, error) {
	q, err := in[struct {
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
	tags, err := tagMap(q.Tags, mostExperimentTag)
	if err != nil {
		return nil, err
	}
	e, err := h.experiments.CreateExperiment(c.ctx, &computev1.CreateExperimentRequest{Parent: c.workspace, DisplayName: q.Name, Tags: tags})
	if err != nil {
		return nil, err
	}
	return map[string]string{"experiment_id": last(e.GetName())}, nil
}

// mostExperimentTag bounds the value of an experiment's tag at its creation.
const mostExperimentTag = 5000

type experimentID struct {
	ExperimentID string `json:"experiment_id"`
}

// oneExperiment reads a request that is about one experiment.
func oneExperiment(c *call) (string, error) {
	q, err := in[experimentID](c)
	if err != nil {
		return "", err
	}
	return c.experimentName(q.ExperimentID)
}

func (h *Handler) getExperiment(c *call) (any, error) {
	name, err := oneExperiment(c)
	if err != nil {
		return nil, err
	}
	e, err := h.experiments.GetExperiment(c.ctx, &computev1.GetExperimentRequest{Name: name})
	return answerOf("experiment", experimentOf(e), err)
}

// answerOf wraps what a route answers with, or gives the error.
func answerOf(key string, value any, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return map[string]any{key: value}, nil
}

func (h *Handler) getExperimentByName(c *call) (any, error) {
	q, err := in[struct {
		Name string `json:"experiment_name"`
	}](c)
	if err != nil {
		return nil, err
	}
	if q.Name == "" {
		return nil, mlflow.BadParameter("experiment_name is missing")
	}
	e, err := h.experiments.LookupExperiment(c.ctx, &computev1.LookupExperimentRequest{Parent: c.workspace, DisplayName: q.Name})
	return answerOf("experiment", experimentOf(e), err)
}

func (h *Handler) searchExperiments(c *call) (any, error) {
	q, err := in[struct {
		MaxResults *mlflow.Integer `json:"max_results"`
		PageToken  string          `json:"page_token"`
		Filter     string          `json:"filter"`
		OrderBy    texts           `json:"order_by"`
		ViewType   string          `json:"view_type"`
	}](c)
	if err != nil {
		return nil, err
	}
	view, err := viewOf(q.ViewType)
	if err != nil {
		return nil, err
	}
	size, err := pageOf(q.MaxResults)
	if err != nil {
		return nil, err
	}
	res, err := h.experiments.SearchExperiments(c.ctx, &computev1.SearchExperimentsRequest{
		Parent: c.workspace, Filter: q.Filter, OrderBy: q.OrderBy, View: view, PageSize: size, PageToken: q.PageToken,
	})
	if err != nil {
		return nil, err
	}
	out := page{key: "experiments", items: make([]any, 0, len(res.GetExperiments())), next: res.GetNextPageToken()}
	for _, e := range res.GetExperiments() {
		out.items = append(out.items, experimentOf(e))
	}
	return out.answer(), nil
}

// page is a list with a way on. MLflow's clients take no token for the end.
type page struct {
	key   string
	items []any
	next  string
}

func (p page) answer() map[string]any {
	out := map[string]any{p.key: p.items}
	if p.next != "" {
		out["next_page_token"] = p.next
	}
	return out
}

func (h *Handler) deleteExperiment(c *call) (any, error) {
	name, err := oneExperiment(c)
	if err == nil {
		_, err = h.experiments.DeleteExperiment(c.ctx, &computev1.DeleteExperimentRequest{Name: name})
	}
	return nil, err
}

func (h *Handler) restoreExperiment(c *call) (any, error) {
	name, err := oneExperiment(c)
	if err == nil {
		_, err = h.experiments.RestoreExperiment(c.ctx, &computev1.RestoreExperimentRequest{Name: name})
	}
	return nil, err
}

func (h *Handler) updateExperiment(c *call) (any, error) {
	q, err := in[struct {
		experimentID
		NewName string `json:"new_name"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.experimentName(q.ExperimentID)
	if err != nil {
		return nil, err
	}
	if q.NewName == "" {
		return nil, mlflow.BadParameter("new_name is missing")
	}
	_, err = h.experiments.UpdateExperiment(c.ctx, &computev1.UpdateExperimentRequest{Name: name, DisplayName: q.NewName})
	return nil, err
}

func (h *Handler) tagExperiment(c *call, remove bool) (any, error) {
	q, err := in[struct {
		experimentID
		mlflow.Text
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.experimentName(q.ExperimentID)
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
	_, err = h.experiments.SetExperimentTag(c.ctx, &computev1.SetExperimentTagRequest{Name: name, Key: q.Key, Value: value, Remove: remove})
	return nil, err
}
