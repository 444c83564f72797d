package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// terminal is a user who types commands.
type terminal struct {
	t *testing.T
	// dir is where his files are.
	dir string
}

// typist is the administrator with the whole command line, at a terminal that is none, in a workspace.
func typist(t *testing.T, workspace string) *terminal {
	t.Helper()
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, mesh.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"HOME": dir, "REDOUBT_CONFIG": filepath.Join(dir, "config.yaml"), "REDOUBT_KEYRING": "off", "REDOUBT_FORMAT": "", "REDOUBT_CONTEXT": "", "REDOUBT_RESOURCE_GROUP": "",
		"REDOUBT_ADDR": mesh.URL, "REDOUBT_CACERT": ca, "REDOUBT_TOKEN": mesh.Admin(t), "REDOUBT_WORKSPACE": workspace,
	} {
		t.Setenv(k, v)
	}
	return &terminal{t, dir}
}

// file writes one of his files.
func (x *terminal) file(name, text string) string {
	x.t.Helper()
	p := filepath.Join(x.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		x.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		x.t.Fatal(err)
	}
	return p
}

// types runs a command that ends with a code, and gives what it wrote.
func (x *terminal) types(code int, stdin string, args ...string) (out, errs string) {
	x.t.Helper()
	var o, e bytes.Buffer
	if got := cli.Main(x.t.Context(), args, strings.NewReader(stdin), &o, &e); got != code {
		x.t.Fatalf("redoubt %s: %d, not %d\n%s%s", strings.Join(args, " "), got, code, o.String(), e.String())
	}
	return o.String(), e.String()
}

func (x *terminal) ok(args ...string) string {
	x.t.Helper()
	out, _ := x.types(0, "", args...)
	return out
}

func (x *terminal) has(out string, want ...string) {
	x.t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			x.t.Errorf("%q is not in\n%s", w, out)
		}
	}
}

// H6: a folder becomes a version, gets names, and comes back as it was.
func TestModelsByCommand(t *testing.T) {
	ws := workspaceOf(t, "climodels").GetName()
	x := typist(t, ws)
	x.file("m/weights.bin", strings.Repeat("0123456789abcdef", 40_000))
	x.file("m/sub/empty", "")
	x.has(x.ok("model", "upload", "Churn.v1", x.dir+"/m", "--tag", "team=a", "--description", "first"), "models/Churn.v1/versions/1", "first", "team=a")
	single := x.file("model.json", `{"w":1}`)
	x.has(x.ok("model", "upload", "Churn.v1", single), "versions/2")
	x.has(x.ok("model", "list"), "Churn.v1", "2")
	x.ok("model", "alias", "Churn.v1", "champion", "1")
	x.has(x.ok("model", "show", "Churn.v1"), "champion:1")
	x.has(x.ok("model", "show", "Churn.v1:champion"), "versions/1", "sub/empty", "weights.bin")
	x.has(x.ok("model", "versions", "Churn.v1", "-o", "yaml"), "modelVersions:\n", `version: "2"`)
	x.has(x.ok("model", "tag", "Churn.v1:1", "team=b", "stage=test"), "stage=test team=b")
	x.has(x.ok("model", "tag", "Churn.v1:1", "--remove", "stage"), "team=b")
	x.has(x.ok("model", "describe", "Churn.v1", "who leaves"), "who leaves")

	_, said := x.types(0, "", "model", "download", "Churn.v1:champion", "-d", x.dir+"/back")
	x.has(said, "weights.bin", "sub/empty")
	for _, name := range []string{"weights.bin", "sub/empty"} {
		was, err := os.ReadFile(filepath.Join(x.dir, "m", name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(x.dir, "back", name)); err != nil || !bytes.Equal(got, was) {
			t.Errorf("%s came back as %d bytes, %v", name, len(got), err)
		}
	}
	x.ok("model", "download", "Churn.v1", "model.json", "-d", x.dir+"/one")
	if all, err := os.ReadDir(x.dir + "/one"); err != nil || len(all) != 1 {
		t.Errorf("got %v, %v", all, err)
	}
	_, said = x.types(2, "", "model", "download", "Churn.v1:9", "-d", x.dir+"/none")
	x.has(said, "NOT_FOUND")
	x.types(1, "", "model", "download", "Churn.v1:1", "nothing", "-d", x.dir+"/none")
	x.types(1, "", "model", "delete", "Churn.v1:2") // nobody to ask, and no --yes
	x.ok("model", "delete", "Churn.v1:2", "--yes")
	x.ok("model", "alias", "Churn.v1", "champion", "--remove")
	x.ok("model", "delete", "Churn.v1", "--yes")
	x.types(2, "", "model", "show", "Churn.v1")
}

// H5: what is got as documents is applied without a change, and a document changes what it names.
func TestApplyRoundTrip(t *testing.T) {
	ws := workspaceOf(t, "cliapply").GetName()
	x := typist(t, ws)
	first := x.file("first.yaml", `
apiVersion: redoubt.dev/v1
kind: RoleAssignment
spec: {scope: `+ws+`, role: reader, principal: admin}
---
apiVersion: redoubt.dev/v1
kind: Endpoint
metadata: {name: churn}
spec:
  auth: key
  tags: {team: a}
  tokenTtl: 2h
---
apiVersion: redoubt.dev/v1
kind: Model
metadata: {name: models/Churn.v1}
spec: {description: "yes", tags: {"<<": "y"}}
---
apiVersion: redoubt.dev/v1
kind: Compute
metadata: {name: here}
spec: {kind: local, maxRuns: 2}
---
apiVersion: redoubt.dev/v1
kind: Workspace
metadata: {name: `+ws+`}
spec: {displayName: Lab, tags: {a: "1"}}
`)
	dry := x.ok("apply", "-f", first, "--dry-run")
	x.has(dry, "created    Endpoint "+ws+"/endpoints/churn", "auth: key", "changed    Workspace "+ws, `displayName: "" → Lab`)
	x.types(2, "", "endpoint", "show", "churn") // it was dry
	if got := x.ok("apply", "-f", first); strings.ReplaceAll(got, "\n", "") != strings.ReplaceAll(dry, "\n", "") {
		t.Errorf("what was said and what was done:\n%s\n%s", dry, got)
	}
	if got := x.ok("apply", "-f", first); strings.Count(got, "unchanged") != 5 || strings.Contains(got, "→") {
		t.Errorf("applied again:\n%s", got)
	}

	// Round trip of everything that is there.
	everything := func() string {
		var all strings.Builder
		for _, kind := range []string{"workspace", "computes", "Model", "endpoints", "deployment", "roleassignments"} {
			args := []string{"get", kind, "-o", "yaml"}
			if kind == "workspace" {
				args = []string{"get", kind, ws, "-o", "yaml"}
			}
			all.WriteString(x.ok(args...))
		}
		return all.String()
	}
	was := everything()
	x.has(was, "kind: Endpoint\n", "tokenTtl: 2h\n", `"<<": "y"`, "displayName: Lab", "principal: users/admin")
	back := x.file("back.yaml", was)
	for line := range strings.Lines(x.ok("apply", "-f", back)) {
		if !strings.HasPrefix(line, "unchanged") {
			t.Errorf("what was got is not what is: %s", line)
		}
	}
	if again := everything(); again != was {
		t.Errorf("it was\n%s\nand is\n%s", was, again)
	}
	keys := regexp.MustCompile(`rdk_\S+`).FindAllString(x.ok("endpoint", "get-credentials", "churn"), -1)
	if len(keys) != 2 {
		t.Fatalf("there are %d keys", len(keys))
	}
	for _, key := range keys {
		if strings.Contains(was, key) {
			t.Error("a document holds a key")
		}
	}

	// One field, and what is not named stays.
	x.types(0, "apiVersion: redoubt.dev/v1\nkind: Endpoint\nmetadata: {name: churn}\nspec: {auth: none, tags: {}}\n", "apply", "-f", "-")
	x.has(x.ok("get", "endpoint", "churn", "-o", "yaml"), "auth: none", "tags: {}", "tokenTtl: 2h")
	var list []map[string]any
	if err := json.Unmarshal([]byte(x.ok("get", "endpoint", "churn", "-o", "json")), &list); err != nil || len(list) != 1 || list[0]["kind"] != "Endpoint" {
		t.Errorf("got %v, %v", list, err)
	}
	x.has(x.ok("apply", "-f", first, "--dry-run", "-o", "yaml"), "dryRun: true", "field: auth", "from: none", "to: key")

	// What cannot be is refused, and nothing is done before all is understood.
	kindless := "apiVersion: redoubt.dev/v1\nkind: Endpoint\nmetadata: {name: other}\nspec: {}\n---\napiVersion: redoubt.dev/v1\nkind: Endpoint\nmetadata: {name: churn}\nspec: {colour: red}\n"
	_, said := x.types(1, kindless, "apply", "-f", "-")
	x.has(said, `standard input: line 9: spec has no field "colour"`)
	x.types(2, "", "endpoint", "show", "other")
	_, said = x.types(1, "apiVersion: redoubt.dev/v1\nkind: Compute\nmetadata: {name: here}\nspec: {maxRuns: 3}\n", "apply", "-f", "-")
	x.has(said, "cannot become 3")
	_, said = x.types(1, "apiVersion: redoubt.dev/v1\nkind: Endpoint\nmetadata: {name: a/b/c}\nspec: {}\n", "apply", "-f", "-")
	x.has(said, "standard input, line 1")
	done, said := x.types(2, "apiVersion: redoubt.dev/v1\nkind: Endpoint\nmetadata: {name: churn}\nspec: {auth: token, traffic: {blue: 100}}\n", "apply", "-f", "-")
	x.has(said, "standard input, line 1: ", "blue")
	x.has(done, "changed", "auth: none → token") // what was done before is told
}

// H5: experiments, and a search that is refused where its filter is not understood.
func TestExperimentsByCommand(t *testing.T) {
	x := typist(t, workspaceOf(t, "cliexp").GetName())
	var made struct{ Name, DisplayName string }
	if err := json.Unmarshal([]byte(x.ok("experiment", "create", "churn trials", "--tag", "team=a", "-o", "json")), &made); err != nil || made.DisplayName != "churn trials" {
		t.Fatalf("%+v, %v", made, err)
	}
	id := made.Name[strings.LastIndexByte(made.Name, '/')+1:]
	x.has(x.ok("experiment", "list"), "Default", "churn trials", "team=a", id)
	if out := x.ok("experiment", "list", "--filter", "name LIKE 'churn%'"); strings.Contains(out, "Default") || !strings.Contains(out, id) {
		t.Errorf("got\n%s", out)
	}
	x.has(x.ok("experiment", "show", "0"), "Default")
	x.has(x.ok("experiment", "show", id), "churn trials", "active")
	x.ok("experiment", "delete", id)
	if out := x.ok("experiment", "list"); strings.Contains(out, id) {
		t.Errorf("got\n%s", out)
	}
	x.has(x.ok("experiment", "list", "--deleted"), id, "deleted")
	x.has(x.ok("experiment", "restore", id), "active")
	x.types(2, "", "experiment", "create", "churn trials")
	x.has(x.ok("run", "search", "--filter", "metrics.loss < 0.3", "--experiment", id, "-o", "yaml"), "{}")
	_, said := x.types(2, "", "run", "search", "--filter", "metrics.loss <")
	x.has(said, "INVALID_ARGUMENT")
}

const (
	twiceBody   = `{"data": [1, 2, 3]}`
	twiceAnswer = `{"predictions": [2, 4, 6]}`
)

// serves has an endpoint "twice" that doubles numbers, deployed by typing, in a workspace of the test's own.
func serves(t *testing.T, id string) *terminal {
	t.Helper()
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	x := typist(t, workspaceOf(t, id).GetName())
	x.ok("compute", "create", "here", "--max-runs", "4")
	x.ok("model", "upload", "twice", x.file("model.json", `{"factor": 2}`))
	x.file("code/score.py", `
import json, os
def init():
    global factor
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.json")) as f:
        factor = json.load(f)["factor"]
    print("the host is ready")
def run(raw):
    data = json.loads(raw)["data"]
    if data == "fail":
        raise ValueError("asked to")
    return {"predictions": [factor * x for x in data]}
`)
	x.file("body.json", twiceBody)
	x.has(x.ok("endpoint", "create", "twice"), "scoring uri", "key")
	out, said := x.types(0, "", "deployment", "create", "twice/blue", "--model", "twice", "--code", x.dir+"/code", "--compute", "here", "--wait", "-o", "none")
	if out != "" {
		t.Errorf("none is %q", out)
	}
	x.has(said, "ready")
	return x
}

// predicts holds an answer against what the model does.
func (x *terminal) predicts(got string) {
	x.t.Helper()
	var is, want any
	if err := json.Unmarshal([]byte(got), &is); err != nil {
		x.t.Errorf("%v: %q", err, got)
		return
	}
	if err := json.Unmarshal([]byte(twiceAnswer), &want); err != nil || !reflect.DeepEqual(is, want) {
		x.t.Errorf("got %s", got)
	}
}

// A5: an endpoint from its first deployment to its end, all of it typed.
func TestServingByCommand(t *testing.T) {
	x := serves(t, "cliserve")
	x.has(x.ok("endpoint", "traffic", "twice"), "blue", "100")
	x.has(x.ok("deployment", "show", "twice/blue"), "twice:1", "1 of 1", "run_")
	x.has(x.ok("deployment", "list", "twice"), "blue", "ready")
	x.has(x.ok("deployment", "logs", "twice/blue"), "the host is ready")
	x.has(x.ok("endpoint", "list"), "twice", "blue=100", "https://")

	var pair struct{ PrimaryKey, SecondaryKey string }
	if err := json.Unmarshal([]byte(x.ok("endpoint", "get-credentials", "twice", "-o", "json")), &pair); err != nil || pair.PrimaryKey == "" || pair.SecondaryKey == "" {
		t.Fatalf("no keys: %v", err)
	}
	byKey := func(code int, key string) string {
		t.Helper()
		out, errs := x.types(code, key+"\n", "endpoint", "score", "twice", "--file", x.dir+"/body.json", "--deployment", "blue", "--key-stdin")
		if strings.Contains(errs, key) {
			t.Errorf("the key is told: %s", errs)
		}
		return out
	}
	x.predicts(byKey(0, pair.PrimaryKey))
	x.types(1, "", "endpoint", "regenerate-keys", "twice", "--yes")
	x.has(x.ok("endpoint", "regenerate-keys", "twice", "--key-type", "primary", "--yes"), "rdk_", pair.SecondaryKey)
	byKey(3, pair.PrimaryKey)
	x.predicts(byKey(0, pair.SecondaryKey))
	x.ok("endpoint", "update", "twice", "--auth", "token")
	byKey(3, pair.SecondaryKey)
	x.predicts(x.ok("endpoint", "score", "twice", "-f", x.dir+"/body.json", "--issue-token"))
	_, said := x.types(2, `{"data": "fail"}`, "endpoint", "score", "twice", "-f", "-", "--issue-token")
	x.has(said, "500")
	x.types(1, "", "endpoint", "score", "twice")
	x.types(1, "", "endpoint", "score", "twice", "-f", "-", "--key-stdin")
	foreign := x.file("other.pem", string(otherRoot(t)))
	_, said = x.types(1, "", "endpoint", "score", "twice", "-f", x.dir+"/body.json", "--issue-token", "--scoring-ca", foreign)
	x.has(said, "--scoring-ca")

	was := x.ok("get", "deployments", "-o", "yaml")
	x.has(was, "/models/twice/versions/1\n", "replicas: 1\n")
	if got, _ := x.types(0, was, "apply", "-f", "-"); !strings.HasPrefix(got, "unchanged") {
		t.Errorf("got\n%s", got)
	}
	x.ok("model", "alias", "twice", "champion", "1")
	aliased := regexp.MustCompile(`model: .*`).ReplaceAllString(was, "model: models/twice/versions/champion")
	if got, _ := x.types(0, aliased, "apply", "-f", "-"); !strings.HasPrefix(got, "unchanged") {
		t.Errorf("an alias that names the same version:\n%s", got)
	}

	// Another version beside it, and all of the traffic to it, once it answers; then the first goes.
	x.ok("model", "upload", "twice", x.file("model.json", `{"factor": 3}`))
	green := strings.ReplaceAll(strings.ReplaceAll(was, "deployments/blue", "deployments/green"), "versions/1", "versions/latest")
	endpoint := "---\napiVersion: redoubt.dev/v1\nkind: Endpoint\nmetadata: {name: twice}\nspec: {traffic: {green: 100}, auth: key}\n"
	got, _ := x.types(0, endpoint+green, "apply", "-f", "-")
	x.has(got, "created", "deployments/green", "traffic: {blue: 100} → {green: 100}", "auth: token → key")
	out, _ := x.types(0, pair.SecondaryKey+"\n", "endpoint", "score", "twice", "-f", x.dir+"/body.json", "--key-stdin")
	x.has(out, "9")
	x.ok("deployment", "delete", "twice/blue", "--yes")
	_, said = x.types(2, "", "model", "delete", "twice", "--yes")
	x.has(said, "/endpoints/twice/deployments/")
	x.has(x.ok("deployment", "update", "twice/green", "--replicas", "2", "--wait"), "2 of 2")
	x.ok("endpoint", "delete", "twice", "--yes")
	x.types(2, "", "endpoint", "show", "twice")
}

// otherRoot is the root of an installation that is none.
func otherRoot(t *testing.T) []byte {
	t.Helper()
	a, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString("other.local"), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root().Raw})
}
