package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"gocloud.dev/blob/driver"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
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

func TestPutGetDelete(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "blob"))
	ctx := t.Context()
	if ok, err := s.Exists(ctx, "a/b/c"); ok || err != nil {
		t.Errorf("before: %v, %v", ok, err)
	}
	if _, err := s.Get(ctx, "a/b/c"); !fault.Is(err, codes.NotFound) {
		t.Errorf("before: %v", err)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	for _, content := range []string{"", "x", big, "shorter"} { // each in the place of the one before
		put(t, s, "a/b/c", content)
		if get(t, s, "a/b/c") != content {
			t.Errorf("%d bytes came back changed", len(content))
		}
		info, err := s.Stat(ctx, "a/b/c")
		if err != nil || info.Size != int64(len(content)) || info.Name != "a/b/c" || info.ModTime.IsZero() {
			t.Errorf("Stat: %+v, %v", info, err)
		}
	}
	for range 2 {
		if err := s.Delete(ctx, "a/b/c"); err != nil {
			t.Error(err)
		}
		if ok, err := s.Exists(ctx, "a/b/c"); ok || err != nil {
			t.Errorf("after: %v, %v", ok, err)
		}
	}
}

func TestRanges(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "blob"))
	put(t, s, "a", "0123456789")
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, -1, "0123456789"}, {3, 4, "3456"}, {3, -1, "3456789"}, {8, 100, "89"}, {0, 0, ""}, {10, -1, ""}, {100, 5, ""}} {
		r, err := s.GetRange(t.Context(), "a", c.offset, c.length)
		if err != nil {
			t.Errorf("%d+%d: %v", c.offset, c.length, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != c.want {
			t.Errorf("%d+%d: %q, %v", c.offset, c.length, got, err)
		}
		_ = r.Close()
	}
	if _, err := s.GetRange(t.Context(), "a", -1, 5); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("got %v", err)
	}
}

func TestReaderKeepsWhatItOpened(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "blob"))
	put(t, s, "a", "old content")
	r, err := s.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	put(t, s, "a", "new")
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "old content" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNames(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "blob"))
	long := strings.Repeat("a", MaxPart)
	for _, name := range []string{"a", "0", "a-b_c.d", "a/b/c", "_", "-", "a..b", "a.", long, long + "/" + long + "/" + strings.Repeat("b", MaxName-2*MaxPart-2)} {
		put(t, s, name, name)
		if get(t, s, name) != name {
			t.Errorf("%q came back changed", name)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	before := onDisk(t, s.folder.root.Name())
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", "./a", ".a", "a/.b", ".tmp", ".tmp/a", ".lock",
		"A", "a b", "a\\b", "a\x00b", "a\nb", "ä", "a:b", "a*", "%2e%2e/a", "~", long + "a", long + "/" + long + "/" + long,
	} {
		for what, err := range map[string]error{
			"Put":          second(s.Put(t.Context(), name, strings.NewReader("x"))),
			"Get":          second(s.Get(t.Context(), name)),
			"GetRange":     second(s.GetRange(t.Context(), name, 0, 1)),
			"Stat":         second(s.Stat(t.Context(), name)),
			"Exists":       second(s.Exists(t.Context(), name)),
			"Delete":       s.Delete(t.Context(), name),
			"DeletePrefix": s.DeletePrefix(t.Context(), name),
		} {
			if fault.ReasonOf(err) != faultv1.Reason_PATH_INVALID {
				t.Errorf("%s(%q): %v", what, name, err)
			}
		}
		for _, err := range s.List(t.Context(), name) {
			if name != "" && fault.ReasonOf(err) != faultv1.Reason_PATH_INVALID {
				t.Errorf("List(%q): %v", name, err)
			}
		}
	}
	if after := onDisk(t, s.folder.root.Name()); len(after) != len(before) {
		t.Errorf("the folder holds %v, before %v", after, before)
	}
}

func second[T any](_ T, err error) error { return err }

func TestFailedPutChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blob")
	s := open(t, dir)
	put(t, s, "a", "old")
	mine := errors.New("mine")
	for name, c := range map[string]struct {
		reader func(cancel func()) io.Reader
		want   error
	}{
		"the reader fails at once": {func(func()) io.Reader { return iotest.ErrReader(mine) }, mine},
		"the reader fails later": {func(func()) io.Reader {
			return io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(mine))
		}, mine},
		"the caller goes away": {func(cancel func()) io.Reader {
			return io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), readerFunc(func() { cancel() }), bytes.NewReader(make([]byte, 1<<20)))
		}, context.Canceled},
		"the caller goes away at the end": {func(cancel func()) io.Reader {
			return io.MultiReader(bytes.NewReader(make([]byte, 10)), readerFunc(func() { cancel() }))
		}, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			for _, target := range []string{"a", "new/b"} {
				ctx, cancel := context.WithCancel(t.Context())
				n, err := s.Put(ctx, target, c.reader(cancel))
				cancel()
				if n != 0 || err != c.want { //nolint:errorlint // the very error comes back
					t.Errorf("%s: got %d, %v", target, n, err)
				}
			}
			if get(t, s, "a") != "old" {
				t.Error("the old content is gone")
			}
			if found := onDisk(t, dir); len(found) != 3 { // a, .lock, .tmp
				t.Errorf("the folder holds %v", found)
			}
		})
	}
}

// readerFunc does something and has no bytes.
type readerFunc func()

func (f readerFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

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

func TestDeletePrefix(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blob")
	s := open(t, dir)
	for _, name := range []string{"ws_1/a", "ws_1/b/c", "ws_1/b/d/e", "ws_10/a", "ws_1.x", "x/ws_1/a", "y/only/deep"} {
		put(t, s, name, "x")
	}
	for _, c := range []struct {
		prefix string
		left   []string
	}{
		{"ws_1", []string{"ws_1.x", "ws_10/a", "x/ws_1/a", "y/only/deep"}},
		{"ws_1", []string{"ws_1.x", "ws_10/a", "x/ws_1/a", "y/only/deep"}},
		{"ws_1.x", []string{"ws_1.x", "ws_10/a", "x/ws_1/a", "y/only/deep"}}, // a blob of that name is not below it
		{"y/only", []string{"ws_1.x", "ws_10/a", "x/ws_1/a"}},
		{"nothing/here", []string{"ws_1.x", "ws_10/a", "x/ws_1/a"}},
	} {
		if err := s.DeletePrefix(t.Context(), c.prefix); err != nil {
			t.Fatal(err)
		}
		if got := list(t, s, ""); !slices.Equal(got, c.left) {
			t.Errorf("after %s: %v, want %v", c.prefix, got, c.left)
		}
	}
	for _, name := range list(t, s, "") {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if found := onDisk(t, dir); len(found) != 2 {
		t.Errorf("empty folders are left: %v", found)
	}
	put(t, s, "ws_1/a", "again")
}

// TestAFolderComesBackAfterItsLastBlobWent deletes the only folder in a folder, and puts into another one there.
func TestAFolderComesBackAfterItsLastBlobWent(t *testing.T) {
	s := open(t, t.TempDir())
	for _, name := range []string{"a/b/c/one", "a/b/d/two", "a/e/three"} {
		put(t, s, name, name)
		if got := get(t, s, name); got != name {
			t.Errorf("%s: %q", name, got)
		}
		prefix, _, _ := strings.Cut(name[2:], "/")
		if err := s.DeletePrefix(t.Context(), "a/"+prefix); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, "a/b/c/one", "again")
	if err := s.Delete(t.Context(), "a/b/c/one"); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a/f/four", "four")
	if got := list(t, s, ""); !slices.Equal(got, []string{"a/f/four"}) {
		t.Errorf("%v", got)
	}
}

func TestBlobAndFolderOfOneName(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "blob"))
	put(t, s, "a", "x")
	put(t, s, "b/c", "x")
	for _, name := range []string{"a/b", "b"} {
		if _, err := s.Put(t.Context(), name, strings.NewReader("y")); !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("Put(%q): %v", name, err)
		}
		if ok, err := s.Exists(t.Context(), name); ok || err != nil {
			t.Errorf("Exists(%q): %v, %v", name, ok, err)
		}
		if _, err := s.Get(t.Context(), name); !fault.Is(err, codes.NotFound) {
			t.Errorf("Get(%q): %v", name, err)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("Delete(%q): %v", name, err)
		}
	}
	if get(t, s, "a") != "x" || get(t, s, "b/c") != "x" {
		t.Error("what was there is gone")
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
			page, err := s.folder.ListPaged(t.Context(), options)
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

// Deletions take empty folders away from under writes that are about to use them.
func TestPutsAndDeletesSideBySide(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "blob"))
	var wg sync.WaitGroup
	for _, name := range []string{"d/e/a", "d/e/b", "d/e/c"} {
		wg.Go(func() {
			for range 100 {
				if _, err := s.Put(context.Background(), name, strings.NewReader(name)); err != nil {
					t.Errorf("put %s: %v", name, err)
					return
				}
				if ok, err := s.Exists(context.Background(), name); !ok || err != nil {
					t.Errorf("%s is gone though nobody deleted it: %v", name, err)
				}
				if err := s.Delete(context.Background(), name); err != nil {
					t.Errorf("delete %s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if found := onDisk(t, s.folder.root.Name()); len(found) != 2 {
		t.Errorf("left: %v", found)
	}
}

func TestClosed(t *testing.T) {
	s, err := Open(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "blob")})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Put(t.Context(), "a", strings.NewReader("x")); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Get(t.Context(), "a"); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
}
