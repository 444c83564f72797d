package tracking

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

// runNameTag is the tag in which MLflow keeps a run's name beside the name itself.
const runNameTag = "mlflow.runName"

// runInfo is what a run is, in an answer.
type runInfo struct {
	RunID          string `json:"run_id"`
	RunUUID        string `json:"run_uuid"`
	RunName        string `json:"run_name"`
	ExperimentID   string `json:"experiment_id"`
	UserID         string `json:"user_id"`
	Status         string `json:"status"`
	StartTime      int64  `json:"start_time"`
	EndTime        int64  `json:"end_time,omitempty"`
	ArtifactURI    string `json:"artifact_uri"`
	LifecycleStage string `json:"lifecycle_stage"`
}

// metric is a point in an answer.
type metric struct {
	Key       string        `json:"key"`
	Value     mlflow.Number `json:"value"`
	Timestamp int64         `json:"timestamp"`
	Step      int64         `json:"step"`
	RunID     string        `json:"run_id,omitempty"`
}

func metricOf(m *telemetryv1.Metric) metric {
	return metric{Key: m.GetKey(), Value: mlflow.Number(m.GetValue()), Timestamp: call.Millis(m.GetTime()), Step: m.GetStep()}
}

// run is a run in an answer.
type run struct {
	Info    *runInfo `json:"info"`
	Data    runData  `json:"data"`
	Inputs  inputs   `json:"inputs"`
	Outputs outputs  `json:"outputs"`
}

type runData struct {
	Metrics []metric        `json:"metrics"`
	Params  []call.KeyValue `json:"params"`
	Tags    []call.KeyValue `json:"tags"`
}

// statusOf is a state in MLflow's words.
func statusOf(s computev1.Run_State) string {
	switch s {
	case computev1.Run_STATE_QUEUED, computev1.Run_STATE_STARTING:
		return "SCHEDULED"
	case computev1.Run_STATE_COMPLETED:
		return "FINISHED"
	case computev1.Run_STATE_FAILED, computev1.Run_STATE_LOST:
		return "FAILED"
	case computev1.Run_STATE_CANCELED:
		return "KILLED"
	}
	return "RUNNING"
}

// stateOf reads a state in MLflow's words, or none.
func stateOf(s string) (computev1.Run_State, error) {
	switch s {
	case "":
		return computev1.Run_STATE_UNSPECIFIED, nil
	case "RUNNING":
		return computev1.Run_STATE_RUNNING, nil
	case "SCHEDULED":
		return computev1.Run_STATE_QUEUED, nil
	case "FINISHED":
		return computev1.Run_STATE_COMPLETED, nil
	case "FAILED":
		return computev1.Run_STATE_FAILED, nil
	case "KILLED":
		return computev1.Run_STATE_CANCELED, nil
	}
	return 0, mlflow.BadParameter("a status is RUNNING, SCHEDULED, FINISHED, FAILED or KILLED")
}

func infoOf(r *computev1.Run) *runInfo {
	id := call.Last(r.GetName())
	out := &runInfo{
		RunID: id, RunUUID: id, RunName: r.GetDisplayName(), ExperimentID: call.ExperimentIDOf(r), UserID: r.GetUser(), Status: statusOf(r.GetState()),
		StartTime: call.Millis(r.GetStartTime()), EndTime: call.Millis(r.GetEndTime()), ArtifactURI: call.ArtifactURI(r), LifecycleStage: stageOf(r.GetDeleted()),
	}
	if out.UserID == "" {
		out.UserID = r.GetSubmitter()
	}
	if out.RunName == "" {
		out.RunName = id
	}
	if r.GetStartTime() == nil {
		out.StartTime = call.Millis(r.GetCreateTime())
	}
	return out
}

func runOf(r *computev1.Run, data *telemetryv1.RunData) *run {
	out := &run{Info: infoOf(r), Data: runData{Metrics: []metric{}, Params: []call.KeyValue{}, Tags: []call.KeyValue{}}}
	out.Inputs.Datasets, out.Inputs.Models, out.Outputs.Models = []datasetInput{}, []modelLink{}, []modelLink{}
	for _, m := range data.GetLatest() {
		out.Data.Metrics = append(out.Data.Metrics, metricOf(m))
	}
	for _, p := range data.GetParams() {
		out.Data.Params = append(out.Data.Params, call.KeyValue{Key: p.GetKey(), Value: p.GetValue()})
	}
	for _, t := range data.GetTags() {
		switch {
		case t.GetKey() == runNameTag:
		case strings.HasPrefix(t.GetKey(), linkPrefix):
			out.link(t.GetKey(), t.GetValue())
		default:
			out.Data.Tags = append(out.Data.Tags, call.KeyValue{Key: t.GetKey(), Value: t.GetValue()})
		}
	}
	out.Data.Tags = append(out.Data.Tags, call.KeyValue{Key: runNameTag, Value: out.Info.RunName})
	return out
}

// oneRun reads a request that is about one run.
func oneRun(c *call.Call) (string, error) {
	q, err := call.In[mlflow.RunIDs](c)
	if err != nil {
		return "", err
	}
	return c.Named(*q)
}

func (h *routes) runRoutes() map[string]call.Route {
	return map[string]call.Route{
		"POST runs/create":  h.createRun,
		"POST runs/update":  h.updateRun,
		"POST runs/delete":  h.deleteRun,
		"POST runs/restore": h.restoreRun,
		"GET runs/get":      h.getRun,
		"POST runs/search":  h.searchRuns,
	}
}

// timeOf reads a time in milliseconds.
func timeOf(field string, n *mlflow.Integer) (*timestamppb.Timestamp, error) {
	if n == nil || *n == 0 {
		return nil, nil
	}
	t := timestamppb.New(time.UnixMilli(int64(*n)))
	if !t.IsValid() {
		return nil, mlflow.BadParameter(field + " is in milliseconds since 1970, up to the year 9999")
	}
	return t, nil
}

func (h *routes) createRun(c *call.Call) (any, error) {
	q, err := call.In[struct {
		experimentID
		UserID    string          `json:"user_id"`
		RunName   string          `json:"run_name"`
		StartTime *mlflow.Integer `json:"start_time"`
		Tags      []mlflow.Text   `json:"tags"`
	}](c)
	if err != nil {
		return nil, err
	}
	req := &computev1.CreateTrackedRunRequest{Parent: c.Workspace, DisplayName: q.RunName, User: q.UserID}
	if q.ExperimentID != "" {
		if req.Experiment, err = c.ExperimentName(q.ExperimentID); err != nil {
			return nil, err
		}
	}
	if req.StartTime, err = timeOf("start_time", q.StartTime); err != nil {
		return nil, err
	}
	// Everything about the tags that can be known is known before there is a run.
	tags, err := call.TagMap(q.Tags, mlflow.MostTag)
	if err != nil {
		return nil, err
	}
	if len(tags) > mlflow.MostTags {
		return nil, mlflow.BadParameter("a run begins with at most 100 tags")
	}
	switch name := tags[runNameTag]; {
	case name != "" && req.GetDisplayName() == "":
		req.DisplayName = name
	case name != "" && name != req.GetDisplayName():
		return nil, mlflow.BadParameter("run_name and the tag " + runNameTag + " are two names")
	}
	delete(tags, runNameTag)
	r, err := h.tracking.CreateTrackedRun(c.Ctx, req)
	if err != nil {
		return nil, err
	}
	data := &telemetryv1.RunData{}
	for _, t := range call.TagsOf(tags) {
		data.Tags = append(data.Tags, &telemetryv1.Tag{Key: t.Key, Value: t.Value})
	}
	if len(tags) > 0 {
		if _, err := h.metrics.LogBatch(c.Ctx, &telemetryv1.LogBatchRequest{Run: r.GetName(), Tags: data.GetTags()}); err != nil {
			return nil, err
		}
	}
	return map[string]any{"run": runOf(r, data)}, nil
}

func (h *routes) updateRun(c *call.Call) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		Status  string          `json:"status"`
		EndTime *mlflow.Integer `json:"end_time"`
		RunName *string         `json:"run_name"`
	}](c)
	if err != nil {
		return nil, err
	}
	req := &computev1.UpdateTrackedRunRequest{}
	if req.Name, err = c.Named(q.RunIDs); err != nil {
		return nil, err
	}
	if req.State, err = stateOf(q.Status); err != nil {
		return nil, err
	}
	if req.EndTime, err = timeOf("end_time", q.EndTime); err != nil {
		return nil, err
	}
	if q.RunName != nil && *q.RunName != "" {
		req.DisplayName = q.RunName
	}
	r, err := h.tracking.UpdateTrackedRun(c.Ctx, req)
	if err != nil {
		return nil, err
	}
	return map[string]any{"run_info": infoOf(r)}, nil
}

func (h *routes) deleteRun(c *call.Call) (any, error) {
	name, err := oneRun(c)
	if err == nil {
		_, err = h.tracking.DeleteRun(c.Ctx, &computev1.DeleteRunRequest{Name: name})
	}
	return nil, err
}

func (h *routes) restoreRun(c *call.Call) (any, error) {
	name, err := oneRun(c)
	if err == nil {
		_, err = h.tracking.RestoreRun(c.Ctx, &computev1.RestoreRunRequest{Name: name})
	}
	return nil, err
}

func (h *routes) getRun(c *call.Call) (any, error) {
	name, err := oneRun(c)
	if err != nil {
		return nil, err
	}
	r, err := h.runs.GetRun(c.Ctx, &computev1.GetRunRequest{Name: name})
	if err != nil {
		return nil, err
	}
	data, err := h.metrics.GetRunData(c.Ctx, &telemetryv1.GetRunDataRequest{Run: name})
	if err != nil {
		return nil, err
	}
	return map[string]any{"run": runOf(r, data)}, nil
}

func (h *routes) searchRuns(c *call.Call) (any, error) {
	q, err := call.In[struct {
		ExperimentIDs call.Texts      `json:"experiment_ids"`
		Filter        string          `json:"filter"`
		View          string          `json:"run_view_type"`
		MaxResults    *mlflow.Integer `json:"max_results"`
		OrderBy       call.Texts      `json:"order_by"`
		PageToken     string          `json:"page_token"`
	}](c)
	if err != nil {
		return nil, err
	}
	req := &computev1.SearchRunsRequest{Parent: c.Workspace, Filter: q.Filter, OrderBy: q.OrderBy, PageToken: q.PageToken}
	if req.View, err = viewOf(q.View); err != nil {
		return nil, err
	}
	if req.PageSize, err = call.PageSize(q.MaxResults); err != nil {
		return nil, err
	}
	for _, id := range q.ExperimentIDs {
		name, err := c.ExperimentName(id)
		if err != nil {
			return nil, err
		}
		req.Experiments = append(req.Experiments, name)
	}
	res, err := h.tracking.SearchRuns(c.Ctx, req)
	if err != nil {
		return nil, err
	}
	out := call.Page{Key: "runs", Items: make([]any, 0, len(res.GetRuns())), Next: res.GetNextPageToken()}
	for _, r := range res.GetRuns() {
		out.Items = append(out.Items, runOf(r.GetRun(), r.GetData()))
	}
	return out.Answer(), nil
}
