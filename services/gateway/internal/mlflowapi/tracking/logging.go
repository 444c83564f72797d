package tracking

import (
	"encoding/json"
	"net/http"
	"strings"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

const (
	// historyPage is how many points are asked for at once.
	historyPage = 10_000
	// mostBulkRuns is of how many runs the histories are given together.
	mostBulkRuns = 100
	// bulkPoints is how many points of a run they have where nothing else is said, and at most.
	bulkPoints, mostBulkPoints = 320, 25_000
	// modelHistoryTag is where MLflow's clients look for the models that a run logged.
	modelHistoryTag = "mlflow.log-model.history"
)

func (h *routes) logRoutes() map[string]call.Route {
	return map[string]call.Route{
		"POST runs/log-metric": func(c *call.Call) (any, error) {
			q, err := call.In[struct {
				mlflow.RunIDs
				mlflow.Metric
			}](c)
			if err != nil {
				return nil, err
			}
			return h.log(c, q.RunIDs, mlflow.Batch{Metrics: []mlflow.Metric{q.Metric}})
		},
		"POST runs/log-parameter": func(c *call.Call) (any, error) {
			return h.logText(c, func(t mlflow.Text) mlflow.Batch { return mlflow.Batch{Params: []mlflow.Text{t}} })
		},
		"POST runs/set-tag": func(c *call.Call) (any, error) {
			return h.logText(c, func(t mlflow.Text) mlflow.Batch { return mlflow.Batch{Tags: []mlflow.Text{t}} })
		},
		"POST runs/log-batch": func(c *call.Call) (any, error) {
			q, err := call.In[struct {
				mlflow.RunIDs
				mlflow.Batch
			}](c)
			if err != nil {
				return nil, err
			}
			return h.log(c, q.RunIDs, q.Batch)
		},
		"POST runs/delete-tag":                   h.deleteTag,
		"POST runs/log-inputs":                   h.logInputs,
		"POST runs/outputs":                      h.logOutputs,
		"POST runs/log-model":                    h.logModel,
		"GET metrics/get-history":                h.history,
		"GET metrics/get-history-bulk-interval":  h.bulkHistory,
		"POST metrics/get-history-bulk-interval": h.bulkHistory,
	}
}

func (h *routes) logText(c *call.Call, as func(mlflow.Text) mlflow.Batch) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		mlflow.Text
	}](c)
	if err != nil {
		return nil, err
	}
	return h.log(c, q.RunIDs, as(q.Text))
}

// log stores a batch, all of it or nothing. The name of a run is a tag for MLflow and the run's own for us.
func (h *routes) log(c *call.Call, ids mlflow.RunIDs, b mlflow.Batch) (any, error) {
	name, err := c.Named(ids)
	if err != nil {
		return nil, err
	}
	for _, t := range b.Tags {
		if strings.HasPrefix(t.Key, linkPrefix) {
			return nil, mlflow.BadParameter("tags that begin with " + linkPrefix + " are what runs/log-inputs and runs/outputs write")
		}
	}
	logged, bad := b.Check(h.now())
	if bad != nil {
		return nil, bad
	}
	rename := ""
	tags := logged.Tags[:0:0]
	for _, t := range logged.Tags {
		if t.GetKey() == runNameTag {
			rename = t.GetValue()
			continue
		}
		tags = append(tags, t)
	}
	if len(logged.Metrics)+len(logged.Params)+len(tags) > 0 || rename == "" {
		req := &telemetryv1.LogBatchRequest{Run: name, Metrics: logged.Metrics, Params: logged.Params, Tags: tags}
		if _, err := h.metrics.LogBatch(c.Ctx, req); err != nil {
			return nil, err
		}
	}
	if rename != "" {
		return nil, h.rename(c, name, rename)
	}
	return nil, nil
}

func (h *routes) deleteTag(c *call.Call) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		Key string `json:"key"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.Named(q.RunIDs)
	if err != nil {
		return nil, err
	}
	if bad := mlflow.CheckKey(q.Key); bad != nil {
		return nil, bad
	}
	_, err = h.metrics.DeleteRunTag(c.Ctx, &telemetryv1.DeleteRunTagRequest{Run: name, Key: q.Key})
	return nil, err
}

// logModel notes in the run's tag that a model was logged, after those that stand there.
func (h *routes) logModel(c *call.Call) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		ModelJSON string `json:"model_json"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.Named(q.RunIDs)
	if err != nil {
		return nil, err
	}
	var model map[string]any
	if err := json.Unmarshal([]byte(q.ModelJSON), &model); err != nil || model["artifact_path"] == nil {
		return nil, mlflow.BadParameter("model_json is a JSON object with an artifact_path")
	}
	data, err := h.metrics.GetRunData(c.Ctx, &telemetryv1.GetRunDataRequest{Run: name})
	if err != nil {
		return nil, err
	}
	var models []json.RawMessage
	for _, t := range data.GetTags() {
		if t.GetKey() == modelHistoryTag && json.Unmarshal([]byte(t.GetValue()), &models) != nil {
			return nil, mlflow.BadParameter("the tag " + modelHistoryTag + " of the run is not a list of models")
		}
	}
	b, err := json.Marshal(append(models, json.RawMessage(q.ModelJSON)))
	if err != nil {
		return nil, err
	}
	if len(b) > mlflow.MostTag {
		return nil, mlflow.BadParameter("the run has logged as many models as its tag " + modelHistoryTag + " has room for")
	}
	return nil, h.setTags(c, name, &telemetryv1.Tag{Key: modelHistoryTag, Value: string(b)})
}

func (h *routes) setTags(c *call.Call, run string, tags ...*telemetryv1.Tag) error {
	_, err := h.metrics.LogBatch(c.Ctx, &telemetryv1.LogBatchRequest{Run: run, Tags: tags})
	return err
}

// history gives the points of a metric: a page, or without max_results all of them, call.Written as they come.
func (h *routes) history(c *call.Call) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		Key        string          `json:"metric_key"`
		MaxResults *mlflow.Integer `json:"max_results"`
		PageToken  string          `json:"page_token"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.Named(q.RunIDs)
	if err != nil {
		return nil, err
	}
	if bad := mlflow.CheckKey(q.Key); bad != nil {
		return nil, bad
	}
	req := &telemetryv1.ListMetricHistoryRequest{Run: name, Key: q.Key, PageToken: q.PageToken}
	if req.PageSize, err = call.PageSize(q.MaxResults); err != nil {
		return nil, err
	}
	all := q.MaxResults == nil && q.PageToken == ""
	if all {
		req.PageSize = historyPage
	}
	res, err := h.metrics.ListMetricHistory(c.Ctx, req)
	if err != nil {
		return nil, err
	}
	if !all || res.GetNextPageToken() == "" {
		out := call.Page{Key: "metrics", Items: make([]any, 0, len(res.GetMetrics())), Next: res.GetNextPageToken()}
		for _, m := range res.GetMetrics() {
			out.Items = append(out.Items, metricOf(m))
		}
		return out.Answer(), nil
	}
	c.W.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(c.W)
	separator := `{"metrics":[`
	for {
		for _, m := range res.GetMetrics() {
			if _, err := c.W.Write([]byte(separator)); err != nil {
				panic(http.ErrAbortHandler) // the client is gone
			}
			if err := out.Encode(metricOf(m)); err != nil {
				panic(http.ErrAbortHandler)
			}
			separator = ","
		}
		if res.GetNextPageToken() == "" {
			break
		}
		req.PageToken = res.GetNextPageToken()
		if res, err = h.metrics.ListMetricHistory(c.Ctx, req); err != nil {
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
	}
	_, _ = c.W.Write([]byte("]}"))
	return call.Written{}, nil
}

// bulkHistory gives the points of a metric of several runs between two steps, thinned out evenly.
func (h *routes) bulkHistory(c *call.Call) (any, error) {
	q, err := call.In[struct {
		RunIDs     call.Texts      `json:"run_ids"`
		Key        string          `json:"metric_key"`
		StartStep  *mlflow.Integer `json:"start_step"`
		EndStep    *mlflow.Integer `json:"end_step"`
		MaxResults *mlflow.Integer `json:"max_results"`
	}](c)
	if err != nil {
		return nil, err
	}
	most := bulkPoints
	if q.MaxResults != nil {
		if *q.MaxResults < 1 || *q.MaxResults > mostBulkPoints {
			return nil, mlflow.BadParameter("max_results is 1 to 25000")
		}
		most = int(*q.MaxResults)
	}
	switch {
	case len(q.RunIDs) == 0 || len(q.RunIDs) > mostBulkRuns:
		return nil, mlflow.BadParameter("run_ids names 1 to 100 runs")
	case (q.StartStep == nil) != (q.EndStep == nil):
		return nil, mlflow.BadParameter("start_step and end_step stand together")
	}
	if bad := mlflow.CheckKey(q.Key); bad != nil {
		return nil, bad
	}
	out := []metric{}
	for _, id := range q.RunIDs {
		name, err := c.RunName(id)
		if err != nil {
			return nil, err
		}
		points, err := h.points(c, &telemetryv1.ListMetricHistoryRequest{
			Run: name, Key: q.Key, PageSize: historyPage, StartStep: (*int64)(q.StartStep), EndStep: (*int64)(q.EndStep),
		})
		if err != nil {
			return nil, err
		}
		for _, m := range thinned(points, most) {
			one := metricOf(m)
			one.RunID = id
			out = append(out, one)
		}
	}
	return map[string]any{"metrics": out}, nil
}

func (h *routes) points(c *call.Call, req *telemetryv1.ListMetricHistoryRequest) ([]*telemetryv1.Metric, error) {
	var all []*telemetryv1.Metric
	for {
		res, err := h.metrics.ListMetricHistory(c.Ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, res.GetMetrics()...)
		if req.PageToken = res.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

// thinned leaves so many points at most, the first and the last among them.
func thinned(points []*telemetryv1.Metric, most int) []*telemetryv1.Metric {
	if len(points) <= most {
		return points
	}
	if most == 1 {
		return points[len(points)-1:]
	}
	out := make([]*telemetryv1.Metric, 0, most)
	for i := range most {
		out = append(out, points[i*(len(points)-1)/(most-1)])
	}
	return out
}
