package seal

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func open(t *testing.T, path string) *Seal {
	t.Helper()
	s, err := OpenFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func file(t *testing.T) string { return filepath.Join(t.TempDir(), "seal.key") }

func TestFileIsMadeOnceAndOpensAgain(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	path := file(t)
	if _, err := OpenFile(path, false); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), path) {
		t.Fatalf("a missing file: %v", err)
	}
	// What a killed first start can leave is swept by the one that makes the file.
	left := filepath.Join(filepath.Dir(path), temporaryPrefix("seal.key")+"LEFT")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := open(t, path)
	wrapped, err := first.Wrap(t.Context(), []byte("key"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("the folder holds %v", entries)
	}
	again, err := OpenFile(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := again.Unwrap(t.Context(), wrapped, []byte("aad")); err != nil || string(plain) != "key" {
		t.Errorf("got %q, %v", plain, err)
	}
	if again.Fingerprint() != first.Fingerprint() || again.Check(first.Fingerprint()) != nil {
		t.Error("the fingerprint changed")
	}
}

func TestAllFirstStartsGetOneKey(t *testing.T) {
	path := file(t)
	var wg sync.WaitGroup
	prints := make([]string, 16)
	for i := range prints {
		wg.Go(func() {
			s, err := OpenFile(path, true)
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = s.Fingerprint()
		})
	}
	wg.Wait()
	for _, p := range prints {
		if p != prints[0] {
			t.Fatalf("several keys: %v", prints)
		}
	}
}

func TestUnusableFilesAreNamedAndLeft(t *testing.T) {
	good := file(t)
	open(t, good)
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte {
		b := bytes.Clone(whole)
		b[i] ^= 1
		return b
	}
	keyAt := bytes.Index(whole, []byte("\nkey ")) + 5
	for _, c := range []struct {
		name    string
		content []byte
		mode    fs.FileMode
		reason  faultv1.Reason
	}{
		{"empty", nil, 0o600, faultv1.Reason_DATA_DAMAGED},
		{"cut short", whole[:len(whole)-1], 0o600, faultv1.Reason_DATA_DAMAGED},
		{"longer", append(bytes.Clone(whole), '\n'), 0o600, faultv1.Reason_DATA_DAMAGED},
		{"a bit of the key", flip(keyAt + 3), 0o600, faultv1.Reason_DATA_DAMAGED},
		{"a bit of the fingerprint", flip(len(whole) - 3), 0o600, faultv1.Reason_DATA_DAMAGED},
		{"a bit of the first line", flip(3), 0o600, faultv1.Reason_DATA_DAMAGED},
		{"zeros", make([]byte, len(whole)), 0o600, faultv1.Reason_DATA_DAMAGED},
		{"another encoding", bytes.ReplaceAll(whole, []byte("="), []byte("\n")), 0o600, faultv1.Reason_DATA_DAMAGED},
		{"group can read", whole, 0o640, faultv1.Reason_PRECONDITION_FAILED},
		{"others can read", whole, 0o604, faultv1.Reason_PRECONDITION_FAILED},
		{"others can write", whole, 0o602, faultv1.Reason_PRECONDITION_FAILED},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := file(t)
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			for _, create := range []bool{true, false} {
				s, err := OpenFile(path, create)
				if s != nil || fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), path) {
					t.Errorf("create %v: got %v", create, err)
				}
				if key := base64Of(whole, keyAt); err != nil && strings.Contains(err.Error(), key) {
					t.Error("the error tells the key")
				}
			}
			after, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(after, c.content) {
				t.Errorf("the file was changed: %v", err)
			}
			if info, _ := os.Stat(path); info.Mode() != c.mode {
				t.Errorf("the mode was changed to %v", info.Mode())
			}
		})
	}
	t.Run("a link", func(t *testing.T) {
		path := file(t)
		if err := os.Symlink(good, path); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFile(path, true); !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a folder", func(t *testing.T) {
		path := file(t)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFile(path, true); !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a pipe that nobody writes", func(t *testing.T) {
		path := file(t)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFile(path, true); !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no folder", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "nowhere", "seal.key")
		if _, err := OpenFile(path, true); !fault.Is(err, codes.FailedPrecondition) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v", err)
		}
	})
}

func base64Of(whole []byte, at int) string {
	return string(whole[at : at+base64.StdEncoding.EncodedLen(keySize)])
}

func TestWrappedOpensOnlyWithItsOwn(t *testing.T) {
	ours, other := open(t, file(t)), open(t, file(t))
	rapid.Check(t, func(r *rapid.T) {
		plain := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(r, "plain")
		aad := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(r, "aad")
		wrapped, err := ours.Wrap(t.Context(), plain, aad)
		if err != nil {
			r.Fatal(err)
		}
		if got, err := ours.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(got, plain) {
			r.Fatalf("got %x, %v", got, err)
		}
		if len(plain) > 8 && bytes.Contains(wrapped, plain) {
			r.Fatal("the plain text stands in the open")
		}
		refused := func(what string, s *Seal, wrapped, aad []byte) {
			if got, err := s.Unwrap(t.Context(), wrapped, aad); got != nil || fault.ReasonOf(err) != faultv1.Reason_DATA_DAMAGED {
				r.Fatalf("%s: got %x, %v", what, got, err)
			}
		}
		refused("another seal", other, wrapped, aad)
		refused("more additional data", ours, wrapped, append(bytes.Clone(aad), 0))
		if len(aad) > 0 {
			refused("less additional data", ours, wrapped, aad[:len(aad)-1])
		}
		flipped := bytes.Clone(wrapped)
		flipped[rapid.IntRange(0, len(wrapped)-1).Draw(r, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		refused("a flipped bit", ours, flipped, aad)
		refused("cut short", ours, wrapped[:rapid.IntRange(0, len(wrapped)-1).Draw(r, "length")], aad)
	})
}

func TestLimits(t *testing.T) {
	s := open(t, file(t))
	wrapped, err := s.Wrap(t.Context(), make([]byte, MaxPlaintext), nil)
	if err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	if _, err := s.Unwrap(t.Context(), wrapped, nil); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	if _, err := s.Wrap(t.Context(), make([]byte, MaxPlaintext+1), nil); !fault.Is(err, codes.InvalidArgument) {
		t.Errorf("past the limit: %v", err)
	}
	if _, err := s.Unwrap(t.Context(), make([]byte, maxWrapped+1), nil); fault.ReasonOf(err) != faultv1.Reason_DATA_DAMAGED {
		t.Errorf("past the limit: %v", err)
	}
}

func TestCheckNamesAForeignFolder(t *testing.T) {
	ours, other := open(t, file(t)), open(t, file(t))
	for _, stored := range []string{"", other.Fingerprint(), ours.Fingerprint()[:31], strings.ToUpper(ours.Fingerprint())} {
		if stored == ours.Fingerprint() {
			continue // all digits
		}
		if err := ours.Check(stored); !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("%q: got %v", stored, err)
		}
	}
	if bytes.Contains(ours.key[:], []byte(ours.Fingerprint())) || strings.Contains(hex.EncodeToString(ours.key[:]), ours.Fingerprint()) {
		t.Error("the fingerprint is part of the key")
	}
}

func TestClosedSealOpensNothing(t *testing.T) {
	s := open(t, file(t))
	wrapped, err := s.Wrap(t.Context(), []byte("key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if *s.key != [keySize]byte{} {
		t.Error("the key is still in memory")
	}
	if _, err := s.Unwrap(t.Context(), wrapped, nil); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Wrap(t.Context(), nil, nil); !fault.Is(err, codes.Unavailable) {
		t.Errorf("got %v", err)
	}
}

func TestEndedContextIsNotDamage(t *testing.T) {
	s := open(t, file(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Unwrap(ctx, []byte("x"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Two first starts at once: the second one to have its key ready finds the first one's in place.
func TestMakingReplacesNothing(t *testing.T) {
	path := file(t)
	first := open(t, path)
	if err := makeFile(path); err != nil {
		t.Fatal(err)
	}
	if again := open(t, path); again.Fingerprint() != first.Fingerprint() {
		t.Error("the seal file was replaced")
	}
}
