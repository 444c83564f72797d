package mlflow

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// shapes are the messages of MLflow's REST API as they stand in JSON: what each field is. "?" in front: it may be left out.
var shapes = map[string]map[string]string{
	"Experiment": {
		"experiment_id": "string", "name": "string", "artifact_location": "string", "lifecycle_stage": "stage", "last_update_time": "int",
		"creation_time": "int", "tags": "[]Tag", "workspace": "string",
	},
	"Tag":   {"key": "string", "value": "string"},
	"Param": {"key": "string", "value": "string"},
	"Run":   {"info": "RunInfo", "data": "RunData", "inputs": "RunInputs", "outputs": "RunOutputs"},
	"RunInfo": {
		"run_id": "string", "run_uuid": "string", "run_name": "string", "experiment_id": "string", "user_id": "string", "status": "status",
		"start_time": "int", "?end_time": "int", "artifact_uri": "string", "lifecycle_stage": "stage",
	},
	"RunData":      {"metrics": "[]Metric", "params": "[]Param", "tags": "[]Tag"},
	"RunInputs":    {"dataset_inputs": "[]DatasetInput", "model_inputs": "[]ModelInput"},
	"RunOutputs":   {"model_outputs": "[]ModelOutput"},
	"DatasetInput": {"tags": "[]Tag", "dataset": "Dataset"},
	"Dataset":      {"name": "string", "digest": "string", "source_type": "string", "source": "string", "?schema": "string", "?profile": "string"},
	"ModelInput":   {"model_id": "string"},
	"ModelOutput":  {"model_id": "string", "step": "int"},
	"Metric":       {"key": "string", "value": "double", "timestamp": "int", "step": "int"},
	"MetricWithRunId": {
		"key": "string", "value": "double", "timestamp": "int", "step": "int", "run_id": "string",
	},
	"FileInfo":       {"path": "string", "is_dir": "bool", "?file_size": "int"},
	"DatasetSummary": {"experiment_id": "string", "name": "string", "digest": "string", "?context": "string"},
	"RegisteredModel": {
		"name": "string", "creation_timestamp": "int", "last_updated_timestamp": "int", "user_id": "string", "description": "string",
		"latest_versions": "[]ModelVersion", "tags": "[]Tag", "aliases": "[]Alias",
	},
	"Alias": {"alias": "string", "version": "string"},
	"ModelVersion": {
		"name": "string", "version": "string", "creation_timestamp": "int", "last_updated_timestamp": "int", "user_id": "string",
		"current_stage": "string", "description": "string", "source": "string", "run_id": "string", "status": "READY", "status_message": "string",
		"tags": "[]Tag", "run_link": "string", "aliases": "[]string",
	},
	"ServerInfo": {
		"store_type": "string", "workspaces_enabled": "bool", "trace_archival_enabled": "bool", "multipart_uploads_enabled": "bool",
		"multipart_downloads_enabled": "bool",
	},

	// answers
	"Empty":                {},
	"Error":                {"error_code": "string", "message": "string"},
	"CreateExperiment":     {"experiment_id": "string"},
	"GetExperiment":        {"experiment": "Experiment"},
	"SearchExperiments":    {"experiments": "[]Experiment", "?next_page_token": "string"},
	"SearchDatasets":       {"dataset_summaries": "[]DatasetSummary"},
	"GetRun":               {"run": "Run"},
	"UpdateRun":            {"run_info": "RunInfo"},
	"SearchRuns":           {"runs": "[]Run", "?next_page_token": "string"},
	"GetMetricHistory":     {"metrics": "[]Metric", "?next_page_token": "string"},
	"BulkHistory":          {"metrics": "[]MetricWithRunId"},
	"ListArtifacts":        {"root_uri": "string", "files": "[]FileInfo"},
	"ProxyList":            {"files": "[]FileInfo"},
	"GetRegisteredModel":   {"registered_model": "RegisteredModel"},
	"SearchModels":         {"registered_models": "[]RegisteredModel", "?next_page_token": "string"},
	"GetModelVersion":      {"model_version": "ModelVersion"},
	"SearchModelVersions":  {"model_versions": "[]ModelVersion", "?next_page_token": "string"},
	"ModelVersionDownload": {"artifact_uri": "string"},
}

// fits holds a value to what it should be.
func fits(at string, v any, want string) []string {
	wrong := func() []string { return []string{fmt.Sprintf("%s is %v, not %s", at, v, want)} }
	if item, ok := strings.CutPrefix(want, "[]"); ok {
		list, ok := v.([]any)
		if !ok {
			return wrong()
		}
		var all []string
		for i, x := range list {
			all = append(all, fits(fmt.Sprintf("%s[%d]", at, i), x, item)...)
		}
		return all
	}
	switch want {
	case "string":
		if _, ok := v.(string); !ok {
			return wrong()
		}
		return nil
	case "bool":
		if _, ok := v.(bool); !ok {
			return wrong()
		}
		return nil
	case "int":
		n, ok := v.(json.Number)
		if _, err := n.Int64(); !ok || err != nil {
			return wrong()
		}
		return nil
	case "double":
		_, number := v.(json.Number)
		if s, ok := v.(string); !number && (!ok || !slices.Contains([]string{"NaN", "Infinity", "-Infinity"}, s)) {
			return wrong()
		}
		return nil
	case "stage":
		if v != "active" && v != "deleted" {
			return wrong()
		}
		return nil
	case "status":
		if !slices.Contains([]any{"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"}, v) {
			return wrong()
		}
		return nil
	case "READY":
		if v != want {
			return wrong()
		}
		return nil
	}
	shape, known := shapes[want]
	object, ok := v.(map[string]any)
	if !known || !ok {
		return wrong()
	}
	var all []string
	left := map[string]bool{}
	for k := range object {
		left[k] = true
	}
	for field, kind := range shape {
		field, optional := strings.CutPrefix(field, "?")
		x, has := object[field]
		delete(left, field)
		switch {
		case has:
			all = append(all, fits(at+"."+field, x, kind)...)
		case !optional:
			all = append(all, at+" has no "+field)
		}
	}
	for k := range left {
		all = append(all, at+" has a field "+k+" that "+want+" has not")
	}
	return all
}

// TestShapes sees that the check of shapes finds what is wrong.
func TestShapes(t *testing.T) {
	for text, problems := range map[string]int{
		`{"metrics":[{"key":"a","value":1,"timestamp":1,"step":9007199254740993}]}`: 0,
		`{"metrics":[{"key":"a","value":"NaN","timestamp":1,"step":1}]}`:            0,
		`{"metrics":[{"key":"a","value":"high","timestamp":"1","step":1.5}]}`:       3,
		`{"metrics":[{"key":"a","value":1,"timestamp":1}],"more":1}`:                2,
		`{}`: 1,
	} {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		if got := fits("", v, "GetMetricHistory"); len(got) != problems {
			t.Errorf("%s: %q", text, got)
		}
	}
}

func number(v any) float64 {
	switch x := v.(type) {
	case json.Number:
		f, err := x.Float64()
		if err == nil {
			return f
		}
	case string:
		if x == "Infinity" {
			return math.Inf(1)
		}
	}
	return math.NaN()
}
