package declare

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

const (
	apiVersion = "redoubt.dev/v1"

	maxFile      = 4 << 20
	maxDocuments = 1000
)

// document is one thing that is to be.
type document struct {
	where string // file and line, for people
	kind  kind
	name  string // as it is written; "" for a role assignment
	spec  any    // a pointer to the kind's spec
}

// envelope is what every document has around its spec.
type envelope struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   metadata `yaml:"metadata,omitempty"`
	Spec       any      `yaml:"spec"`
}

type metadata struct {
	Name string `yaml:"name"`
}

// parse reads the documents of a file, all of them or none.
func parse(file string, src io.Reader) ([]document, error) {
	text, err := io.ReadAll(io.LimitReader(src, maxFile+1))
	if err != nil {
		return nil, app.Usagef("%s cannot be read: %v", file, err)
	}
	if len(text) > maxFile {
		return nil, app.Usagef("%s has more than %d MiB", file, maxFile>>20)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var out []document
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, app.Usagef("%s is no YAML: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if len(n.Content) == 1 && n.Content[0].ShortTag() == "!!null" && n.Content[0].Value == "" {
			continue // nothing between two marks
		}
		d, err := read(n.Content[0])
		if err != nil {
			return nil, app.Usagef("%s: %v", file, err)
		}
		if d.where = fmt.Sprintf("%s, line %d", file, n.Content[0].Line); len(out) == maxDocuments {
			return nil, app.Usagef("%s has more than %d documents; apply it in parts", file, maxDocuments)
		}
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, app.Usagef("%s has no document", file)
	}
	return out, nil
}

// bad is what is wrong at a line.
func bad(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: "+format, append([]any{n.Line}, args...)...)
}

// read takes a document apart.
func read(n *yaml.Node) (d document, err error) {
	if err := plain(n); err != nil {
		return d, err
	}
	parts, err := fields(n, "the document", []string{"apiVersion", "kind", "metadata", "spec"})
	if err != nil {
		return d, err
	}
	if v := parts["apiVersion"]; v == nil || v.Value != apiVersion {
		return d, bad(cmpNode(v, n), "apiVersion is %s; this version knows no other", apiVersion)
	}
	k := parts["kind"]
	if k == nil {
		return d, bad(n, "kind is missing; it is one of %s", strings.Join(kindNames(), ", "))
	}
	known, ok := kinds()[k.Value]
	if !ok {
		return d, bad(k, "there is no kind %q; there are %s", k.Value, strings.Join(kindNames(), ", "))
	}
	d.kind, d.spec = known, known.blank()
	if m := parts["metadata"]; m != nil {
		meta, err := fields(m, "metadata", []string{"name"})
		if err != nil {
			return d, err
		}
		if x := meta["name"]; x != nil && x.Kind == yaml.ScalarNode {
			d.name = x.Value
		}
	}
	if d.kind.named() != (d.name != "") {
		if d.name == "" {
			return d, bad(cmpNode(parts["metadata"], n), "metadata.name is missing")
		}
		return d, bad(parts["metadata"], "a %s has no name: its scope, role and principal say which it is", k.Value)
	}
	s := parts["spec"]
	if s == nil || s.ShortTag() == "!!null" {
		return d, d.check(n)
	}
	if _, err := fields(s, "spec", specFields(d.spec)); err != nil {
		return d, err
	}
	if err := s.Decode(d.spec); err != nil {
		return d, specError(s, err)
	}
	return d, d.check(s)
}

// check is what a spec says of itself beyond its form.
func (d document) check(n *yaml.Node) error {
	if c, ok := d.spec.(interface{ check() error }); ok {
		if err := c.check(); err != nil {
			return bad(n, "%v", err)
		}
	}
	return nil
}

func cmpNode(n, otherwise *yaml.Node) *yaml.Node {
	if n != nil {
		return n
	}
	return otherwise
}

// plain refuses what makes a file mean more than it shows.
func plain(n *yaml.Node) error {
	switch {
	case n.Anchor != "": // without one there is no alias either
		return bad(n, "anchors (&%s) are not taken; write it out", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		return bad(n, "tags (%s) are not taken", n.Tag)
	case n.ShortTag() == "!!merge":
		return bad(n, "merge keys (<<) are not taken; write it out")
	}
	for _, c := range n.Content {
		if err := plain(c); err != nil {
			return err
		}
	}
	return nil
}

// fields takes a mapping apart. Each key is one that is known, and stands once.
func fields(n *yaml.Node, what string, known []string) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode {
		return nil, bad(n, "%s is a mapping of %s", what, strings.Join(known, ", "))
	}
	out := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if !slices.Contains(known, k.Value) {
			return nil, bad(k, "%s has no field %q; it has %s", what, k.Value, strings.Join(known, ", "))
		}
		if out[k.Value] != nil {
			return nil, bad(k, "%s has %q twice", what, k.Value)
		}
		out[k.Value] = n.Content[i+1]
	}
	return out, nil
}

// specFields are the names of a spec's fields, in their order.
func specFields(spec any) []string {
	t := reflect.TypeOf(spec).Elem()
	out := make([]string, 0, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		out = append(out, name)
	}
	return out
}

// specError is what the decoder says, in words of the file and not of the program.
func specError(n *yaml.Node, err error) error {
	var t *yaml.TypeError
	if !errors.As(err, &t) || len(t.Errors) == 0 {
		return bad(n, "%v", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	text := t.Errors[0]
	for _, r := range [][2]string{
		{"cannot unmarshal !!str ", "the text "}, {"cannot unmarshal !!int ", "the number "}, {"cannot unmarshal !!float ", "the number "}, {"cannot unmarshal !!bool ", ""},
		{"cannot unmarshal !!map", "a mapping"}, {"cannot unmarshal !!seq", "a list"},
		{" into map[string]string", " stands where a mapping of texts belongs"}, {" into map[string]int32", " stands where a mapping of numbers belongs"},
		{" into map[string]int64", " stands where a mapping of numbers belongs"}, {" into int32", " stands where a number belongs"}, {" into int64", " stands where a number belongs"},
		{" into string", " stands where a text belongs"},
	} {
		text = strings.Replace(text, r[0], r[1], 1)
	}
	return errors.New(text)
}

// write is a document as apply takes it.
func write(w io.Writer, k kind, name string, spec any) error {
	var n yaml.Node
	if err := n.Encode(envelope{APIVersion: apiVersion, Kind: k.title(), Metadata: metadata{Name: name}, Spec: spec}); err != nil {
		return err
	}
	show.Quote(&n)
	var out bytes.Buffer
	out.WriteString("---\n")
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&n), enc.Close()); err != nil {
		return err
	}
	_, err := out.WriteTo(w)
	return err
}
