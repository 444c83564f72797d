package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/blob/blobtest"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// What every kind of store does. blob_test.go and crash_test.go have what is the folder's alone, s3_test.go what is a bucket's.

func put(t *testing.T, s *blob.Store, name, content string) {
	t.Helper()
	if n, err := s.Put(t.Context(), name, strings.NewReader(content)); err != nil || n != int64(len(content)) {
		t.Fatalf("put %s: %d, %v", name, n, err)
	}
}

func get(t *testing.T, s *blob.Store, name string) string {
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

func list(t *testing.T, s *blob.Store, prefix string) []string {
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

// onDisk is every entry below a folder, or nothing of a bucket.
func onDisk(t *testing.T, c blob.Config) map[string]fs.FileMode {
	t.Helper()
	found := make(map[string]fs.FileMode)
	if c.Dir == "" {
		return found
	}
	err := filepath.WalkDir(c.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == c.Dir {
			return err
		}
		name, _ := filepath.Rel(c.Dir, path)
		found[name] = e.Type()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPutGetDelete(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
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
	})
}

func TestPutAll(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
		ctx := t.Context()
		put(t, s, "a/0", "old")
		var items []blob.Item
		for i := range 100 {
			items = append(items, blob.Item{Name: fmt.Sprintf("%c/%d", 'a'+rune(i%3), i), Content: []byte(strings.Repeat("x", i*1000))})
		}
		for range 2 { // it can be repeated
			if err := s.PutAll(ctx, items); err != nil {
				t.Fatal(err)
			}
			for _, i := range items {
				if get(t, s, i.Name) != string(i.Content) {
					t.Errorf("%s came back changed", i.Name)
				}
			}
		}
		if n := len(list(t, s, "")); n != 100 {
			t.Errorf("%d blobs", n)
		}
		if err := s.PutAll(ctx, nil); err != nil {
			t.Error(err)
		}
		before := len(onDisk(t, c))
		ended, cancel := context.WithCancel(ctx)
		cancel()
		for what, err := range map[string]error{
			"a bad name":    s.PutAll(ctx, []blob.Item{{Name: "new"}, {Name: "../b"}}),
			"a name twice":  s.PutAll(ctx, []blob.Item{{Name: "new"}, {Name: "new"}}),
			"a folder's":    s.PutAll(ctx, []blob.Item{{Name: "a"}, {Name: "a/0/new"}}),
			"an ended call": s.PutAll(ended, []blob.Item{{Name: "new"}}),
		} {
			if err == nil && (what != "a folder's" || c.Dir != "") {
				t.Errorf("%s was taken", what)
			}
		}
		if after := len(onDisk(t, c)); after != before {
			t.Errorf("%d entries on the disk, before %d", after, before)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.PutAll(ctx, items[:1]); err == nil && c.Dir != "" {
			t.Error("a closed store has stored")
		}
	})
}

func TestRanges(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
		put(t, s, "a", "0123456789")
		for _, k := range []struct {
			offset, length int64
			want           string
		}{{0, -1, "0123456789"}, {3, 4, "3456"}, {3, -1, "3456789"}, {8, 100, "89"}, {0, 0, ""}, {10, -1, ""}, {100, 5, ""}} {
			r, err := s.GetRange(t.Context(), "a", k.offset, k.length)
			if err != nil {
				t.Errorf("%d+%d: %v", k.offset, k.length, err)
				continue
			}
			if got, err := io.ReadAll(r); err != nil || string(got) != k.want {
				t.Errorf("%d+%d: %q, %v", k.offset, k.length, got, err)
			}
			_ = r.Close()
		}
		if _, err := s.GetRange(t.Context(), "a", -1, 5); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("got %v", err)
		}
	})
}

func TestReaderKeepsWhatItOpened(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
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
	})
}

func TestNames(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
		long := strings.Repeat("a", blob.MaxPart)
		for _, name := range []string{"a", "0", "a-b_c.d", "a/b/c", "_", "-", "a..b", "a.", long, long + "/" + long + "/" + strings.Repeat("b", blob.MaxName-2*blob.MaxPart-2)} {
			put(t, s, name, name)
			if get(t, s, name) != name {
				t.Errorf("%q came back changed", name)
			}
			if err := s.Delete(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
		before := onDisk(t, c)
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
		if after := onDisk(t, c); len(after) != len(before) {
			t.Errorf("the folder holds %v, before %v", after, before)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestFailedPutChangesNothing(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
		put(t, s, "a", "old")
		mine := errors.New("mine")
		for name, test := range map[string]struct {
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
					n, err := s.Put(ctx, target, test.reader(cancel))
					cancel()
					if n != 0 || err != test.want { //nolint:errorlint // the very error comes back
						t.Errorf("%s: got %d, %v", target, n, err)
					}
				}
				if get(t, s, "a") != "old" {
					t.Error("the old content is gone")
				}
				if found := onDisk(t, c); c.Dir != "" && len(found) != 3 { // a, .lock, .tmp
					t.Errorf("the folder holds %v", found)
				}
			})
		}
	})
}

// readerFunc does something and has no bytes.
type readerFunc func()

func (f readerFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

func TestDeletePrefix(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
		for _, name := range []string{"ws_1/a", "ws_1/b/c", "ws_1/b/d/e", "ws_10/a", "ws_1.x", "x/ws_1/a", "y/only/deep"} {
			put(t, s, name, "x")
		}
		for _, k := range []struct {
			prefix string
			left   []string
		}{
			{"ws_1", []string{"ws_1.x", "ws_10/a", "x/ws_1/a", "y/only/deep"}},
			{"ws_1", []string{"ws_1.x", "ws_10/a", "x/ws_1/a", "y/only/deep"}},
			{"ws_1.x", []string{"ws_1.x", "ws_10/a", "x/ws_1/a", "y/only/deep"}}, // a blob of that name is not below it
			{"y/only", []string{"ws_1.x", "ws_10/a", "x/ws_1/a"}},
			{"nothing/here", []string{"ws_1.x", "ws_10/a", "x/ws_1/a"}},
		} {
			if err := s.DeletePrefix(t.Context(), k.prefix); err != nil {
				t.Fatal(err)
			}
			if got := list(t, s, ""); !slices.Equal(got, k.left) {
				t.Errorf("after %s: %v, want %v", k.prefix, got, k.left)
			}
		}
		for _, name := range list(t, s, "") {
			if err := s.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if found := onDisk(t, c); c.Dir != "" && len(found) != 2 {
			t.Errorf("empty folders are left: %v", found)
		}
		put(t, s, "ws_1/a", "again")
	})
}

// TestAFolderComesBackAfterItsLastBlobWent deletes the only folder in a folder, and puts into another one there.
func TestAFolderComesBackAfterItsLastBlobWent(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
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
	})
}

func TestBlobAndFolderOfOneName(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
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
	})
}

// Deletions take empty folders away from under writes that are about to use them.
func TestPutsAndDeletesSideBySide(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s := blobtest.Open(t, c)
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
		if found := onDisk(t, c); c.Dir != "" && len(found) != 2 {
			t.Errorf("left: %v", found)
		}
	})
}

func TestClosed(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, c blob.Config) {
		s, err := blob.Open(t.Context(), c)
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
	})
}
