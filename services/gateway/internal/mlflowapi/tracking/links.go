package tracking

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

// What a run took in and gave out is kept in tags of the run, one for each dataset and each model. They are not shown among the tags.
const (
	linkPrefix  = "redoubt.mlflow."
	datasetLink = linkPrefix + "dataset."
	inputLink   = linkPrefix + "input."
	outputLink  = linkPrefix + "output."
	// mostLinks is how many one request may bring, as many as tags.
	mostLinks = mlflow.MostTags
	// datasetPage is how many runs are looked at for their datasets at once, mostDatasets how many datasets an answer has.
	datasetPage, mostDatasets = 1000, 1000
)

type inputs struct {
	Datasets []datasetInput `json:"dataset_inputs"`
	Models   []modelLink    `json:"model_inputs"`
}

type outputs struct {
	Models []modelLink `json:"model_outputs"`
}

type datasetInput struct {
	Tags    []call.KeyValue `json:"tags"`
	Dataset dataset         `json:"dataset"`
}

type dataset struct {
	Name       string `json:"name"`
	Digest     string `json:"digest"`
	SourceType string `json:"source_type"`
	Source     string `json:"source"`
	Schema     string `json:"schema,omitempty"`
	Profile    string `json:"profile,omitempty"`
}

type modelLink struct {
	ModelID string          `json:"model_id"`
	Step    *mlflow.Integer `json:"step,omitempty"`
}

// link reads one tag that stands for a link. One that cannot be read is left out: only log-inputs and outputs write them.
func (r *run) link(key, value string) {
	switch {
	case strings.HasPrefix(key, datasetLink):
		var d datasetInput
		if json.Unmarshal([]byte(value), &d) == nil {
			r.Inputs.Datasets = append(r.Inputs.Datasets, d)
		}
	case strings.HasPrefix(key, inputLink):
		r.Inputs.Models = append(r.Inputs.Models, modelLink{ModelID: strings.TrimPrefix(key, inputLink)})
	case strings.HasPrefix(key, outputLink):
		var m modelLink
		if json.Unmarshal([]byte(value), &m) == nil {
			r.Outputs.Models = append(r.Outputs.Models, m)
		}
	}
}

// linkTag is a link as a tag of the run.
func linkTag(key string, value any) (*telemetryv1.Tag, error) {
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	if len(b) > mlflow.MostTag {
		return nil, mlflow.BadParameter("a dataset with its source, schema and profile has at most 8000 bytes here; leave the profile out")
	}
	return &telemetryv1.Tag{Key: key, Value: string(b)}, nil
}

func (h *routes) logInputs(c *call.Call) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		Datasets []datasetInput `json:"datasets"`
		Models   []modelLink    `json:"models"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.Named(q.RunIDs)
	if err != nil {
		return nil, err
	}
	if len(q.Datasets)+len(q.Models) > mostLinks {
		return nil, mlflow.BadParameter("a request has at most 100 datasets and models")
	}
	var tags []*telemetryv1.Tag
	for _, d := range q.Datasets {
		if d.Dataset.Name == "" || d.Dataset.Digest == "" || d.Dataset.SourceType == "" {
			return nil, mlflow.BadParameter("a dataset has a name, a digest, a source and a source_type")
		}
		sum := sha256.Sum256([]byte(d.Dataset.Name + "\x00" + d.Dataset.Digest))
		t, err := linkTag(datasetLink+hex.EncodeToString(sum[:16]), d)
		if err != nil {
			return nil, err
		}
		tags = append(tags, t)
	}
	for _, m := range q.Models {
		if bad := checkModelID(m.ModelID); bad != nil {
			return nil, bad
		}
		tags = append(tags, &telemetryv1.Tag{Key: inputLink + m.ModelID, Value: "{}"})
	}
	return nil, h.setTags(c, name, tags...)
}

func (h *routes) logOutputs(c *call.Call) (any, error) {
	q, err := call.In[struct {
		mlflow.RunIDs
		Models []modelLink `json:"models"`
	}](c)
	if err != nil {
		return nil, err
	}
	name, err := c.Named(q.RunIDs)
	if err != nil {
		return nil, err
	}
	if len(q.Models) > mostLinks {
		return nil, mlflow.BadParameter("a request has at most 100 models")
	}
	var tags []*telemetryv1.Tag
	for _, m := range q.Models {
		if bad := checkModelID(m.ModelID); bad != nil {
			return nil, bad
		}
		t, err := linkTag(outputLink+m.ModelID, m)
		if err != nil {
			return nil, err
		}
		tags = append(tags, t)
	}
	return nil, h.setTags(c, name, tags...)
}

// checkModelID holds the id of a logged model to what a key may be.
func checkModelID(id string) *mlflow.Refusal {
	if len(id) > 200 || resource.ValidRunID(id) != nil {
		return mlflow.BadParameter("model_id is not the id of a model")
	}
	return nil
}

// rename gives a run another name.
func (h *routes) rename(c *call.Call, run, name string) error {
	_, err := h.tracking.UpdateTrackedRun(c.Ctx, &computev1.UpdateTrackedRunRequest{Name: run, DisplayName: &name})
	return err
}

// searchDatasets lists the datasets that runs of some experiments took in.
func (h *routes) searchDatasets(c *call.Call) (any, error) {
	q, err := call.In[struct {
		ExperimentIDs call.Texts `json:"experiment_ids"`
	}](c)
	if err != nil {
		return nil, err
	}
	if len(q.ExperimentIDs) == 0 || len(q.ExperimentIDs) > 20 {
		return nil, mlflow.Refuse(http.StatusBadRequest, "INVALID_PARAMETER_VALUE", "experiment_ids names 1 to 20 experiments")
	}
	req := &computev1.SearchRunsRequest{Parent: c.Workspace, PageSize: datasetPage}
	for _, id := range q.ExperimentIDs {
		name, err := c.ExperimentName(id)
		if err != nil {
			return nil, err
		}
		req.Experiments = append(req.Experiments, name)
	}
	type summary struct {
		ExperimentID string `json:"experiment_id"`
		Name         string `json:"name"`
		Digest       string `json:"digest"`
		Context      string `json:"context,omitempty"`
	}
	seen, out := map[summary]bool{}, []summary{}
	for {
		res, err := h.tracking.SearchRuns(c.Ctx, req)
		if err != nil {
			return nil, err
		}
		for _, r := range res.GetRuns() {
			for _, d := range runOf(r.GetRun(), r.GetData()).Inputs.Datasets {
				s := summary{ExperimentID: call.ExperimentIDOf(r.GetRun()), Name: d.Dataset.Name, Digest: d.Dataset.Digest}
				for _, t := range d.Tags {
					if t.Key == "mlflow.data.context" {
						s.Context = t.Value
					}
				}
				if !seen[s] {
					seen[s] = true
					out = append(out, s)
				}
			}
		}
		if req.PageToken = res.GetNextPageToken(); req.GetPageToken() == "" || len(out) >= mostDatasets {
			return map[string]any{"dataset_summaries": out[:min(len(out), mostDatasets)]}, nil
		}
	}
}
