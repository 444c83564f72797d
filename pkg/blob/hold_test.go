package blob

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func held(t *testing.T, h *Held, name string) string {
	t.Helper()
	r, err := h.Get(t.Context(), name)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What was there when the hold began can be read until it ends, whatever is done meanwhile, and then it is gone.
func TestHoldKeepsWhatWasThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blob")
	s := open(t, dir)
	for _, name := range []string{"stays", "a/deleted", "a/b/deleted", "ws/1", "ws/2", "replaced"} {
		put(t, s, name, "old "+name)
	}
	h, err := s.Hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Hold(); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("a second hold: %v", err)
	}
	for _, name := range []string{"a/deleted", "a/b/deleted"} {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeletePrefix(t.Context(), "ws"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		put(t, s, "replaced", "new")
	}
	put(t, s, "a/deleted", "again")
	put(t, s, "later", "new")
	if got := get(t, s, "replaced"); got != "new" {
		t.Errorf("callers see %q", got)
	}
	if ok, err := s.Exists(t.Context(), "ws/1"); ok || err != nil {
		t.Errorf("callers see what is deleted: %v, %v", ok, err)
	}
	names, err := h.Names(t.Context())
	if want := []string{"a/b/deleted", "a/deleted", "later", "replaced", "stays", "ws/1", "ws/2"}; err != nil || !slices.Equal(names, want) {
		t.Fatalf("%v, %v", names, err)
	}
	for _, name := range names {
		if name == "later" {
			continue
		}
		if got := held(t, h, name); got != "old "+name {
			t.Errorf("%s is held as %q", name, got)
		}
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get(t.Context(), "ws/1"); !fault.Is(err, codes.NotFound) {
		t.Errorf("after the release: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, heldDir)); !os.IsNotExist(err) {
		t.Errorf("after the release the aside is there: %v", err)
	}
	if err := s.Delete(t.Context(), "stays"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, heldDir)); !os.IsNotExist(err) {
		t.Errorf("without a hold something was kept: %v", err)
	}
	again, err := s.Hold()
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Fatal(err)
	}
}

// A process that died during a backup leaves nothing.
func TestOpenSweepsWhatWasHeld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blob")
	if err := os.MkdirAll(filepath.Join(dir, heldDir, "ws"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, heldDir, "ws", "1"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if _, err := os.Stat(filepath.Join(dir, heldDir)); !os.IsNotExist(err) {
		t.Errorf("it is there: %v", err)
	}
}

// Writers and deleters in any order: everything from before is whole.
func TestHoldUnderLoad(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "blob"))
	const n = 60
	for i := range n {
		put(t, s, fmt.Sprintf("w%d/x", i), fmt.Sprint("old", i))
	}
	h, err := s.Hold()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			for i := range n {
				name := fmt.Sprintf("w%d", (i*7+worker*11)%n)
				switch worker {
				case 0:
					_ = s.Delete(context.Background(), name+"/x")
				case 1:
					_, _ = s.Put(context.Background(), name+"/x", strings.NewReader("new"))
				default:
					_ = s.DeletePrefix(context.Background(), name)
				}
			}
		})
	}
	for i := range n {
		if got := held(t, h, fmt.Sprintf("w%d/x", i)); got != fmt.Sprint("old", i) {
			t.Errorf("%d is held as %q", i, got)
		}
	}
	wg.Wait()
	for i := range n {
		if got := held(t, h, fmt.Sprintf("w%d/x", i)); got != fmt.Sprint("old", i) {
			t.Errorf("%d is held as %q in the end", i, got)
		}
	}
	if err := h.Release(); err != nil {
		t.Fatal(err)
	}
}
