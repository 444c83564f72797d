package config

import (
	"fmt"
	"maps"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Origins says where each setting comes from that is not a default, by dotted path: the file's name, the variable's name, or "--set". It
// reads no secrets. A list or map is one setting.
func Origins[T any](src Source) (map[string]string, error) {
	t := reflect.TypeFor[T]()
	if err := checkType(t, "", 0); err != nil {
		return nil, err
	}
	out := make(map[string]string)
	if src.Path != "" {
		m, err := loadFile(src.Path, t)
		if err != nil {
			return nil, err
		}
		for path := range paths(m, "") {
			out[path] = src.Path
		}
	}
	texts, err := newTexts(t)
	if err != nil {
		return nil, err
	}
	for _, e := range src.Env {
		name, _, _ := strings.Cut(e, "=")
		if s, ok := texts.byEnv[name]; ok {
			out[strings.Join(s.path, delim)] = name
		}
	}
	for path := range src.Flags {
		out[path] = "--set"
	}
	return out, nil
}

// paths are those of a tree's leaves.
func paths(m map[string]any, prefix string) map[string]bool {
	out := make(map[string]bool)
	for k, v := range m {
		if inner, ok := v.(map[string]any); ok {
			maps.Copy(out, paths(inner, join(prefix, k)))
			continue
		}
		out[join(prefix, k)] = true
	}
	return out
}

// DumpOrigins is Dump with a comment beside each setting that says where it comes from.
func DumpOrigins(v any, origins map[string]string) (string, error) {
	n, err := dumpTree(v)
	if err != nil {
		return "", err
	}
	comment(n, "", origins)
	b, err := yaml.Marshal(n)
	if err != nil {
		return "", fmt.Errorf("config: dump: %w", err)
	}
	return string(b), nil
}

func comment(n *yaml.Node, path string, origins map[string]string) {
	for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := join(path, key.Value)
		where, set := origins[at]
		switch {
		case value.Kind == yaml.MappingNode && len(value.Content) > 0 && !set:
			comment(value, at, origins)
		case value.Kind == yaml.ScalarNode && set:
			value.LineComment = where
		case value.Kind == yaml.ScalarNode:
			value.LineComment = "default"
		case set:
			key.HeadComment = where
		}
	}
}
