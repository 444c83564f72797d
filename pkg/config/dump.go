package config

import (
	"encoding"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// Dump writes settings as YAML for people and logs. Sensitive fields that are set show as [redacted], whatever they
// hold, and so does a visible text that turns out to be a URL with a password in it. v is a struct that Load accepts,
// or a pointer to one.
func Dump(v any) (string, error) {
	n, err := dumpTree(v)
	if err != nil {
		return "", err
	}
	b, err := yaml.Marshal(n)
	if err != nil {
		return "", fmt.Errorf("config: dump: %w", err)
	}
	return string(b), nil
}

func dumpTree(v any) (*yaml.Node, error) {
	r := reflect.ValueOf(v)
	if r.Kind() == reflect.Pointer && !r.IsNil() {
		r = r.Elem()
	}
	if !r.IsValid() || r.Kind() != reflect.Struct {
		return nil, fmt.Errorf("config: %T is not a struct", v)
	}
	if err := checkType(r.Type(), "", 0); err != nil {
		return nil, err
	}
	return dump(r, false), nil
}

func dump(v reflect.Value, sensitive bool) *yaml.Node {
	if leaf(v.Type()) {
		return dumpLeaf(v, sensitive)
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return dump(v.Elem(), sensitive)
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, dump(v.Index(i), sensitive))
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			n.Content = append(n.Content, text(k.String()), dump(v.MapIndex(k), sensitive))
		}
		return n
	}
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range fields(v.Type()) {
		// The tag of the field decides for what is in it; that of a section's field is in the section.
		if value := dump(v.Field(f.index), f.sensitive); value != nil {
			n.Content = append(n.Content, text(f.name), value)
		}
	}
	return n
}

func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

func dumpLeaf(v reflect.Value, sensitive bool) *yaml.Node {
	if s, ok := v.Interface().(redact.Secret); ok {
		if s.Empty() {
			return text("")
		}
		return text(redact.Mask)
	}
	if sensitive {
		if v.IsZero() {
			return text("")
		}
		return text(redact.Mask)
	}
	var s string
	switch x := v.Interface().(type) {
	case time.Duration:
		s = x.String()
	case encoding.TextMarshaler:
		b, err := x.MarshalText()
		if err != nil {
			return text("(malformed)")
		}
		s = string(b)
	default:
		if v.Kind() != reflect.String {
			n := &yaml.Node{}
			if err := n.Encode(v.Interface()); err != nil {
				return text("(malformed)")
			}
			return n
		}
		s = v.String()
	}
	if hasPassword(s) {
		s = redact.Mask
	}
	return text(s)
}

// hasPassword errs on the side of hiding: what cannot be parsed as a URL but has an @ after :// is hidden too.
func hasPassword(s string) bool {
	_, rest, ok := strings.Cut(s, "://")
	if !ok || !strings.Contains(rest, "@") {
		return false
	}
	u, err := url.Parse(s)
	if err != nil {
		return true
	}
	_, has := u.User.Password()
	return has
}
