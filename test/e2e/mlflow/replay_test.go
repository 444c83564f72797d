package mlflow

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestReplay makes more than a thousand calls as the stock client makes them, and holds each answer to its status, its code and its
// fields (part I, H5, H6).
func TestReplay(t *testing.T) {
	c := newClient(t, "replay")
	t.Run("server", func(t *testing.T) { c.t = t; c.server() })
	t.Run("experiments", func(t *testing.T) { c.t = t; c.experiments() })
	t.Run("runs", func(t *testing.T) { c.t = t; c.runs() })
	t.Run("logging", func(t *testing.T) { c.t = t; c.logging() })
	t.Run("history", func(t *testing.T) { c.t = t; c.history() })
	t.Run("artifacts", func(t *testing.T) { c.t = t; c.artifacts() })
	t.Run("registry", func(t *testing.T) { c.t = t; c.registry() })
	t.Run("many", func(t *testing.T) { c.t = t; c.many() })
	if c.calls < 1000 {
		t.Errorf("%d calls", c.calls)
	}
	t.Logf("%d calls", c.calls)
}

const (
	post, get, patch, del = http.MethodPost, http.MethodGet, http.MethodPatch, http.MethodDelete
	invalid               = "INVALID_PARAMETER_VALUE"
	absent                = "RESOURCE_DOES_NOT_EXIST"
	exists                = "RESOURCE_ALREADY_EXISTS"
	unknown               = "ENDPOINT_NOT_FOUND"
)

func (c *client) server() {
	for path, want := range map[string]string{"/health": "OK", "/version": ""} {
		res, b := c.raw(get, path, nil)
		if res.StatusCode != 200 || want != "" && string(b) != want || len(b) == 0 {
			c.t.Errorf("%s: %d %q", path, res.StatusCode, b)
		}
	}
	for _, prefix := range []string{"../3.0/", "../../ajax-api/3.0/"} { // send puts /api/2.0/ in front
		res, b := c.raw(get, "/"+strings.TrimLeft(strings.ReplaceAll(prefix, "../3.0", "api/3.0"), "./")+"mlflow/server-info", nil)
		if res.StatusCode != 200 || !strings.Contains(string(b), `"multipart_uploads_enabled":false`) {
			c.t.Errorf("server-info: %d %s", res.StatusCode, b)
		}
	}
	c.refused(get, "mlflow/nothing", nil, 404, unknown)
	c.refused(post, "mlflow/experiments/get", object{"experiment_id": "0"}, 404, unknown)
	c.refused(get, "mlflow/traces", nil, 404, unknown)
	c.refused(post, "mlflow/logged-models", object{}, 404, unknown)
	if res, b := c.raw(get, "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0", nil); res.StatusCode != 200 {
		c.t.Errorf("ajax-api: %d %s", res.StatusCode, b)
	}
	if res, b := c.raw(get, "/api/3.0/mlflow/experiments/get?experiment_id=0", nil); res.StatusCode != 404 || !strings.Contains(string(b), unknown) {
		c.t.Errorf("api/3.0: %d %s", res.StatusCode, b)
	}
	if res, b := c.raw(post, "/api/2.0/mlflow/experiments/create", strings.NewReader("{"), "Content-Type", "application/json"); res.StatusCode != 400 || !strings.Contains(string(b), "BAD_REQUEST") {
		c.t.Errorf("half a body: %d %s", res.StatusCode, b)
	}
	if res, b := c.raw(post, "/api/2.0/mlflow/experiments/create", strings.NewReader(`{"name":"x"}`), "Content-Type", "text/plain"); res.StatusCode != 400 || !strings.Contains(string(b), "BAD_REQUEST") {
		c.t.Errorf("not said to be JSON: %d %s", res.StatusCode, b)
	}
}

func (c *client) experiments() {
	e := at(c.ok(get, "mlflow/experiments/get", "GetExperiment", object{"experiment_id": "0"}), "experiment")
	if text(e, "name") != "Default" || text(e, "experiment_id") != "0" || text(e, "artifact_location") != "mlflow-artifacts:/0" || text(e, "workspace") != "lab" {
		c.t.Errorf("Default is %v", e)
	}
	c.refused(get, "mlflow/experiments/get-by-name", object{"experiment_name": "first"}, 404, absent)
	id := text(c.ok(post, "mlflow/experiments/create", "CreateExperiment", object{"name": "first", "tags": []object{{"key": "team", "value": "a"}}, "later": 1}), "experiment_id")
	c.refused(post, "mlflow/experiments/create", object{"name": "first"}, 400, exists)
	c.refused(post, "mlflow/experiments/create", object{"name": "s3", "artifact_location": "s3://bucket"}, 400, invalid)
	c.refused(post, "mlflow/experiments/create", object{}, 400, invalid)
	c.refused(post, "mlflow/experiments/create", object{"name": strings.Repeat("n", 501)}, 400, invalid)
	c.refused(post, "mlflow/experiments/create", object{"name": 7}, 400, invalid)
	e = at(c.ok(get, "mlflow/experiments/get-by-name", "GetExperiment", object{"experiment_name": "first"}), "experiment")
	if text(e, "experiment_id") != id || text(e, "tags", 0, "value") != "a" || text(e, "lifecycle_stage") != "active" || number(at(e, "creation_time")) < 1e12 {
		c.t.Errorf("first is %v", e)
	}
	c.refused(get, "mlflow/experiments/get", object{"experiment_id": "999999"}, 404, absent)
	for _, bad := range []string{"", "a/b", "..", "%2e%2e", "A B"} {
		c.refused(get, "mlflow/experiments/get", object{"experiment_id": bad}, 400, invalid)
	}
	c.ok(post, "mlflow/experiments/set-experiment-tag", "Empty", object{"experiment_id": id, "key": "note", "value": "x"})
	c.refused(post, "mlflow/experiments/set-experiment-tag", object{"experiment_id": id, "key": "note"}, 400, invalid)
	c.ok(post, "mlflow/experiments/delete-experiment-tag", "Empty", object{"experiment_id": id, "key": "team"})
	c.refused(post, "mlflow/experiments/delete-experiment-tag", object{"experiment_id": id, "key": "team"}, 404, absent)
	c.ok(post, "mlflow/experiments/update", "Empty", object{"experiment_id": id, "new_name": "renamed"})
	c.refused(get, "mlflow/experiments/get-by-name", object{"experiment_name": "first"}, 404, absent)
	if e := at(c.ok(get, "mlflow/experiments/get", "GetExperiment", object{"experiment_id": id}), "experiment"); text(e, "name") != "renamed" || text(e, "tags", 0, "key") != "note" {
		c.t.Errorf("renamed is %v", e)
	}
	c.ok(post, "mlflow/experiments/delete", "Empty", object{"experiment_id": id})
	if e := at(c.ok(get, "mlflow/experiments/get-by-name", "GetExperiment", object{"experiment_name": "renamed"}), "experiment"); text(e, "lifecycle_stage") != "deleted" {
		c.t.Errorf("deleted is %v", e)
	}
	c.refused(post, "mlflow/experiments/delete", object{"experiment_id": "0"}, 400, invalid)
	names := func(fields object) (all []string) {
		for _, method := range []string{post, get} {
			all = all[:0]
			out := c.ok(method, "mlflow/experiments/search", "SearchExperiments", fields)
			list, _ := at(out, "experiments").([]any)
			for _, e := range list {
				all = append(all, text(e, "name"))
			}
			slices.Sort(all)
		}
		return all
	}
	if got := names(object{"max_results": 100, "view_type": "DELETED_ONLY"}); !slices.Equal(got, []string{"renamed"}) {
		c.t.Errorf("deleted: %q", got)
	}
	if got := names(object{"max_results": 100}); !slices.Equal(got, []string{"Default"}) {
		c.t.Errorf("living: %q", got)
	}
	c.ok(post, "mlflow/experiments/restore", "Empty", object{"experiment_id": id})
	if got := names(object{"max_results": "100", "filter": "name LIKE 're%'", "view_type": "ALL"}); !slices.Equal(got, []string{"renamed"}) {
		c.t.Errorf("filtered: %q", got)
	}
	first := c.ok(post, "mlflow/experiments/search", "SearchExperiments", object{"max_results": 1, "order_by": []string{"name ASC"}})
	second := c.ok(post, "mlflow/experiments/search", "SearchExperiments", object{"max_results": 1, "order_by": []string{"name ASC"}, "page_token": text(first, "next_page_token")})
	if text(first, "experiments", 0, "name") != "Default" || text(second, "experiments", 0, "name") != "renamed" || text(second, "next_page_token") != "" {
		c.t.Errorf("pages: %v %v", first, second)
	}
	for _, bad := range []object{{"max_results": 0}, {"max_results": 50001}, {"filter": "name ="}, {"filter": "color = 'red'"}, {"order_by": []string{"color"}}, {"view_type": "SOME"}, {"page_token": "x"}, {"filter": strings.Repeat("(", 1<<20)}} {
		c.refused(post, "mlflow/experiments/search", bad, 400, invalid)
	}
}

func (c *client) newRun(fields object) object {
	c.t.Helper()
	if fields["experiment_id"] == nil {
		fields["experiment_id"] = "0"
	}
	out := c.ok(post, "mlflow/runs/create", "GetRun", fields)
	info, _ := at(out, "run", "info").(object)
	return info
}

func (c *client) runs() {
	info := c.newRun(object{"user_id": "ann", "run_name": "one", "start_time": 1700000000123, "tags": []object{{"key": "mlflow.user", "value": "ann"}, {"key": "mlflow.runName", "value": "one"}}})
	id := text(info, "run_id")
	if text(info, "run_uuid") != id || text(info, "user_id") != "ann" || text(info, "run_name") != "one" || text(info, "status") != "RUNNING" ||
		fmt.Sprint(info["start_time"]) != "1700000000123" || text(info, "artifact_uri") != "mlflow-artifacts:/0/"+id+"/artifacts" || info["end_time"] != nil {
		c.t.Errorf("the run is %v", info)
	}
	run := at(c.ok(get, "mlflow/runs/get", "GetRun", object{"run_id": id, "run_uuid": id}), "run")
	if tags := fmt.Sprint(at(run, "data", "tags")); !strings.Contains(tags, "mlflow.user") || strings.Count(tags, "mlflow.runName") != 1 {
		c.t.Errorf("tags: %v", tags)
	}
	c.ok(get, "mlflow/runs/get", "GetRun", object{"run_uuid": id})
	c.refused(get, "mlflow/runs/get", object{"run_id": "0123456789abcdef0123456789abcdef"}, 404, absent)
	for _, bad := range []string{"a/b", "..", "%2e%2e", "a b", strings.Repeat("a", 257), "r?x"} {
		c.refused(get, "mlflow/runs/get", object{"run_id": bad}, 400, invalid)
	}
	c.refused(get, "mlflow/runs/get", nil, 400, invalid)
	c.refused(get, "mlflow/runs/get", object{"run_id": id, "run_uuid": "other"}, 400, invalid)
	c.refused(post, "mlflow/runs/create", object{"experiment_id": "999999"}, 404, absent)
	c.refused(post, "mlflow/runs/create", object{"experiment_id": "0", "start_time": "soon"}, 400, invalid)
	c.refused(post, "mlflow/runs/create", object{"experiment_id": "0", "run_name": "a", "tags": []object{{"key": "mlflow.runName", "value": "b"}}}, 400, invalid)
	c.refused(post, "mlflow/runs/create", object{"experiment_id": "0", "tags": []object{{"key": "k"}}}, 400, invalid)
	for _, s := range []struct{ sent, want string }{{"SCHEDULED", "SCHEDULED"}, {"RUNNING", "RUNNING"}, {"FAILED", "FAILED"}, {"KILLED", "KILLED"}, {"FINISHED", "FINISHED"}} {
		out := c.ok(post, "mlflow/runs/update", "UpdateRun", object{"run_id": id, "run_uuid": id, "status": s.sent, "end_time": "1700000001000"})
		if text(out, "run_info", "status") != s.want {
			c.t.Errorf("%s became %v", s.sent, out)
		}
	}
	out := c.ok(post, "mlflow/runs/update", "UpdateRun", object{"run_id": id, "run_name": "two"})
	if text(out, "run_info", "run_name") != "two" || text(out, "run_info", "status") != "FINISHED" || fmt.Sprint(at(out, "run_info", "end_time")) != "1700000001000" {
		c.t.Errorf("updated: %v", out)
	}
	c.refused(post, "mlflow/runs/update", object{"run_id": id, "status": "DONE"}, 400, invalid)
	c.ok(post, "mlflow/runs/delete", "Empty", object{"run_id": id})
	if s := text(c.ok(get, "mlflow/runs/get", "GetRun", object{"run_id": id}), "run", "info", "lifecycle_stage"); s != "deleted" {
		c.t.Errorf("a deleted run is %s", s)
	}
	c.ok(post, "mlflow/runs/restore", "Empty", object{"run_id": id})
	c.refused(post, "mlflow/runs/delete", object{"run_id": "none"}, 404, absent)

	exp := text(c.ok(post, "mlflow/experiments/create", "CreateExperiment", object{"name": "searched"}), "experiment_id")
	var ids []string
	for i := range 12 {
		r := c.newRun(object{"experiment_id": exp, "run_name": fmt.Sprintf("run-%02d", i), "start_time": 1700000000000 + i, "tags": []object{{"key": "parity", "value": []string{"even", "odd"}[i%2]}}})
		rid := text(r, "run_id")
		ids = append(ids, rid)
		c.ok(post, "mlflow/runs/log-batch", "Empty", object{
			"run_id": rid, "metrics": []object{{"key": "loss", "value": float64(i) / 10, "timestamp": 1700000000000, "step": 1}}, "params": []object{{"key": "lr", "value": fmt.Sprint(i)}}, "tags": []object{},
		})
		if i < 3 {
			c.ok(post, "mlflow/runs/update", "UpdateRun", object{"run_id": rid, "status": "FINISHED", "end_time": 1700000002000})
		}
	}
	search := func(fields object) (found []string, next string) {
		c.t.Helper()
		fields["experiment_ids"] = []string{exp}
		out := c.ok(post, "mlflow/runs/search", "SearchRuns", fields)
		list, _ := at(out, "runs").([]any)
		for _, r := range list {
			found = append(found, text(r, "info", "run_name"))
		}
		return found, text(out, "next_page_token")
	}
	for filter, want := range map[string]string{
		"metrics.loss < 0.3":                                         "run-02 run-01 run-00",
		"params.lr = '4'":                                            "run-04",
		"tags.parity = 'odd' AND metrics.loss >= 0.9":                "run-11 run-09",
		"attributes.status = 'FINISHED'":                             "run-02 run-01 run-00",
		"attributes.run_name LIKE 'run-1%'":                          "run-11 run-10",
		"tags.`mlflow.runName` = 'run-05' OR attributes.run_id = ''": "",
	} {
		if want == "" {
			c.refused(post, "mlflow/runs/search", object{"experiment_ids": []string{exp}, "filter": filter}, 400, invalid)
			continue
		}
		if got, _ := search(object{"filter": filter, "max_results": 1000}); strings.Join(got, " ") != want {
			c.t.Errorf("%s found %q", filter, got)
		}
	}
	if got, _ := search(object{"order_by": []string{"metrics.loss ASC"}, "max_results": 50000, "run_view_type": "ACTIVE_ONLY"}); len(got) != 12 || got[0] != "run-00" || got[11] != "run-11" {
		c.t.Errorf("ordered: %q", got)
	}
	var all []string
	for token, n := "", 0; n == 0 || token != ""; n++ {
		var found []string
		fields := object{"max_results": 5, "order_by": []string{"attributes.start_time DESC"}}
		if token != "" {
			fields["page_token"] = token
		}
		if found, token = search(fields); n > 3 {
			c.t.Fatal("the pages do not end")
		}
		all = append(all, found...)
	}
	if len(all) != 12 || all[0] != "run-11" || all[11] != "run-00" {
		c.t.Errorf("pages: %q", all)
	}
	for _, bad := range []object{{"filter": "metrics.loss = 'x'"}, {"filter": "loss <"}, {"max_results": -1}, {"max_results": 50001}, {"order_by": []string{"nothing.x"}}, {"filter": strings.Repeat("a", 1<<20)}, {"run_view_type": "x"}} {
		c.refused(post, "mlflow/runs/search", bad, 400, invalid)
	}
	c.refused(post, "mlflow/runs/search", object{"experiment_ids": []string{"a/b"}}, 400, invalid)
	c.ok(post, "mlflow/runs/log-inputs", "Empty", object{"run_id": ids[0], "datasets": []object{{
		"tags": []object{{"key": "mlflow.data.context", "value": "training"}}, "dataset": object{"name": "iris", "digest": "d1", "source_type": "local", "source": "{}", "schema": "{}", "profile": "{}"},
	}}, "models": []object{{"model_id": "m-1"}}})
	c.refused(post, "mlflow/runs/log-inputs", object{"run_id": ids[0], "datasets": []object{{"dataset": object{"name": "iris"}}}}, 400, invalid)
	c.ok(post, "mlflow/runs/outputs", "Empty", object{"run_id": ids[0], "models": []object{{"model_id": "m-2", "step": "7"}}})
	run = at(c.ok(get, "mlflow/runs/get", "GetRun", object{"run_id": ids[0]}), "run")
	if text(run, "inputs", "dataset_inputs", 0, "dataset", "name") != "iris" || text(run, "inputs", "model_inputs", 0, "model_id") != "m-1" ||
		text(run, "outputs", "model_outputs", 0, "model_id") != "m-2" || number(at(run, "outputs", "model_outputs", 0, "step")) != 7 || strings.Contains(fmt.Sprint(at(run, "data", "tags")), "redoubt.") {
		c.t.Errorf("links: %v", run)
	}
	c.refused(post, "mlflow/runs/set-tag", object{"run_id": ids[0], "key": "redoubt.mlflow.dataset.x", "value": "{}"}, 400, invalid)
	sets := c.ok(post, "mlflow/experiments/search-datasets", "SearchDatasets", object{"experiment_ids": []string{exp}})
	if text(sets, "dataset_summaries", 0, "name") != "iris" || text(sets, "dataset_summaries", 0, "context") != "training" {
		c.t.Errorf("datasets: %v", sets)
	}
	c.ok(post, "mlflow/runs/log-model", "Empty", object{"run_id": ids[0], "model_json": `{"artifact_path":"model","flavors":{}}`})
	c.ok(post, "mlflow/runs/log-model", "Empty", object{"run_id": ids[0], "model_json": `{"artifact_path":"other"}`})
	c.refused(post, "mlflow/runs/log-model", object{"run_id": ids[0], "model_json": `[]`}, 400, invalid)
	if tags := fmt.Sprint(at(c.ok(get, "mlflow/runs/get", "GetRun", object{"run_id": ids[0]}), "run", "data", "tags")); !strings.Contains(tags, `[{"artifact_path":"model","flavors":{}},{"artifact_path":"other"}]`) {
		c.t.Errorf("models of the run: %s", tags)
	}
}

func list(n int, item func(i int) object) []object {
	all := make([]object, 0, n)
	for i := range n {
		all = append(all, item(i))
	}
	return all
}

func (c *client) logging() {
	id := text(c.newRun(object{"run_name": "logs"}), "run_id")
	metric := func(fields object) object {
		all := object{"run_id": id, "run_uuid": id, "key": "m", "value": 1, "timestamp": 1700000000000, "step": 0}
		for k, v := range fields {
			all[k] = v
		}
		return all
	}
	for _, ok := range []object{{}, {"value": 0.5, "step": 1}, {"value": "NaN", "step": 2}, {"value": "Infinity", "step": 3}, {"value": "-Infinity", "step": "4"}, {"timestamp": "1700000000001", "step": -1}, {"model_id": "m-1", "dataset_name": "d", "dataset_digest": "x"}, {"key": "train/loss 1.a-b"}} {
		c.ok(post, "mlflow/runs/log-metric", "Empty", metric(ok))
	}
	for _, bad := range []object{{"key": ""}, {"key": strings.Repeat("k", 251)}, {"key": "../x"}, {"key": "a//b"}, {"value": "high"}, {"value": nil}, {"step": 1.5}, {"timestamp": "x"}, {"step": "9223372036854775808"}} {
		c.refused(post, "mlflow/runs/log-metric", metric(bad), 400, invalid)
	}
	c.refused(post, "mlflow/runs/log-metric", metric(object{"run_id": "none", "run_uuid": "none"}), 404, absent)
	c.ok(post, "mlflow/runs/log-parameter", "Empty", object{"run_id": id, "key": "lr", "value": "0.1"})
	c.ok(post, "mlflow/runs/log-parameter", "Empty", object{"run_id": id, "key": "lr", "value": "0.1"})
	c.refused(post, "mlflow/runs/log-parameter", object{"run_id": id, "key": "lr", "value": "0.2"}, 400, invalid)
	c.refused(post, "mlflow/runs/log-parameter", object{"run_id": id, "key": "long", "value": strings.Repeat("v", 6001)}, 400, invalid)
	c.refused(post, "mlflow/runs/log-param", object{"run_id": id, "key": "lr", "value": "0.1"}, 404, unknown)
	c.ok(post, "mlflow/runs/set-tag", "Empty", object{"run_id": id, "key": "t", "value": "a"})
	c.ok(post, "mlflow/runs/set-tag", "Empty", object{"run_id": id, "key": "t", "value": "b"})
	c.ok(post, "mlflow/runs/set-tag", "Empty", object{"run_id": id, "key": "gone", "value": ""})
	c.refused(post, "mlflow/runs/set-tag", object{"run_id": id, "key": "t", "value": 1}, 400, invalid)
	c.ok(post, "mlflow/runs/delete-tag", "Empty", object{"run_id": id, "key": "gone"})
	c.refused(post, "mlflow/runs/delete-tag", object{"run_id": id, "key": "gone"}, 404, absent)
	c.ok(post, "mlflow/runs/set-tag", "Empty", object{"run_id": id, "key": "mlflow.runName", "value": "renamed"})

	point := func(i int) object {
		return object{"key": fmt.Sprintf("b%d", i%10), "value": i, "timestamp": 1700000000000 + i, "step": i}
	}
	param := func(i int) object { return object{"key": fmt.Sprintf("p%d", i), "value": "v"} }
	c.ok(post, "mlflow/runs/log-batch", "Empty", object{"run_id": id, "metrics": list(800, point), "params": list(100, param), "tags": list(100, param)})
	c.ok(post, "mlflow/runs/log-batch", "Empty", object{"run_id": id})
	c.refused(post, "mlflow/runs/log-batch", object{"run_id": id, "metrics": list(1001, point)}, 400, invalid)
	c.refused(post, "mlflow/runs/log-batch", object{"run_id": id, "params": list(101, param)}, 400, invalid)
	c.refused(post, "mlflow/runs/log-batch", object{"run_id": id, "tags": list(101, param)}, 400, invalid)
	c.refused(post, "mlflow/runs/log-batch", object{"run_id": id, "params": []object{{"key": "x", "value": "1"}, {"key": "x", "value": "2"}}}, 400, invalid)
	c.refused(post, "mlflow/runs/log-batch", object{"run_id": id, "metrics": []object{point(1)}, "params": []object{{"key": "lr", "value": "9"}}}, 400, invalid)
	c.refused(post, "mlflow/runs/log-batch", object{"run_id": id, "tags": []object{{"key": "long", "value": strings.Repeat("v", 2<<20)}}}, 400, invalid)
	run := at(c.ok(get, "mlflow/runs/get", "GetRun", object{"run_id": id}), "run")
	params, _ := at(run, "data", "params").([]any)
	metrics, _ := at(run, "data", "metrics").([]any)
	if len(params) != 101 || len(metrics) != 12 || text(run, "info", "run_name") != "renamed" {
		c.t.Errorf("%d params, %d metrics, name %s", len(params), len(metrics), text(run, "info", "run_name"))
	}
	for _, m := range metrics {
		switch at(m, "key") {
		case "m": // the highest step
			if at(m, "value") != "-Infinity" || number(at(m, "step")) != 4 {
				c.t.Errorf("the latest of m is %v", m)
			}
		case "b9":
			if number(at(m, "value")) != 799 {
				c.t.Errorf("the latest of b9 is %v", m)
			}
		}
	}
}

func (c *client) history() {
	id := text(c.newRun(object{"run_name": "history"}), "run_id")
	const points = 11_000 // more than one page of the service behind
	for i := range points / 1000 {
		c.ok(post, "mlflow/runs/log-batch", "Empty", object{"run_id": id, "metrics": list(1000, func(k int) object {
			n := i*1000 + k
			return object{"key": "loss", "value": 1 / float64(n+1), "timestamp": 1700000000000 + n, "step": n}
		})})
	}
	all, _ := at(c.ok(get, "mlflow/metrics/get-history", "GetMetricHistory", object{"run_id": id, "metric_key": "loss"}), "metrics").([]any)
	if len(all) != points {
		t := c.t
		t.Fatalf("%d points", len(all))
	}
	for i, m := range all {
		if number(at(m, "step")) != float64(i) || number(at(m, "value")) != 1/float64(i+1) {
			c.t.Fatalf("point %d is %v", i, m)
		}
	}
	got, token := 0, ""
	for n := 0; n == 0 || token != ""; n++ {
		fields := object{"run_id": id, "run_uuid": id, "metric_key": "loss", "max_results": 4000}
		if token != "" {
			fields["page_token"] = token
		}
		out := c.ok(get, "mlflow/metrics/get-history", "GetMetricHistory", fields)
		page, _ := at(out, "metrics").([]any)
		got, token = got+len(page), text(out, "next_page_token")
	}
	if got != points {
		c.t.Errorf("%d points in pages", got)
	}
	if out := c.ok(get, "mlflow/metrics/get-history", "GetMetricHistory", object{"run_id": id, "metric_key": "none"}); len(at(out, "metrics").([]any)) != 0 {
		c.t.Errorf("a metric that is not there: %v", out)
	}
	c.refused(get, "mlflow/metrics/get-history", object{"run_id": "none", "metric_key": "loss"}, 404, absent)
	c.refused(get, "mlflow/metrics/get-history", object{"run_id": id}, 400, invalid)
	c.refused(get, "mlflow/metrics/get-history", object{"run_id": id, "metric_key": "loss", "max_results": "many"}, 400, invalid)
	bulk, _ := at(c.ok(get, "mlflow/metrics/get-history-bulk-interval", "BulkHistory", object{"run_ids": []string{id, id}, "metric_key": "loss", "start_step": 100, "end_step": 1099, "max_results": 10}), "metrics").([]any)
	if len(bulk) != 20 || number(at(bulk[0], "step")) != 100 || number(at(bulk[9], "step")) != 1099 || text(bulk[0], "run_id") != id {
		c.t.Errorf("bulk: %v", bulk)
	}
	c.refused(get, "mlflow/metrics/get-history-bulk-interval", object{"metric_key": "loss"}, 400, invalid)
	c.refused(get, "mlflow/metrics/get-history-bulk-interval", object{"run_ids": id, "metric_key": "loss", "start_step": 1}, 400, invalid)
	if math.IsNaN(number(at(all[0], "value"))) {
		c.t.Error("not a number")
	}
}
