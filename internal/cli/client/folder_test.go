package client

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	p := filepath.Join(dir, name)
	must(t, os.MkdirAll(filepath.Dir(p), 0o700))
	must(t, os.WriteFile(p, []byte(content), 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func scanDir(t *testing.T, dir string, l limits) (*folder, error) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	must(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return scan(root, l)
}

// H2: what would not be the same tree on another machine is refused before anything is sent.
func TestScanRefusesHostileTrees(t *testing.T) {
	small := limits{files: 3, file: 10, total: 15}
	cases := []struct {
		name string
		make func(t *testing.T, dir string)
		want string
	}{
		{"nothing", func(*testing.T, string) {}, "no file"},
		{"only folders", func(t *testing.T, d string) { must(t, os.MkdirAll(filepath.Join(d, "a/b"), 0o700)) }, "no file"},
		{"link out of the tree", func(t *testing.T, d string) { must(t, os.Symlink("/etc/passwd", filepath.Join(d, "x"))) }, "is a link"},
		{"link inside", func(t *testing.T, d string) {
			write(t, d, "a", "1")
			must(t, os.Symlink("a", filepath.Join(d, "b")))
		}, "is a link"},
		{"link to a folder", func(t *testing.T, d string) { must(t, os.Symlink("/etc", filepath.Join(d, "x"))) }, "is a link"},
		{"dangling link", func(t *testing.T, d string) { must(t, os.Symlink("nowhere", filepath.Join(d, "x"))) }, "is a link"},
		{"pipe", func(t *testing.T, d string) { must(t, syscall.Mkfifo(filepath.Join(d, "x"), 0o600)) }, "a pipe"},
		{"socket", func(t *testing.T, d string) {
			t.Chdir(d) // a socket's path is short
			l, err := net.Listen("unix", "x")
			must(t, err)
			t.Cleanup(func() { _ = l.Close() })
		}, "a socket"},
		{"backslash", func(t *testing.T, d string) { write(t, d, `a\b`, "1") }, "backslash"},
		{"newline", func(t *testing.T, d string) { write(t, d, "a\nb", "1") }, "control"},
		{"direction mark", func(t *testing.T, d string) { write(t, d, "a\u202eb", "1") }, "cannot be seen"},
		{"not UTF-8", func(t *testing.T, d string) { write(t, d, "a\xff", "1") }, "UTF-8"},
		{"not composed", func(t *testing.T, d string) { write(t, d, "e\u0301", "1") }, "composed"},
		{"dot at the end", func(t *testing.T, d string) { write(t, d, "a.", "1") }, "dot at its end"},
		{"space at the end", func(t *testing.T, d string) { write(t, d, "a ", "1") }, "space"},
		{"drive", func(t *testing.T, d string) { write(t, d, "c:x", "1") }, "drive"},
		{"case twins", func(t *testing.T, d string) { write(t, d, "a", "1"); write(t, d, "A", "2") }, "cannot be told from"},
		{"case twins of folders", func(t *testing.T, d string) { write(t, d, "a/x", "1"); write(t, d, "A/y", "2") }, "cannot be told from"},
		{"sharp s", func(t *testing.T, d string) { write(t, d, "straße", "1"); write(t, d, "strasse", "2") }, "cannot be told from"},
		{"a file too large", func(t *testing.T, d string) { write(t, d, "a", strings.Repeat("x", 11)) }, "more than 10 bytes"},
		{"too much", func(t *testing.T, d string) {
			write(t, d, "a", strings.Repeat("x", 10))
			write(t, d, "b", strings.Repeat("x", 6))
		}, "more than 15 bytes"},
		{"too many", func(t *testing.T, d string) {
			for _, n := range []string{"a", "b", "c", "d"} {
				write(t, d, n, "1")
			}
		}, "more than 3 files"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(t, dir)
			_, err := scanDir(t, dir, small)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
			if m := Describe(err).Message; strings.ContainsAny(m, "\n\u202e") || !utf8.ValidString(m) {
				t.Errorf("the message steers the terminal: %q", Describe(err).Message)
			}
		})
	}
}

func TestScanAtTheEdge(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "b/train.py", "print(1)\n")
	write(t, dir, "a", strings.Repeat("x", 6))
	write(t, dir, "empty", "")
	must(t, os.Chmod(filepath.Join(dir, "a"), 0o700))
	f, err := scanDir(t, dir, limits{files: 3, file: 9, total: 15})
	must(t, err)
	var got []string
	for _, e := range f.entries {
		got = append(got, e.GetPath())
	}
	if strings.Join(got, " ") != "a b/train.py empty" || f.total != 15 {
		t.Fatalf("got %v, %d bytes", got, f.total)
	}
	want := sha256.Sum256([]byte("print(1)\n"))
	if e := f.entries[1]; !bytes.Equal(e.GetDigest(), want[:]) || e.GetSize() != 9 || e.GetExecutable() {
		t.Errorf("got %v", e)
	}
	if !f.entries[0].GetExecutable() {
		t.Error("a is executable")
	}
}

// feed gives chunks, then the error.
func feed(last error, chunks ...string) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(chunks) == 0 {
			return nil, last
		}
		c := chunks[0]
		chunks = chunks[1:]
		return []byte(c), nil
	}
}

func TestPlace(t *testing.T) {
	sum := sha256.Sum256([]byte("model"))
	good := func(path string) *computev1.Output {
		return &computev1.Output{Path: path, Size: 5, Digest: sum[:]}
	}
	broken := errors.New("broken")
	cases := []struct {
		name   string
		before func(t *testing.T, dir, outside string)
		out    *computev1.Output
		next   func() ([]byte, error)
		want   string // a part of the error, "" for none
	}{
		{"whole", nil, good("a/b/model.json"), feed(io.EOF, "mo", "del"), ""},
		{"over a file", func(t *testing.T, d, _ string) { write(t, d, "m", "old") }, good("m"), feed(io.EOF, "model"), ""},
		{"over a link", func(t *testing.T, d, o string) { must(t, os.Symlink(filepath.Join(o, "x"), filepath.Join(d, "m"))) }, good("m"), feed(io.EOF, "model"), ""},
		{"below a link out", func(t *testing.T, d, o string) { must(t, os.Symlink(o, filepath.Join(d, "a"))) }, good("a/m"), feed(io.EOF, "model"), "cannot be written"},
		{"above", nil, good("../m"), feed(io.EOF, "model"), ". or .."},
		{"absolute", nil, good("/tmp/m"), feed(io.EOF, "model"), "absolute"},
		{"control", nil, good("a\x1b[2J"), feed(io.EOF, "model"), "control"},
		{"other content", nil, good("m"), feed(io.EOF, "mudel"), "not what was told of it"},
		{"too short", nil, good("m"), feed(io.EOF, "mode"), "not what was told of it"},
		{"too long", nil, good("m"), feed(io.EOF, "model", "!"), "not what was told of it"},
		{"broken off", nil, good("m"), feed(broken, "mo"), "broken"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir, outside := t.TempDir(), t.TempDir()
			if c.before != nil {
				c.before(t, dir, outside)
			}
			root, err := os.OpenRoot(dir)
			must(t, err)
			defer func() { _ = root.Close() }()
			err = place(root, c.out, &receiving{}, c.next)
			if left, _ := filepath.Glob(filepath.Join(dir, "*.part")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if out, _ := os.ReadDir(outside); len(out) > 0 {
				t.Errorf("written outside: %v", out)
			}
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got %v, want %q in it", err, c.want)
				}
				if _, err := os.Stat(filepath.Join(dir, "m")); err == nil {
					t.Error("the file is there")
				}
				return
			}
			must(t, err)
			b, err := os.ReadFile(filepath.Join(dir, c.out.GetPath()))
			if err != nil || string(b) != "model" {
				t.Errorf("got %q, %v", b, err)
			}
			if info, err := os.Lstat(filepath.Join(dir, c.out.GetPath())); err != nil || info.Mode() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
	if !fault.Is(mismatch("m"), codes.DataLoss) {
		t.Error("a mismatch is data loss")
	}
}
