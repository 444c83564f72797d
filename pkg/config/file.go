package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	maxFile   = 1 << 20
	maxSecret = 64 << 10
)

// readFile reads a regular file of at most limit bytes whose mode has none of the forbidden bits. The checks are on the
// open file, so nobody can exchange it in between.
func readFile(path string, limit int64, forbidden os.FileMode, owned bool) ([]byte, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if bad := info.Mode().Perm() & forbidden; bad != 0 {
		return nil, fmt.Errorf("%s has mode %04o: run chmod %04o on it", path, info.Mode().Perm(), info.Mode().Perm()&^forbidden)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); owned && ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s belongs to another user", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return b, nil
}

// ReadSecret reads a secret from a file that its owner alone can read, who is this process's user or root: without the line break
// that editors leave at its end, at most 64 KiB, and never empty.
func ReadSecret(path string) (redact.Secret, error) { return readSecret(path) }

// readSecret reads a secret without the line break that editors leave at its end.
func readSecret(path string) (redact.Secret, error) {
	b, err := readFile(path, maxSecret, 0o077, true)
	if err != nil {
		return redact.Secret{}, err
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 {
		return redact.Secret{}, fmt.Errorf("%s is empty", path)
	}
	return redact.New(b), nil
}

// walker turns a YAML tree into a map for koanf, checking it against the type on the way.
type walker struct {
	file string
	dir  string // of the file: what the paths of secrets in it are relative to
	errs []error
}

func (w *walker) fail(n *yaml.Node, path, format string, args ...any) {
	if path == "" {
		path = "(top)"
	}
	w.errs = append(w.errs, fmt.Errorf("%s:%d: %s: %s", w.file, n.Line, path, fmt.Sprintf(format, args...)))
}

// loadFile reads a YAML file as a tree of t.
func loadFile(path string, t reflect.Type) (map[string]any, error) {
	data, err := readFile(path, maxFile, 0o002, false)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return map[string]any{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("config: %s: %w", path, err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("config: %s: there is more than one document", path)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	w := &walker{file: path, dir: filepath.Dir(abs)}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return map[string]any{}, nil // comments only
	}
	m := w.section(root, t, "", 0)
	return m, errors.Join(w.errs...)
}

func (w *walker) section(n *yaml.Node, t reflect.Type, path string, depth int) map[string]any {
	out := map[string]any{}
	for name, at := range w.mapping(n, path, depth) {
		f, ok := fieldNamed(t, name)
		if !ok {
			w.fail(at.key, join(path, name), "unknown key%s", suggest(t, name))
			continue
		}
		if v, ok := w.value(at.value, f.typ, join(path, name), f.sensitive, depth+1); ok {
			out[name] = v
		}
	}
	return out
}

type pair struct{ key, value *yaml.Node }

// mapping lists the pairs of a mapping. Keys are plain texts and stand once.
func (w *walker) mapping(n *yaml.Node, path string, depth int) map[string]pair {
	out := map[string]pair{}
	if n.Kind != yaml.MappingNode || n.Tag != "!!map" || n.Anchor != "" || depth > 2*maxNesting {
		w.fail(n, path, "needs a section: keys and values, indented below it")
		return out
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.Tag != "!!str" || k.Anchor != "" {
			w.fail(k, path, "a key is not a plain text")
			continue
		}
		if _, twice := out[k.Value]; twice {
			w.fail(k, join(path, k.Value), "the key stands twice")
			continue
		}
		out[k.Value] = pair{k, n.Content[i+1]}
	}
	return out
}

func (w *walker) value(n *yaml.Node, t reflect.Type, path string, sensitive bool, depth int) (any, bool) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		w.fail(n, path, "anchors and aliases are not used here")
		return nil, false
	}
	if n.Tag == "!!null" {
		w.fail(n, path, "has no value: give it one, or leave the key out")
		return nil, false
	}
	switch {
	case leaf(t):
		return w.leaf(n, t, path, sensitive)
	case t.Kind() == reflect.Pointer:
		return w.section(n, t.Elem(), path, depth), true
	case t.Kind() == reflect.Struct:
		return w.section(n, t, path, depth), true
	case t.Kind() == reflect.Map:
		out := map[string]any{}
		for name, at := range w.mapping(n, path, depth) {
			if v, ok := w.value(at.value, t.Elem(), join(path, name), sensitive, depth+1); ok {
				out[name] = v
			}
		}
		return out, true
	default: // a slice
		if n.Kind != yaml.SequenceNode || n.Tag != "!!seq" {
			w.fail(n, path, "needs a list")
			return nil, false
		}
		out := make([]any, 0, len(n.Content))
		for i, item := range n.Content {
			if v, ok := w.value(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i), sensitive, depth+1); ok {
				out = append(out, v)
			}
		}
		return out, true
	}
}

func (w *walker) leaf(n *yaml.Node, t reflect.Type, path string, sensitive bool) (any, bool) {
	if n.Kind != yaml.ScalarNode {
		w.fail(n, path, "needs a single value")
		return nil, false
	}
	var v any
	switch n.Tag {
	case "!!str", "!!int", "!!float", "!!bool":
		if err := n.Decode(&v); err != nil {
			w.fail(n, path, "cannot be read")
			return nil, false
		}
	default:
		w.fail(n, path, "needs a text, a number, true or false: put a text in quotes")
		return nil, false
	}
	v, err := store(v, t, sensitive)
	if err != nil {
		w.fail(n, path, "%v", err)
		return nil, false
	}
	if s, ok := v.(string); ok && t == typeSecret && !filepath.IsAbs(s) {
		v = filepath.Join(w.dir, s)
	}
	return v, true
}

// suggest names the field that was probably meant.
func suggest(t reflect.Type, name string) string {
	for _, f := range fields(t) {
		if f.typ == typeSecret && f.name == name+"_file" {
			return ": a secret is read from a file, set " + f.name + " to its path"
		}
	}
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s)) }
	for _, f := range fields(t) {
		if a, b := plain(f.name), plain(name); a == b || oneEdit(a, b) {
			return ": did you mean " + f.name + "?"
		}
	}
	return ""
}

// oneEdit reports whether one letter was added, left out, changed, or exchanged with its neighbour.
func oneEdit(a, b string) bool {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return len(a)+len(b) == 1 || len(a) == 1 && len(b) == 1 || len(a) == 2 && len(b) == 2 && a[0] == b[1] && a[1] == b[0]
}
