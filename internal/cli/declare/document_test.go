package declare

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const endpointText = `apiVersion: redoubt.dev/v1
kind: Endpoint
metadata:
  name: churn
spec:
  auth: key
`

// What is not understood is refused with its line, before anything is asked of the installation.
func TestParseRefuses(t *testing.T) {
	cases := []struct {
		name, text, want string
	}{
		{"nothing", "", "no document"},
		{"nothing between marks", "---\n---\n", "no document"},
		{"no YAML", "a: [", "no YAML"},
		{"a list", "- a\n", "line 1: the document is a mapping"},
		{"a text", "a\n", "line 1: the document is a mapping"},
		{"another version", strings.Replace(endpointText, "dev/v1", "dev/v2", 1), "line 1: apiVersion is redoubt.dev/v1"},
		{"no version", strings.Replace(endpointText, "apiVersion: redoubt.dev/v1\n", "", 1), "apiVersion is redoubt.dev/v1"},
		{"another kind", strings.Replace(endpointText, "Endpoint", "Secret", 1), `line 2: there is no kind "Secret"; there are Compute, Deployment`},
		{"kind in another case", strings.Replace(endpointText, "Endpoint", "endpoint", 1), "line 2: there is no kind"},
		{"no kind", "apiVersion: redoubt.dev/v1\n", "kind is missing"},
		{"no name", strings.Replace(endpointText, "  name: churn\n", "  {}\n", 1), "metadata.name is missing"},
		{"unknown field of the document", endpointText + "status: x\n", `line 7: the document has no field "status"`},
		{"unknown field of metadata", strings.Replace(endpointText, "  name: churn", "  name: churn\n  labels: {}", 1), `line 5: metadata has no field "labels"`},
		{"unknown field of the spec", endpointText + "  colour: red\n", `line 7: spec has no field "colour"; it has kind, auth`},
		{"another spelling", endpointText + "  tokenTTL: 1h\n", `line 7: spec has no field "tokenTTL"`},
		{"a field twice", endpointText + "  auth: none\n", `line 7: spec has "auth" twice`},
		{"a tag twice", endpointText + "  tags:\n    a: x\n    a: y\n", "line 9"},
		{"a wrong word", strings.Replace(endpointText, "auth: key", "auth: keys", 1), "auth is one of key, token, none"},
		{"a text for a mapping", endpointText + "  traffic: blue\n", "line 7: the text `blue` stands where a mapping of numbers belongs"},
		{"a text for a number", endpointText + "  traffic:\n    blue: much\n", "line 8: the text `much` stands where a number belongs"},
		{"too large a number", endpointText + "  traffic:\n    blue: 9999999999\n", "line 8"},
		{"no time", endpointText + "  tokenTtl: soon\n", "no length of time"},
		{"a negative time", endpointText + "  tokenTtl: -1h\n", "no length of time"},
		{"a key", endpointText + "  primaryKey: rdk_x\n", `no field "primaryKey"`},
		{"an anchor", endpointText + "  tags: &t {a: b}\n", "line 7: anchors"},
		{"an alias", "a: &x [1]\nb: *x\n", "line 1: anchors"},
		{"a merge", endpointText + "  <<: {a: b}\n", "line 7: merge keys"},
		{"a tag of YAML", endpointText + "  description: !!binary aGk=\n", "line 7: tags"},
		{"the second of two", endpointText + "---\n" + endpointText + "  colour: red\n", `line 14: spec has no field "colour"`},
		{"an assignment with a name", "apiVersion: redoubt.dev/v1\nkind: RoleAssignment\nmetadata: {name: x}\nspec: {scope: /, role: owner, principal: ada}\n", "has no name"},
		{"an assignment of nothing", "apiVersion: redoubt.dev/v1\nkind: RoleAssignment\nspec: {scope: /}\n", "scope, role and principal"},
		{"an assignment without a spec", "apiVersion: redoubt.dev/v1\nkind: RoleAssignment\n", "scope, role and principal"},
		{"too large", strings.Repeat("#", maxFile+1), "more than 4 MiB"},
		{"too many", strings.Repeat("---\n"+endpointText, maxDocuments+1), "more than 1000"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			docs, err := parse("f.yaml", strings.NewReader(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "f.yaml") || docs != nil {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestParseTakes(t *testing.T) {
	docs, err := parse("f.yaml", strings.NewReader("# a comment\n"+endpointText+"---\n---\n"+strings.Replace(endpointText, "  auth: key\n", "  tokenTtl: 90m\n  tags: {n: 1, b: true}\n", 1)))
	if err != nil || len(docs) != 2 || docs[0].name != "churn" || docs[0].where != "f.yaml, line 2" || docs[1].where != "f.yaml, line 10" {
		t.Fatalf("got %+v, %v", docs, err)
	}
	if e := docs[0].spec.(*endpointSpec); val(e.Auth) != "key" || e.Tags != nil || e.Kind != nil {
		t.Errorf("got %+v", e)
	}
	if e := docs[1].spec.(*endpointSpec); time.Duration(val(e.TokenTTL)) != 90*time.Minute || !reflect.DeepEqual(val(e.Tags), map[string]string{"n": "1", "b": "true"}) {
		t.Errorf("got %+v", e)
	}
}

// What the documentation shows is taken.
func TestDocumentsOfTheDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllSubmatch(page, -1)
	if len(blocks) == 0 {
		t.Fatal("the page has no documents")
	}
	for _, b := range blocks {
		if docs, err := parse("cli.md", bytes.NewReader(b[1])); err != nil || len(docs) < 2 {
			t.Errorf("%d documents, %v", len(docs), err)
		}
	}
	for title, k := range kinds() {
		for _, f := range specFields(k.blank()) {
			if !regexp.MustCompile("(?m)^\\| `" + title + "` .*`" + f + "`").Match(page) {
				t.Errorf("the table does not tell of %s.%s", title, f)
			}
		}
	}
}

// fill writes something into every field of a spec, or leaves it out.
func fill(r *rand.Rand, spec any, every bool) {
	texts := []string{"", "a", "yes", "1", "a: b", "- x", "#", "line\nline\n", "é\u2028", "null", " lead", "\x1b[0m", "&a", "*a", "!t", "<<"}
	v := reflect.ValueOf(spec).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		if !every && r.IntN(3) == 0 {
			continue
		}
		f.Set(reflect.New(f.Type().Elem()))
		switch p := f.Interface().(type) {
		case *string:
			switch name := v.Type().Field(i).Name; {
			case name == "Kind":
				*p = "local"
			case name == "Auth":
				*p = []string{"key", "token", "none"}[r.IntN(3)]
			case name == "Scope" || name == "Role" || name == "Principal":
				*p = "subscriptions/a"
			default:
				*p = texts[r.IntN(len(texts))]
			}
		case *int32:
			*p = r.Int32()
		case *int64:
			*p = r.Int64()
		case *duration:
			*p = duration(time.Duration(1+r.IntN(100_000)) * time.Second)
		case *map[string]string:
			*p = map[string]string{texts[1+r.IntN(len(texts)-1)]: texts[r.IntN(len(texts))], "b": "c"}
		case *map[string]int32:
			*p = map[string]int32{"blue": r.Int32N(101)}
		case *map[string]int64:
			*p = map[string]int64{"champion": r.Int64()}
		}
	}
}

// Whatever a resource has in its fields, the document that says so is read as the same, and nothing differs.
func TestWrittenIsReadAsTheSame(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for title, k := range kinds() {
		t.Run(title, func(t *testing.T) {
			for range 200 {
				spec := k.blank()
				fill(r, spec, title == "RoleAssignment")
				name := "n"
				if !k.named() {
					name = ""
				}
				var b bytes.Buffer
				if err := write(&b, k, name, spec); err != nil {
					t.Fatal(err)
				}
				docs, err := parse("f", &b)
				if err != nil || len(docs) != 1 || docs[0].name != name {
					t.Fatalf("%v\n%s", err, told(spec))
				}
				if diffs := compare(spec, docs[0].spec); len(diffs) > 0 || !reflect.DeepEqual(spec, docs[0].spec) {
					t.Fatalf("%v\n%s\n%s", diffs, told(spec), told(docs[0].spec))
				}
			}
		})
	}
}

func told(spec any) string {
	var b strings.Builder
	for _, d := range compare(nil, spec) {
		fmt.Fprintf(&b, "%s\n", d)
	}
	return b.String()
}

func TestCompare(t *testing.T) {
	is := &endpointSpec{Kind: ptr("local"), Auth: ptr("key"), Description: ptr("x"), Tags: &map[string]string{"a": "1"}, TokenTTL: ptr(duration(time.Hour)), Traffic: &map[string]int32{}}
	cases := []struct {
		name string
		want *endpointSpec
		diff []string
	}{
		{"nothing said", &endpointSpec{}, nil},
		{"the same", &endpointSpec{Auth: ptr("key"), Tags: &map[string]string{"a": "1"}, TokenTTL: ptr(duration(time.Hour))}, nil},
		{"empty and absent maps", &endpointSpec{Traffic: ptr(map[string]int32(nil))}, nil},
		{"one field", &endpointSpec{Auth: ptr("none")}, []string{"auth: key → none"}},
		{"to nothing", &endpointSpec{Description: ptr("")}, []string{`description: x → ""`}},
		{"a map as a whole", &endpointSpec{Tags: &map[string]string{"b": "2\n"}}, []string{`tags: {a: "1"} → {b: "2\n"}`}},
		{"to no tags", &endpointSpec{Tags: &map[string]string{}}, []string{`tags: {a: "1"} → {}`}},
		{"a time", &endpointSpec{TokenTTL: ptr(duration(90 * time.Minute))}, []string{"tokenTtl: 1h → 1h30m"}},
		{"what is not there", &endpointSpec{Mirror: &map[string]int32{"b": 5}}, []string{"mirror: nothing → {b: 5}"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := lines(compare(is, c.want)); !slices.Equal(got, c.diff) {
				t.Errorf("got %q, want %q", got, c.diff)
			}
		})
	}
	if got := lines(compare(nil, &endpointSpec{Auth: ptr("key")})); !slices.Equal(got, []string{"auth: key"}) {
		t.Errorf("of nothing there: %q", got)
	}
}

func TestMask(t *testing.T) {
	if got := mask([]difference{{Field: "tokenTtl"}, {Field: "auth"}, {Field: "displayName"}}).GetPaths(); !slices.Equal(got, []string{"token_ttl", "auth", "display_name"}) {
		t.Errorf("got %q", got)
	}
}
