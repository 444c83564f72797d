package mlflow

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

func (c *client) artifacts() {
	id := text(c.newRun(object{"run_name": "files"}), "run_id")
	root := "0/" + id + "/artifacts"
	c.put(root+"/model/MLmodel", "flavors: {}\n")
	c.put(root+"/model/data/weights.bin", strings.Repeat("w", 3<<20))
	c.put(root+"/notes%20of%20today.txt", "short")
	c.put(root+"/empty", "")
	if got := c.get(root + "/model/data/weights.bin"); got != strings.Repeat("w", 3<<20) {
		c.t.Errorf("%d bytes came back", len(got))
	}
	if got := c.get(root + "/notes%20of%20today.txt"); got != "short" {
		c.t.Errorf("came back as %q", got)
	}
	if got := c.get(root + "/empty"); got != "" {
		c.t.Errorf("came back as %q", got)
	}
	names := func(out object) string {
		var all []string
		for _, f := range out["files"].([]any) {
			one := text(f, "path")
			if at(f, "is_dir") == true {
				one += "/"
			} else {
				one += fmt.Sprint(":", at(f, "file_size"))
			}
			all = append(all, one)
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	out := c.ok(get, "mlflow/artifacts/list", "ListArtifacts", object{"run_id": id, "run_uuid": id})
	if got := names(out); got != "empty:0 model/ notes of today.txt:5" || text(out, "root_uri") != "mlflow-artifacts:/"+root {
		c.t.Errorf("%q in %v", got, out["root_uri"])
	}
	if got := names(c.ok(get, "mlflow/artifacts/list", "ListArtifacts", object{"run_id": id, "path": "model"})); got != "model/MLmodel:12 model/data/" {
		c.t.Errorf("model: %q", got)
	}
	if got := names(c.ok(get, "mlflow/artifacts/list", "ListArtifacts", object{"run_id": id, "path": "model/MLmodel"})); got != "" {
		c.t.Errorf("a file listed as %q", got)
	}
	if got := names(c.ok(get, "mlflow-artifacts/artifacts", "ProxyList", object{"path": root + "/model"})); got != "MLmodel:12 data/" {
		c.t.Errorf("proxied: %q", got)
	}
	if got := names(c.ok(get, "mlflow-artifacts/artifacts", "ProxyList", object{"path": root})); got != "empty:0 model/ notes of today.txt:5" {
		c.t.Errorf("proxied: %q", got)
	}
	c.put(root+"/empty", "no more")
	if got := c.get(root + "/empty"); got != "no more" {
		c.t.Errorf("replaced, it is %q", got)
	}
	// A body whose length is not said beforehand.
	res, b := c.raw("PUT", "/api/2.0/mlflow-artifacts/artifacts/"+root+"/streamed", io.MultiReader(strings.NewReader("a"), strings.NewReader("b")))
	if res.StatusCode != 200 || c.get(root+"/streamed") != "ab" {
		c.t.Errorf("streamed: %d %s", res.StatusCode, b)
	}
	c.ok(del, "mlflow-artifacts/artifacts/"+root+"/streamed", "Empty", nil)
	c.ok(del, "mlflow-artifacts/artifacts/"+root+"/model/data", "Empty", object{})
	c.refused(get, "mlflow-artifacts/artifacts/"+root+"/model/data/weights.bin", nil, 404, absent)
	c.refused(get, "mlflow-artifacts/artifacts/"+root+"/streamed", nil, 404, absent)
	c.refused(del, "mlflow-artifacts/artifacts/"+root+"/streamed", nil, 404, absent)
	c.refused(get, "mlflow-artifacts/artifacts/"+root, nil, 400, invalid)
	c.refused(del, "mlflow-artifacts/artifacts/"+root, nil, 400, invalid)
	c.refused(get, "mlflow-artifacts/artifacts/0/none/artifacts/x", nil, 404, absent)
	c.refused(get, "mlflow/artifacts/list", object{"run_id": "none"}, 404, absent)
	for _, route := range []string{"mpu/create/", "mpu/complete/", "mpu/abort/"} {
		if m := c.refused(post, "mlflow-artifacts/"+route+root+"/x", object{}, 501, "NOT_IMPLEMENTED"); !strings.HasPrefix(m, "Multipart upload is not supported for the current artifact repository") {
			c.t.Errorf("%s: %q", route, m)
		}
	}
	c.refused(get, "mlflow-artifacts/presigned/"+root+"/x", nil, 501, "NOT_IMPLEMENTED")
	c.refused(post, "mlflow/artifacts/presigned-upload-url", object{"run_id": id, "path": "x"}, 501, "NOT_IMPLEMENTED")
	c.refused(post, "mlflow/artifacts/presigned-download-url", object{"run_id": id, "path": "x"}, 501, "NOT_IMPLEMENTED")
	for _, path := range hostilePaths {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			res, b := c.raw(method, "/api/2.0/mlflow-artifacts/artifacts/"+root+"/"+path, nil)
			if res.StatusCode != 400 && res.StatusCode != 404 || !strings.Contains(string(b), "error_code") || res.StatusCode == 404 && method == "PUT" {
				c.t.Errorf("%s %s: %d %s", method, path, res.StatusCode, b)
			}
		}
	}
	for _, path := range []string{"..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "./a", `a\b`, `..\x`, "%2e%2e/x", "a\x00b", "%252e%252e", "a\nb"} {
		c.refused(get, "mlflow/artifacts/list", object{"run_id": id, "path": path}, 400, invalid)
		c.refused(get, "mlflow-artifacts/artifacts", object{"path": root + "/" + path}, 400, invalid)
	}
	c.refused(get, "mlflow-artifacts/artifacts", nil, 400, invalid)
	if got := names(c.ok(get, "mlflow/artifacts/list", "ListArtifacts", object{"run_id": id})); got != "empty:7 model/ notes of today.txt:5" {
		c.t.Errorf("after the attacks: %q", got)
	}
}

// hostilePaths are none of a run's files.
var hostilePaths = []string{
	"..%2fx", "%2e%2e/x", "%2E%2E%2Fx", "..%5cx", "a%5c..%5cb", "%252e%252e/x", "a%00b", "a%0ab", "./x", "a//b", "a/", "a/%2e/b", "x%2fy", "%5c", "a%25b", "%ff", "a%7fb",
}

func (c *client) registry() {
	const models = "mlflow/registered-models/"
	const versions = "mlflow/model-versions/"
	m := at(c.ok(post, models+"create", "GetRegisteredModel", object{"name": "iris", "description": "flowers", "tags": []object{{"key": "a", "value": "1"}}}), "registered_model")
	if text(m, "name") != "iris" || text(m, "description") != "flowers" || text(m, "tags", 0, "value") != "1" || number(at(m, "creation_timestamp")) < 1e12 {
		c.t.Errorf("the model is %v", m)
	}
	c.refused(post, models+"create", object{"name": "iris"}, 400, exists)
	for _, bad := range []string{"", "a/b", "..", "a b", "-a", strings.Repeat("a", 256), "a:b"} {
		c.refused(post, models+"create", object{"name": bad}, 400, invalid)
	}
	c.refused(get, models+"get", object{"name": "none"}, 404, absent)
	c.refused(get, models+"get", object{"name": "a/versions/1"}, 404, absent)
	c.refused(get, models+"get", nil, 400, invalid)
	c.ok(patch, models+"update", "GetRegisteredModel", object{"name": "iris", "description": "more flowers"})
	c.ok(post, models+"set-tag", "Empty", object{"name": "iris", "key": "b", "value": "2"})
	c.ok(del, models+"delete-tag", "Empty", object{"name": "iris", "key": "a"})
	m = at(c.ok(get, models+"get", "GetRegisteredModel", object{"name": "iris"}), "registered_model")
	if text(m, "description") != "more flowers" || text(m, "tags", 0, "key") != "b" || len(at(m, "tags").([]any)) != 1 {
		c.t.Errorf("the model is %v", m)
	}

	run := text(c.newRun(object{"run_name": "source"}), "run_id")
	root := "0/" + run + "/artifacts"
	c.put(root+"/model/MLmodel", "flavors: {}\n")
	c.put(root+"/model/data.bin", "weights")
	c.put(root+"/other/x", "x")
	v := at(c.ok(post, versions+"create", "GetModelVersion", object{"name": "iris", "source": "mlflow-artifacts:/" + root + "/model", "run_id": run, "tags": []object{{"key": "k", "value": "v"}}, "description": "first"}), "model_version")
	if text(v, "name") != "iris" || text(v, "version") != "1" || text(v, "run_id") != run || text(v, "source") != "runs:/"+run+"/model" || text(v, "current_stage") != "None" || text(v, "tags", 0, "value") != "v" {
		c.t.Errorf("the version is %v", v)
	}
	v = at(c.ok(post, versions+"create", "GetModelVersion", object{"name": "iris", "source": "runs:/" + run + "/model"}), "model_version")
	if text(v, "version") != "2" {
		c.t.Errorf("the version is %v", v)
	}
	v = at(c.ok(post, versions+"create", "GetModelVersion", object{"name": "iris", "source": "models:/iris/1"}), "model_version")
	if text(v, "version") != "3" || text(v, "run_id") != run {
		c.t.Errorf("the version is %v", v)
	}
	for _, bad := range hostileSources(run) {
		c.refused(post, versions+"create", object{"name": "iris", "source": bad, "run_id": run}, 400, invalid)
	}
	c.refused(post, versions+"create", object{"name": "iris", "source": "runs:/" + run + "/model", "run_id": "another"}, 400, invalid)
	c.refused(post, versions+"create", object{"name": "none", "source": "runs:/" + run + "/model"}, 404, absent)
	c.refused(post, versions+"create", object{"name": "iris", "source": "runs:/none/model"}, 404, absent)
	c.refused(post, versions+"create", object{"name": "iris", "source": "models:/iris/99"}, 404, absent)

	for _, method := range []string{post, get} {
		latest := c.ok(method, models+"get-latest-versions", "SearchModelVersions", object{"name": "iris"})
		if text(latest, "model_versions", 0, "version") != "3" {
			c.t.Errorf("the latest is %v", latest)
		}
	}
	out := c.ok(post, versions+"transition-stage", "GetModelVersion", object{"name": "iris", "version": "2", "stage": "Production", "archive_existing_versions": false})
	if text(out, "model_version", "current_stage") != "Production" {
		c.t.Errorf("%v", out)
	}
	out = c.ok(post, versions+"transition-stage", "GetModelVersion", object{"name": "iris", "version": "3", "stage": "production"})
	if text(out, "model_version", "current_stage") != "Production" {
		c.t.Errorf("%v", out)
	}
	if s := text(c.ok(get, versions+"get", "GetModelVersion", object{"name": "iris", "version": "2"}), "model_version", "current_stage"); s != "None" {
		c.t.Errorf("the one before is %s", s)
	}
	out = c.ok(get, models+"get-latest-versions", "SearchModelVersions", object{"name": "iris", "stages": []string{"Production"}})
	if len(at(out, "model_versions").([]any)) != 1 || text(out, "model_versions", 0, "version") != "3" {
		c.t.Errorf("in production: %v", out)
	}
	c.ok(post, versions+"transition-stage", "GetModelVersion", object{"name": "iris", "version": 3, "stage": "None"})
	c.refused(post, versions+"transition-stage", object{"name": "iris", "version": "3", "stage": "Somewhere"}, 400, invalid)
	c.refused(post, versions+"transition-stage", object{"name": "iris", "version": "99", "stage": "Staging"}, 404, absent)

	c.ok(post, models+"alias", "Empty", object{"name": "iris", "alias": "champion", "version": "2"})
	if text(c.ok(get, models+"alias", "GetModelVersion", object{"name": "iris", "alias": "champion"}), "model_version", "version") != "2" {
		c.t.Error("the alias names another version")
	}
	if text(c.ok(get, versions+"get", "GetModelVersion", object{"name": "iris", "version": "2"}), "model_version", "aliases", 0) != "champion" {
		c.t.Error("the version does not know its alias")
	}
	c.refused(post, models+"alias", object{"name": "iris", "alias": "latest", "version": "2"}, 400, invalid)
	c.refused(post, models+"alias", object{"name": "iris", "alias": "v9", "version": "2"}, 400, invalid)
	c.refused(post, models+"alias", object{"name": "iris", "alias": "x", "version": "99"}, 404, absent)
	c.refused(get, models+"alias", object{"name": "iris", "alias": "none"}, 400, invalid)
	c.ok(del, models+"alias", "Empty", object{"name": "iris", "alias": "champion"})
	c.ok(del, models+"alias", "Empty", object{"name": "iris", "alias": "champion"})

	c.ok(patch, versions+"update", "GetModelVersion", object{"name": "iris", "version": "1", "description": "old"})
	c.ok(post, versions+"set-tag", "Empty", object{"name": "iris", "version": "1", "key": "x", "value": "y"})
	c.ok(del, versions+"delete-tag", "Empty", object{"name": "iris", "version": "1", "key": "k"})
	v = at(c.ok(get, versions+"get", "GetModelVersion", object{"name": "iris", "version": "1"}), "model_version")
	if text(v, "description") != "old" || text(v, "tags", 0, "key") != "x" || len(at(v, "tags").([]any)) != 1 {
		c.t.Errorf("the version is %v", v)
	}
	for _, bad := range []string{"0", "-1", "latest", "1/../2", "01", ""} {
		c.refused(get, versions+"get", object{"name": "iris", "version": bad}, 400, invalid)
	}
	c.refused(get, versions+"get", object{"name": "iris", "version": "99"}, 404, absent)

	// The files of a version come from the registry, also when the run is gone.
	c.ok(del, "mlflow-artifacts/artifacts/"+root+"/model", "Empty", nil)
	uri := text(c.ok(get, versions+"get-download-uri", "ModelVersionDownload", object{"name": "iris", "version": "1"}), "artifact_uri")
	if uri != "mlflow-artifacts:/models/iris/1" {
		c.t.Errorf("the files are at %s", uri)
	}
	files := c.ok(get, "mlflow-artifacts/artifacts", "ProxyList", object{"path": "models/iris/1"})
	if len(files["files"].([]any)) != 2 || c.get("models/iris/1/data.bin") != "weights" {
		c.t.Errorf("files: %v", files)
	}
	c.refused("PUT", "mlflow-artifacts/artifacts/models/iris/1/x", object{}, 400, invalid)
	c.refused(del, "mlflow-artifacts/artifacts/models/iris/1/data.bin", nil, 400, invalid)

	c.ok(post, models+"create", "GetRegisteredModel", object{"name": "rose"})
	c.ok(post, models+"rename", "GetRegisteredModel", object{"name": "rose", "new_name": "rosa"})
	c.refused(get, models+"get", object{"name": "rose"}, 404, absent)
	c.refused(post, models+"rename", object{"name": "rosa", "new_name": "iris"}, 400, exists)
	found := func(route, key, field, filter string) string {
		var all []string
		for _, x := range at(c.ok(get, route+"search", map[string]string{models: "SearchModels", versions: "SearchModelVersions"}[route], object{"filter": filter, "max_results": 100}), key).([]any) {
			all = append(all, text(x, field))
		}
		return strings.Join(all, " ")
	}
	for filter, want := range map[string]string{"": "iris rosa", "name = 'iris'": "iris", "name LIKE 'r%'": "rosa", "name ILIKE '%IS'": "iris", "tags.b = '2'": "iris", "name != 'iris'": "rosa", "tags.b != '2'": ""} {
		if got := found(models, "registered_models", "name", filter); got != want {
			c.t.Errorf("%q found %q", filter, got)
		}
	}
	for filter, want := range map[string]string{
		"name = 'iris'": "3 2 1", "name='iris' AND version_number > 1": "3 2", "run_id = '" + run + "'": "3 2 1", "run_id IN ('x', '" + run + "')": "3 2 1",
		"tags.x = 'y'": "1", "name = 'none'": "", "source_path LIKE 'runs:/%'": "3 2 1", "": "3 2 1",
	} {
		if got := found(versions, "model_versions", "version", filter); got != want {
			c.t.Errorf("%q found %q", filter, got)
		}
	}
	first := c.ok(get, models+"search", "SearchModels", object{"max_results": 1, "order_by": []string{"name DESC"}})
	second := c.ok(get, models+"search", "SearchModels", object{"max_results": 1, "order_by": []string{"name DESC"}, "page_token": text(first, "next_page_token")})
	if text(first, "registered_models", 0, "name") != "rosa" || text(second, "registered_models", 0, "name") != "iris" || text(second, "next_page_token") != "" {
		c.t.Errorf("pages: %v %v", first, second)
	}
	for _, bad := range []object{{"filter": "name ="}, {"filter": "color = 'x'"}, {"filter": "name = 'a' OR name = 'b'"}, {"max_results": 0}, {"page_token": "zz"}, {"order_by": "color"}, {"filter": "name = 'a"}} {
		c.refused(get, models+"search", bad, 400, invalid)
	}
	c.ok(del, versions+"delete", "Empty", object{"name": "iris", "version": "1"})
	c.refused(del, versions+"delete", object{"name": "iris", "version": "1"}, 404, absent)
	c.ok(del, models+"delete", "Empty", object{"name": "iris"})
	c.ok(del, models+"delete", "Empty", object{"name": "rosa"})
	c.refused(del, models+"delete", object{"name": "rosa"}, 404, absent)
}

// hostileSources are none of this workspace's files.
func hostileSources(run string) []string {
	return []string{
		"", "model", "/etc/passwd", "file:///etc/passwd", "file:/etc/passwd", "s3://bucket/x", "gs://b/x", "http://evil/x", "https://evil/x", "ftp://x/y", "dbfs:/x", "hdfs://x/y",
		"runs://" + run + "/model", "runs://host/" + run + "/model", "runs:/" + run + "/../x", "runs:/" + run + "/%2e%2e/x", "runs:/" + run + "/%252e%252e/x", "runs:/" + run + `/a\b`, "runs:/" + run + "//etc/passwd",
		"runs:/", "runs:", "runs:/../" + run, "runs:/a b/model", "RUNS:/" + run + "/model", " runs:/" + run + "/model", "runs:/" + run + "/model?x=1", "runs:/" + run + "/model#x", "runs:/" + run + "/a\x00b",
		"mlflow-artifacts://host/0/" + run + "/artifacts/model", "mlflow-artifacts:///0/" + run + "/artifacts/model", "mlflow-artifacts:/0/" + run + "/artifacts/../../../x", "mlflow-artifacts:/0/" + run + "/other/model",
		"mlflow-artifacts:/0/" + run, "mlflow-artifacts:/models/iris/1/data.bin", "mlflow-artifacts:/models/iris/latest", "models:/iris@champion", "models:/iris/Production", "models:/iris", "models:/m-0123", "models://iris/1", "models:/iris/1/x", "models:/../iris/1",
		"javascript:/alert(1)", "runs:/" + run + "/x\nmodels:/iris/1",
	}
}

// many is the traffic of a sweep: forty runs, each with its parameters, its metrics and its file.
func (c *client) many() {
	exp := text(c.ok(post, "mlflow/experiments/create", "CreateExperiment", object{"name": "sweep"}), "experiment_id")
	for i := range 40 {
		id := text(c.newRun(object{"experiment_id": exp, "run_name": fmt.Sprintf("sweep-%d", i), "start_time": 1700000000000, "user_id": "bob"}), "run_id")
		c.ok(get, "mlflow/runs/get", "GetRun", object{"run_id": id, "run_uuid": id})
		c.ok(post, "mlflow/runs/log-parameter", "Empty", object{"run_id": id, "run_uuid": id, "key": "seed", "value": fmt.Sprint(i)})
		c.ok(post, "mlflow/runs/set-tag", "Empty", object{"run_id": id, "run_uuid": id, "key": "sweep", "value": "yes"})
		for step := range 6 {
			c.ok(post, "mlflow/runs/log-batch", "Empty", object{"run_id": id, "metrics": []object{{"key": "loss", "value": 1.0 / float64(step+1), "timestamp": 1700000000000 + step, "step": step}, {"key": "acc", "value": "NaN", "timestamp": 1700000000000, "step": step}}})
		}
		root := exp + "/" + id + "/artifacts"
		c.put(root+"/out.txt", id)
		if c.get(root+"/out.txt") != id {
			c.t.Error("another file came back")
		}
		c.ok(get, "mlflow/artifacts/list", "ListArtifacts", object{"run_id": id})
		c.ok(get, "mlflow/metrics/get-history", "GetMetricHistory", object{"run_id": id, "metric_key": "loss"})
		c.ok(post, "mlflow/runs/update", "UpdateRun", object{"run_id": id, "run_uuid": id, "status": "FINISHED", "end_time": 1700000005000})
	}
	out := c.ok(post, "mlflow/runs/search", "SearchRuns", object{"experiment_ids": []string{exp}, "filter": "params.seed = '17' AND tags.sweep = 'yes' AND metrics.loss < 0.2", "max_results": 10, "order_by": []string{"metrics.loss ASC"}})
	if len(at(out, "runs").([]any)) != 1 || text(out, "runs", 0, "info", "run_name") != "sweep-17" || text(out, "runs", 0, "info", "status") != "FINISHED" {
		c.t.Errorf("found: %v", out)
	}
}

// TestCallers holds who gets in, and as what (A1, B1).
func TestCallers(t *testing.T) {
	c := newClient(t, "callers")
	basic := c.as("whoever", c.bearer)
	basic.ok(get, "mlflow/experiments/get", "GetExperiment", object{"experiment_id": "0"})
	for name, header := range map[string]string{
		"nobody": "", "not a token": "Bearer nonsense", "Basic without password": "Basic YWRtaW46", "half of Basic": "Basic !!!", "another scheme": "Digest x", "empty": "Bearer ",
		"a password": "Basic " + "YWRtaW46cGFzc3dvcmQ=",
	} {
		d := c.as("", "")
		res, b := d.raw(get, "/api/2.0/mlflow/experiments/get?experiment_id=0", nil, "Authorization", header)
		if res.StatusCode != 401 || !strings.Contains(string(b), `"UNAUTHENTICATED"`) || !strings.Contains(res.Header.Get("WWW-Authenticate"), "Basic") {
			t.Errorf("%s: %d %s %v", name, res.StatusCode, b, res.Header)
		}
	}
	_, stranger := mesh.User(t, "stranger")
	d := c.as("stranger", stranger)
	d.refused(get, "mlflow/experiments/get", object{"experiment_id": "0"}, 404, absent)
	d.refused(post, "mlflow/experiments/create", object{"name": "x"}, 404, absent)
	for _, base := range []string{"/mlflow/none", "/mlflow/callers.group.none", "/mlflow/callers.other.lab"} {
		e := *c
		e.base = mesh.URL + base
		e.refused(get, "mlflow/experiments/get", object{"experiment_id": "0"}, 404, absent)
	}
	for _, base := range []string{"/mlflow/a.b", "/mlflow/..", "/mlflow/%2e%2e", "/mlflow/a.b.c.d", "/mlflow/A", "/mlflow/callers.group.lab%2Fruns"} {
		e := *c
		e.base = mesh.URL + base
		e.refused(get, "mlflow/experiments/get", object{"experiment_id": "0"}, 404, unknown)
	}
}
