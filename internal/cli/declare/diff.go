package declare

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// difference is one field that is not as it is to be.
type difference struct {
	Field string `json:"field"`
	// From is absent where the resource is not there yet.
	From string `json:"from,omitempty"`
	To   string `json:"to"`
}

// String is a line for people.
func (d difference) String() string {
	if d.From == "" {
		return fmt.Sprintf("%s: %s", d.Field, show.Text(d.To))
	}
	return fmt.Sprintf("%s: %s → %s", d.Field, show.Text(d.From), show.Text(d.To))
}

// compare gives the fields that want names and is has not so. Both are pointers to the same type of spec, whose fields are all
// pointers; is may be nil, for nothing there.
func compare(is, want any) []difference {
	w := reflect.ValueOf(want).Elem()
	var i reflect.Value
	if is != nil {
		i = reflect.ValueOf(is).Elem()
	}
	names := specFields(want)
	var out []difference
	for f := range w.NumField() {
		to := w.Field(f)
		if to.IsNil() {
			continue
		}
		d := difference{Field: names[f], To: text(to)}
		if is != nil {
			from := i.Field(f)
			if equal(from, to) {
				continue
			}
			d.From = text(from)
		}
		out = append(out, d)
	}
	return out
}

// equal compares two fields; a map that is empty is one that is not there.
func equal(a, b reflect.Value) bool {
	if a.IsNil() || b.IsNil() {
		return a.IsNil() == b.IsNil()
	}
	a, b = a.Elem(), b.Elem()
	if a.Kind() == reflect.Map && a.Len() == 0 && b.Len() == 0 {
		return true
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// text is a value in one line of YAML.
func text(v reflect.Value) string {
	if v.IsNil() {
		return "nothing"
	}
	var n yaml.Node
	if err := n.Encode(v.Interface()); err != nil {
		return "?"
	}
	show.Quote(&n)
	switch {
	case n.Kind != yaml.ScalarNode:
		n.Style = yaml.FlowStyle
	case n.ShortTag() == "!!str" && (n.Value == "" || strings.ContainsAny(n.Value, "\n\t")):
		n.Style = yaml.DoubleQuotedStyle
	case n.ShortTag() != "!!str":
		n.Style = 0
	}
	b, err := yaml.Marshal(&n)
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\n", " "))
}

// set reports whether a field is among them.
func set(list []difference, field string) bool {
	for _, d := range list {
		if d.Field == field {
			return true
		}
	}
	return false
}
