package scale

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// H2: a snapshot of a hundred thousand small files goes up, is known again, and comes down to a run.
func TestSmallFiles(t *testing.T) {
	files := sized(1000, 100_000)
	l := newLab(t, "scale-files")
	dir := t.TempDir()
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i%1000/10))
		must(t, os.MkdirAll(sub, 0o700))
		must(t, os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%06d", i)), fmt.Appendf(nil, "the content of file %d\n", i), 0o600))
	}
	stop := memory(t, "files-up")
	var name string
	took(t, "files-up", func() {
		s, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil)
		must(t, err)
		name = s.GetName()
	})
	stop()
	took(t, "files-known", func() {
		s, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil)
		must(t, err)
		if s.GetName() != name {
			t.Errorf("another snapshot: %s", s.GetName())
		}
	})
	stop = memory(t, "files-down")
	defer stop()
	took(t, "files-run", func() {
		_, log := l.run(t, name, 2<<30, "/bin/sh", "-c", "find . -type f | wc -l; cat d000/f000000")
		if want := fmt.Sprintf("%d\nthe content of file 0\n", files); strings.TrimLeft(log, " ") != want {
			t.Errorf("the run found %q, want %q", log, want)
		}
	})
}

// H2: a file of the largest size that a snapshot takes.
func TestLargeFile(t *testing.T) {
	size := int64(sized(16<<20, 1<<30))
	l := newLab(t, "scale-large")
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "large"))
	must(t, err)
	must(t, f.Truncate(size))
	_, err = f.WriteAt([]byte("end"), size-3)
	must(t, err)
	must(t, f.Close())
	stop := memory(t, "large-up")
	var name string
	took(t, "large-up", func() {
		s, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil)
		must(t, err)
		name = s.GetName()
	})
	stop()
	stop = memory(t, "large-down")
	defer stop()
	took(t, "large-run", func() {
		_, log := l.run(t, name, 2<<30, "/bin/sh", "-c", "wc -c <large; tail -c 3 large")
		if want := fmt.Sprintf("%d\nend", size); strings.TrimLeft(log, " ") != want {
			t.Errorf("the run found %q, want %q", log, want)
		}
	})
	if full() {
		must(t, os.Truncate(filepath.Join(dir, "large"), size+1))
		if _, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil); err == nil {
			t.Error("a byte more was taken")
		}
	}
}
