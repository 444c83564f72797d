package blob

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gocloud.dev/blob/driver"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(t *testing.T, s *Store, name, content string) {
	t.Helper()
	if n, err := s.Put(t.Context(), name, strings.NewReader(content)); err != nil || n != int64(len(content)) {
		t.Fatalf("put %s: %d, %v", name, n, err)
	}
}

func get(t *testing.T, s *Store, name string) string {
	t.Helper()
	r, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	defer func() { _ = r.Close() }()
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	return string(content)
}

func list(t *testing.T, s *Store, prefix string) []string {
	t.Helper()
	names := []string{}
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// onDisk is every entry below the folder but the store's own, with its mode.
func onDisk(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	found := make(map[string]fs.FileMode)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		found[name] = info.Mode()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestFilesArePrivate(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	check := func(t *testing.T, dir string) {
		s := open(t, dir)
		put(t, s, "a/b/c", "x")
		for name, mode := range onDisk(t, dir) {
			want := fs.FileMode(0o600)
			if mode.IsDir() {
				want = 0o700
			}
			if mode.Perm() != want {
				t.Errorf("%s has mode %v", name, mode)
			}
		}
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the folder has mode %v, %v", info.Mode(), err)
		}
	}
	t.Run("new", func(t *testing.T) { check(t, filepath.Join(t.TempDir(), "blob")) })
	t.Run("made wide by someone", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "blob")
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		check(t, dir)
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	open(t, taken)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(taken, link); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"open already": taken, "a file": file, "a link": link, "no folder above": filepath.Join(dir, "x", "y")} {
		if _, err := Open(t.Context(), Config{Dir: path}); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(t.Context(), Config{}); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("zero: %v", err)
	}
}

// Nothing above the folder is read, written or removed, whatever lies in it.
func TestLinksLeadNowhere(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "blob")
	s := open(t, dir)
	for name, target := range map[string]string{"file": secret, "folder": outside, "relative": "../../../../../../../../../../" + secret} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, "here", "x")
	if err := os.Symlink("here", filepath.Join(dir, "inside")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "folder/secret", "relative", "inside"} {
		if r, err := s.Get(t.Context(), name); err == nil {
			content, _ := io.ReadAll(r)
			t.Errorf("Get(%q) gave %q", name, content)
		}
		if ok, _ := s.Exists(t.Context(), name); ok {
			t.Errorf("Exists(%q)", name)
		}
	}
	if names := list(t, s, ""); len(names) != 1 {
		t.Errorf("List shows %v", names)
	}
	if _, err := s.Put(t.Context(), "folder/new", strings.NewReader("x")); err == nil {
		t.Error("a link to a folder was written through")
	}
	if err := s.Delete(t.Context(), "folder/secret"); err == nil {
		t.Error("a link to a folder was deleted through")
	}
	if err := s.DeletePrefix(t.Context(), "folder"); err != nil {
		t.Error(err)
	}
	put(t, s, "file", "mine") // in the place of the link
	if content, err := os.ReadFile(secret); err != nil || string(content) != "secret" {
		t.Errorf("outside: %q, %v", content, err)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("outside: %v", entries)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "pipe"); !fault.Is(err, codes.NotFound) {
		t.Errorf("a pipe: %v", err)
	}
}

func TestListInOrderAndInPages(t *testing.T) {
	name := rapid.StringMatching(`[ab.\-]{0,2}[ab](/[ab\-]{1,2}){0,3}`).Filter(func(s string) bool { return CheckName(s) == nil })
	dir := filepath.Join(t.TempDir(), "blob")
	s := open(t, dir)
	rapid.Check(t, func(r *rapid.T) {
		// Written beside the store, which would bring every one of them to disk first.
		for _, n := range list(t, s, "") {
			if err := os.RemoveAll(filepath.Join(dir, strings.SplitN(n, "/", 2)[0])); err != nil {
				r.Fatal(err)
			}
		}
		var want []string
		for _, n := range rapid.SliceOfNDistinct(name, 0, 12, rapid.ID[string]).Draw(r, "names") {
			path := filepath.Join(dir, n)
			if os.MkdirAll(filepath.Dir(path), 0o700) == nil && os.WriteFile(path, []byte("x"), 0o600) == nil { // not below another blob
				want = append(want, n)
			}
		}
		slices.Sort(want)
		prefix := rapid.SampledFrom([]string{"", "a", "b", "a/b", "ab"}).Draw(r, "prefix")
		if prefix != "" {
			want = slices.DeleteFunc(want, func(n string) bool { return !strings.HasPrefix(n, prefix+"/") })
		}
		if got := list(t, s, prefix); !slices.Equal(got, want) && len(got)+len(want) > 0 {
			r.Fatalf("got %v, want %v", got, want)
		}
		options := &driver.ListOptions{PageSize: rapid.IntRange(1, 4).Draw(r, "size")}
		if prefix != "" {
			options.Prefix = prefix + "/"
		}
		var paged []string
		for {
			page, err := s.driver.ListPaged(t.Context(), options)
			if err != nil || len(page.Objects) > options.PageSize {
				r.Fatalf("%d of %d, %v", len(page.Objects), options.PageSize, err)
			}
			for _, o := range page.Objects {
				paged = append(paged, o.Key)
			}
			if options.PageToken = page.NextPageToken; options.PageToken == nil {
				break
			}
		}
		if !slices.Equal(paged, want) && len(paged)+len(want) > 0 {
			r.Fatalf("in pages %v, want %v", paged, want)
		}
	})
}
