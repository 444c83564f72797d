package config

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const maxNesting = 8

var (
	typeSecret   = reflect.TypeFor[redact.Secret]()
	typeDuration = reflect.TypeFor[time.Duration]()
	typeText     = reflect.TypeFor[encoding.TextUnmarshaler]()
	validName    = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

// field is one field of a section.
type field struct {
	name      string
	index     int
	typ       reflect.Type
	sensitive bool
}

// leaf reports whether values of t are written as one value, not as a section.
func leaf(t reflect.Type) bool {
	if t == typeSecret || reflect.PointerTo(t).Implements(typeText) {
		return true
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// fields lists the fields of a section in their order.
func fields(t reflect.Type) []field {
	out := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("koanf")
		if !f.IsExported() || name == "-" {
			continue
		}
		out = append(out, field{name: name, index: i, typ: f.Type, sensitive: f.Tag.Get("config") != "visible"})
	}
	return out
}

func fieldNamed(t reflect.Type, name string) (field, bool) {
	for _, f := range fields(t) {
		if f.name == name {
			return f, true
		}
	}
	return field{}, false
}

// checkType finds mistakes in the types themselves, which are the programmer's.
func checkType(t reflect.Type, path string, depth int) error {
	if depth > maxNesting {
		return fmt.Errorf("config: %s: nested too deeply", path)
	}
	if t.Kind() != reflect.Struct {
		return fmt.Errorf("config: %s: %v is not a struct", path, t)
	}
	seen := map[string]bool{}
	for i := range t.NumField() {
		f := t.Field(i)
		name := f.Tag.Get("koanf")
		if !f.IsExported() || name == "-" {
			continue
		}
		at := join(path, name)
		if !validName.MatchString(name) {
			return fmt.Errorf("config: %s.%s: the tag koanf:%q is no name", path, f.Name, name)
		}
		if seen[name] {
			return fmt.Errorf("config: %s: the name stands twice", at)
		}
		seen[name] = true
		if err := checkField(f, at, depth); err != nil {
			return err
		}
	}
	return nil
}

func checkField(f reflect.StructField, at string, depth int) error {
	t := f.Type
	secret := t == typeSecret || (t.Kind() == reflect.Slice || t.Kind() == reflect.Map) && t.Elem() == typeSecret
	if secret && !strings.HasSuffix(at, "_file") && !strings.HasSuffix(at, "_files") {
		return fmt.Errorf("config: %s: a secret is named …_file, since it is read from one", at)
	}
	section := t
	switch {
	case leaf(t):
		section = nil
	case t.Kind() == reflect.Pointer:
		section = t.Elem()
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Map:
		if t.Kind() == reflect.Map && t.Key().Kind() != reflect.String {
			return fmt.Errorf("config: %s: the keys of a map are texts", at)
		}
		if section = t.Elem(); leaf(section) {
			section = nil
		}
	}
	if section != nil {
		return checkType(section, at, depth+1)
	}
	switch f.Tag.Get("config") {
	case "visible", "sensitive":
		return nil
	}
	return fmt.Errorf(`config: %s: the field lacks config:"visible" or config:"sensitive"`, at)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// settable is a leaf that a variable or a flag can set: one outside lists and maps, or a list of leaves.
type settable struct {
	path      []string
	typ       reflect.Type
	sensitive bool
}

func settables(t reflect.Type, path []string) []settable {
	var out []settable
	for _, f := range fields(t) {
		p := append(append([]string(nil), path...), f.name)
		ft := f.typ
		if ft.Kind() == reflect.Pointer && !leaf(ft) {
			ft = ft.Elem()
		}
		switch {
		case leaf(ft), ft.Kind() == reflect.Slice && leaf(ft.Elem()):
			out = append(out, settable{p, ft, f.sensitive})
		case ft.Kind() == reflect.Struct:
			out = append(out, settables(ft, p)...)
		}
	}
	return out
}
