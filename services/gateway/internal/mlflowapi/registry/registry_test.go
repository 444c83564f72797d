package registry

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/mlflow"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/mlflowapi/call"
)

const ws = "subscriptions/s/resourceGroups/g/workspaces/w"

// TestSources: what is of the workspace, and a corpus of what is not.
func TestSources(t *testing.T) {
	c := &call.Call{Workspace: ws}
	for s, want := range map[string]source{
		"runs:/r1/model":   {run: ws + "/runs/r1", path: "model"},
		"runs:/r1/a%20b/c": {run: ws + "/runs/r1", path: "a b/c"},
		"runs:/r1":         {run: ws + "/runs/r1"},
		"runs:/r1/":        {run: ws + "/runs/r1"},
		"mlflow-artifacts:/0/r1/artifacts/model/": {run: ws + "/runs/r1", path: "model"},
		"mlflow-artifacts:/0/r1/artifacts":        {run: ws + "/runs/r1"},
		"mlflow-artifacts:/models/m/3":            {version: ws + "/models/m/versions/3"},
		"models:/m/3":                             {version: ws + "/models/m/versions/3"},
	} {
		if got, err := sourceOf(c, s); err != nil || got != want {
			t.Errorf("%q is %+v: %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "model", "/etc/passwd", "./model", "C:/x", `\\host\share`, "file:/etc/passwd", "file:///etc/passwd", "file://localhost/etc/passwd", "local-file:///etc/passwd", "s3://bucket/x", "gs://b/x", "wasbs://c@a/x", "abfss://x",
		"http://169.254.169.254/latest", "https://evil/x", "ftp://x/y", "sftp://x", "dbfs:/x", "hdfs://x/y", "viewfs:/x", "mlflow-artifacts://host/0/r1/artifacts/x", "mlflow-artifacts:///0/r1/artifacts/x", "mlflow-artifacts:0/r1/artifacts/x",
		"mlflow-artifacts:/0/r1", "mlflow-artifacts:/0/r1/other/x", "mlflow-artifacts:/0/r1/artifacts/../../r2/artifacts/x", "mlflow-artifacts:/../0/r1/artifacts/x", "mlflow-artifacts:/models/m/3/file", "mlflow-artifacts:/models/m/latest",
		"runs:", "runs:/", "runs://r1/model", "runs:///r1/model", "runs:r1/model", "runs:/r1/../r2", "runs:/r1/%2e%2e/r2", "runs:/r1/%252e%252e/r2", "runs:/r1//model", `runs:/r1/a\..\b`, "runs:/r1/a%5cb", "runs:/r1/a%2fb", "runs:/r1/a\x00", "runs:/r1/a\nb",
		"runs:/../r1/model", "runs:/subscriptions/s/resourceGroups/g/workspaces/other/runs/r1/model ", "RUNS:/r1/model", " runs:/r1/model", "runs:/r1/model\t", "runs:/r1/model?x", "runs:/r1/model#x", "runs://user@host/r1/model", "runs:/r1@w/model",
		"models:/m", "models:/m/latest", "models:/m/Production", "models:/m@champion", "models:/m/0", "models:/m/-1", "models:/m/1/x", "models://m/1", "models:/m-0123456789abcdef", "models:/../m/1",
	} {
		if got, err := sourceOf(c, s); err == nil {
			t.Errorf("%q is %+v", s, got)
		} else if r := mlflow.RefusalOf(err); r.Code != "INVALID_PARAMETER_VALUE" {
			t.Errorf("%q: %v", s, r)
		}
	}
}

func parsed(t testing.TB, text string) (*query, error) {
	t.Helper()
	return (&search{Filter: text}).parse(versionFields())
}

func TestFilter(t *testing.T) {
	r := record{"name": "Iris-1", "run_id": "abc", "source_path": "runs:/abc/model", "version_number": int64(7), "creation_timestamp": int64(1000), "last_updated_timestamp": int64(2000), "tags": map[string]string{"a": "x", "mlflow.x y": "'q'"}}
	for text, want := range map[string]bool{
		"": true, "  ": true, "name = 'Iris-1'": true, `name="Iris-1"`: true, "name = 'iris-1'": false, "name != 'x'": true, "name LIKE 'Iris%'": true, "name LIKE 'iris%'": false, "name ilike '%IRIS%'": true,
		"name LIKE '_ris-_'": true, "name LIKE 'Iris'": false, "name LIKE '%%%'": true, "attribute.name = 'Iris-1'": true, "version_number = 7": true, "version_number>=7 AND version_number<8": true, "version_number != 7": false,
		"version_number > -1": true, "run_id IN ('x','abc')": true, "run_id in ( 'x' )": false, "tags.a = 'x'": true, "tag.a = 'x'": true, "tags.a != 'y'": true, "tags.b != 'y'": false, "tags.`mlflow.x y` LIKE '%q%'": true, `tags."mlflow.x y" = "'q'"`: true,
		"name = 'Iris-1' and tags.a = 'x' AND last_updated_timestamp > 1999": true, "name = 'Iris-1' AND tags.a = 'z'": false,
	} {
		q, err := parsed(t, text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		found, _ := pick(q, []record{r}, func(r record) record { return r })
		if (len(found) == 1) != want {
			t.Errorf("%q: %v", text, found)
		}
	}
	for _, text := range []string{
		"name", "name =", "name = x", "name = 'x", "= 'x'", "name = 'a' OR name = 'b'", "name = 'a' AND", "AND name = 'a'", "name = 'a' name = 'b'", "color = 'x'", "name > 'a'", "version_number = 'x'", "version_number = 1.5", "version_number LIKE '7'",
		"run_id IN ()", "run_id IN ('a'", "run_id IN ('a',)", "run_id IN 'a'", "tags. = 'x'", "tags = 'x'", "name == 'x'", "name = 'a'; DROP TABLE models", "(name = 'a')", "name LIKEx 'a'", "version_number = 99999999999999999999", "\x00",
		strings.Repeat("name = 'a' AND ", 64) + "name = 'a'", "run_id IN (" + strings.Repeat("'a',", 1001) + "'a')", strings.Repeat("(", 1<<20), strings.Repeat("a", 1<<20), "name = '" + strings.Repeat("a", 1<<20),
	} {
		if _, err := parsed(t, text); err == nil {
			t.Errorf("%.60q is a filter", text)
		} else if r := mlflow.RefusalOf(err); r.Code != "INVALID_PARAMETER_VALUE" || len(r.Message) > 400 {
			t.Errorf("%.60q: %v", text, r)
		}
	}
}

// A pattern that makes others try every split takes no time that anybody notices.
func TestLikeIsBounded(t *testing.T) {
	begun := time.Now()
	if like(strings.Repeat("%a", 200)+"b", strings.Repeat("a", 5000)) {
		t.Error("it fits")
	}
	if d := time.Since(begun); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"name = 'a' AND tags.`b` LIKE '%'", "version_number >= 1", "run_id IN ('a', 'b')", "tags.\"", "name = '"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := parsed(t, text)
		if err == nil {
			pick(q, []record{{"name": "a"}}, func(r record) record { return r })
		}
	})
}

func TestPages(t *testing.T) {
	var all []record
	for i := range 25 {
		all = append(all, record{"name": fmt.Sprintf("m%02d", i/2), "version_number": int64(i), "last_updated_timestamp": int64(100 - i)})
	}
	read := func(text string) (*query, error) {
		s := &search{}
		if bad := mlflow.Decode([]byte(text), s); bad != nil {
			return nil, bad
		}
		return s.parse(versionFields())
	}
	var got []int64
	token := ""
	for n := 0; n == 0 || token != ""; n++ {
		fields, _ := json.Marshal(map[string]any{"max_results": "10", "order_by": []string{"timestamp DESC"}, "page_token": token})
		q, err := read(string(fields))
		if err != nil {
			t.Fatal(err)
		}
		var found []record
		found, token = pick(q, all, func(r record) record { return r })
		for _, r := range found {
			got = append(got, r["version_number"].(int64))
		}
		if n == 0 {
			other, _ := json.Marshal(map[string]any{"max_results": 10, "order_by": []string{"name"}, "page_token": token})
			if _, err := read(string(other)); err == nil {
				t.Error("a token is taken by another search")
			}
		}
	}
	if len(got) != 25 {
		t.Fatalf("%v", got)
	}
	for i, n := range got {
		if n != int64(i) {
			t.Fatalf("%v", got)
		}
	}
	for _, text := range []string{`{"max_results":0}`, `{"max_results":10001}`, `{"order_by":"name sideways"}`, `{"order_by":"color"}`, `{"order_by":""}`, `{"page_token":"!"}`, `{"page_token":"MA"}`} {
		if _, err := read(text); err == nil {
			t.Errorf("%s is a search", text)
		}
	}
}
