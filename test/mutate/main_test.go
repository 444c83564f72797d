package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A mutant whose text is gone, or stands in its file twice, takes nothing out. Only some are tried with each change; this looks at all of them.
func TestEveryMutantHasItsPlace(t *testing.T) {
	seen := make(map[string]bool)
	for _, m := range all() {
		text, err := os.ReadFile(filepath.Join("..", "..", m.file))
		if err != nil {
			t.Errorf("%s: %v", m.what, err)
			continue
		}
		if n := strings.Count(string(text), m.old); n != 1 {
			t.Errorf("%s: %q stands in %s %d times", m.what, m.old, m.file, n)
		}
		if m.old == m.with {
			t.Errorf("%s: nothing is replaced", m.what)
		}
		if key := m.file + m.old + m.with; seen[key] {
			t.Errorf("%s: it is there twice", m.what)
		} else {
			seen[key] = true
		}
	}
}
