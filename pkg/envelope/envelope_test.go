package envelope_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/seal"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

func newSeal(t *testing.T) *seal.Seal {
	t.Helper()
	s, err := seal.OpenFile(filepath.Join(t.TempDir(), "seal.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newKeyring(t *testing.T, c envelope.Config) *envelope.Keyring {
	t.Helper()
	if c.DB == nil {
		c.DB = sqldbtest.Open(t, envelope.Migrations())
	}
	if c.Source == nil {
		c.Source = envelope.SealSource(newSeal(t), "test")
	}
	k, err := envelope.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func key(t *testing.T, k *envelope.Keyring, owner string) *envelope.Key {
	t.Helper()
	got, err := k.Key(t.Context(), owner)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func damaged(err error) bool {
	return fault.ReasonOf(err) == faultv1.Reason_DATA_DAMAGED && fault.Is(err, codes.DataLoss) &&
		strings.Contains(err.Error(), "damaged or does not belong here")
}

var where = envelope.AAD{Owner: "ws_a", Kind: "run", ID: "run_1", Field: "name", Version: 1}

// elsewhere is where by one step: each differs in one field only, or moves a border between two.
func elsewhere() map[string]envelope.AAD {
	change := func(f func(a *envelope.AAD)) envelope.AAD { a := where; f(&a); return a }
	return map[string]envelope.AAD{
		"another workspace":    change(func(a *envelope.AAD) { a.Owner = "ws_b" }),
		"another kind":         change(func(a *envelope.AAD) { a.Kind = "metric" }),
		"another record":       change(func(a *envelope.AAD) { a.ID = "run_2" }),
		"another field":        change(func(a *envelope.AAD) { a.Field = "tag" }),
		"no field":             change(func(a *envelope.AAD) { a.Field = "" }),
		"an older version":     change(func(a *envelope.AAD) { a.Version = 0 }),
		"a version below zero": change(func(a *envelope.AAD) { a.Version = -1 }),
		"a letter moved":       change(func(a *envelope.AAD) { a.Kind, a.ID = "runr", "un_1" }),
		"two parts exchanged":  change(func(a *envelope.AAD) { a.ID, a.Field = a.Field, a.ID }),
	}
}

// D1, D2: a row that is put elsewhere does not open. With redoubt_break_aad this is red.
func TestRecordOpensOnlyInItsPlace(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	sealed, err := k.SealString(where, "my run")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.OpenString(where, sealed); err != nil || got != "my run" {
		t.Fatalf("in its place: %q, %v", got, err)
	}
	for name, aad := range elsewhere() {
		t.Run(name, func(t *testing.T) {
			if got, err := k.Open(aad, sealed); got != nil || !damaged(err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestStreamOpensOnlyInItsPlace(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	sealed := sealStream(t, k, where, []byte("content"))
	if got, err := openStream(k, where, bytes.NewReader(sealed)); err != nil || string(got) != "content" {
		t.Fatalf("in its place: %q, %v", got, err)
	}
	for name, aad := range elsewhere() {
		t.Run(name, func(t *testing.T) {
			if got, err := openStream(k, aad, bytes.NewReader(sealed)); len(got) != 0 || !damaged(err) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestOwnersCannotOpenEachOther(t *testing.T) {
	ring := newKeyring(t, envelope.Config{})
	a, b := key(t, ring, "ws_a"), key(t, ring, "ws_b")
	sealed, err := a.SealString(where, "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(where, sealed); !damaged(err) {
		t.Errorf("record: %v", err)
	}
	if _, err := openStream(b, where, bytes.NewReader(sealStream(t, a, where, []byte("x")))); !damaged(err) {
		t.Errorf("stream: %v", err)
	}
	// With the name of the key exchanged, too: the header is not what keeps them apart.
	mine, err := b.SealString(where, "y")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(where, append(bytes.Clone(mine[:9]), sealed[9:]...)); !damaged(err) {
		t.Errorf("record under another key's name: %v", err)
	}
	if bytes.Equal(a.MAC("k", "p", "t"), b.MAC("k", "p", "t")) || a.BlobName("k", "i") == b.BlobName("k", "i") {
		t.Error("two owners share their MACs or names")
	}
}

func TestRecordProperties(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	rapid.Check(t, func(r *rapid.T) {
		aad := drawAAD(r, "aad")
		plain := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(r, "plain")
		sealed, err := k.Seal(aad, plain)
		if err != nil {
			r.Fatal(err)
		}
		if len(sealed) > len(plain)+envelope.Overhead {
			r.Fatalf("%d bytes became %d", len(plain), len(sealed))
		}
		if got, err := k.Open(aad, sealed); err != nil || got == nil || !bytes.Equal(got, plain) {
			r.Fatalf("got %x, %v", got, err)
		}
		if again, _ := k.Seal(aad, plain); bytes.Equal(again, sealed) {
			r.Fatal("the same twice is the same ciphertext")
		}
		if other := drawAAD(r, "other"); other != aad {
			if _, err := k.Open(other, sealed); !damaged(err) {
				r.Fatalf("opened as %+v: %v", other, err)
			}
		}
		flipped := bytes.Clone(sealed)
		flipped[rapid.IntRange(0, len(sealed)-1).Draw(r, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		if _, err := k.Open(aad, flipped); !damaged(err) {
			r.Fatalf("a flipped bit: %v", err)
		}
		if _, err := k.Open(aad, sealed[:rapid.IntRange(0, len(sealed)-1).Draw(r, "length")]); !damaged(err) {
			r.Fatalf("cut short: %v", err)
		}
		if _, err := k.Open(aad, append(bytes.Clone(sealed), 0)); !damaged(err) {
			r.Fatalf("a byte more: %v", err)
		}
	})
}

// drawAAD takes parts from few short strings, so that collisions of a bad encoding are likely.
func drawAAD(r *rapid.T, label string) envelope.AAD {
	part := rapid.StringMatching(`[ab\x00]{1,3}`)
	return envelope.AAD{
		Owner:   part.Draw(r, label+".owner"),
		Kind:    part.Draw(r, label+".kind"),
		ID:      part.Draw(r, label+".id"),
		Field:   rapid.StringMatching(`[ab\x00]{0,3}`).Draw(r, label+".field"),
		Version: rapid.Int64Range(-2, 2).Draw(r, label+".version"),
	}
}

func TestUnnamedRecordsAreRefused(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	for name, aad := range map[string]envelope.AAD{
		"zero":     {},
		"no owner": {Kind: "run", ID: "1"},
		"no kind":  {Owner: "ws_a", ID: "1"},
		"no id":    {Owner: "ws_a", Kind: "run"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := k.Seal(aad, nil); !fault.Is(err, codes.Internal) {
				t.Errorf("Seal: %v", err)
			}
			if _, err := k.Open(aad, nil); !fault.Is(err, codes.Internal) {
				t.Errorf("Open: %v", err)
			}
			if _, err := k.SealStream(aad, io.Discard); !fault.Is(err, codes.Internal) {
				t.Errorf("SealStream: %v", err)
			}
			if _, err := k.OpenStream(aad, strings.NewReader("")); !fault.Is(err, codes.Internal) {
				t.Errorf("OpenStream: %v", err)
			}
		})
	}
}

func TestRecordLimit(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	sealed, err := k.Seal(where, make([]byte, envelope.MaxRecord))
	if err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	if got, err := k.Open(where, sealed); err != nil || len(got) != envelope.MaxRecord {
		t.Fatalf("at the limit: %v", err)
	}
	if _, err := k.Seal(where, make([]byte, envelope.MaxRecord+1)); fault.ReasonOf(err) != faultv1.Reason_MESSAGE_TOO_LARGE {
		t.Errorf("past the limit: %v", err)
	}
	if _, err := k.Open(where, append(sealed, make([]byte, envelope.Overhead)...)); !damaged(err) {
		t.Errorf("past the limit: %v", err)
	}
}

// D1: nothing of the plaintext is stored. With redoubt_break_encryption this is red.
func TestPlaintextIsNotInWhatIsStored(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	canary := []byte("canary-2b9d4e-do-not-store")
	sealed, err := k.Seal(where, canary)
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat(canary, 10_000)
	for name, stored := range map[string][]byte{
		"record": sealed,
		"stream": sealStream(t, k, where, content),
		"MAC":    k.MAC("tag", "run_1", string(canary)),
		"name":   []byte(k.BlobName("snapshot", string(canary))),
	} {
		if bytes.Contains(stored, canary[:8]) {
			t.Errorf("the %s shows the plaintext", name)
		}
	}
}

func sealStream(t *testing.T, k *envelope.Key, aad envelope.AAD, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := k.SealStream(aad, &out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err == nil {
		t.Error("a stream was closed twice without an error")
	}
	return out.Bytes()
}

// openStream reads to the end, and then once more: an error must stay.
func openStream(k *envelope.Key, aad envelope.AAD, r io.Reader) ([]byte, error) {
	opened, err := k.OpenStream(aad, r)
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(opened)
	if n, again := opened.Read(make([]byte, 10)); n != 0 || (err == nil) != errors.Is(again, io.EOF) || err != nil && !errors.Is(again, err) {
		return plain, fmt.Errorf("the first end was %q, and then came %d bytes and %q", fmt.Sprint(err)[:5], n, fmt.Sprint(again))
	}
	return plain, err
}

const segment = 64 << 10

func TestStreamSizes(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	content := make([]byte, 3*segment+100)
	for i := range content {
		content[i] = byte(i * 7)
	}
	// The first segment holds 40 bytes of header and 16 of tag less; the others 16 of tag less.
	first, next := segment-56, segment-16
	for _, size := range []int{0, 1, first - 1, first, first + 1, first + next - 1, first + next, first + next + 1, 3 * segment} {
		sealed := sealStream(t, k, where, content[:size])
		got, err := openStream(k, where, iotest.HalfReader(bytes.NewReader(sealed)))
		if err != nil || !bytes.Equal(got, content[:size]) {
			t.Fatalf("%d bytes: %d came back, %v", size, len(got), err)
		}
		// Cut anywhere near a border, in the header too, or longer: never a clean end.
		for _, cut := range []int{0, 1, 8, 9, 10, 40, 48, 49, 50, 65, segment + 8, segment + 9, segment + 10, 2*segment + 9, len(sealed) - 17, len(sealed) - 16, len(sealed) - 1} {
			if cut < 0 || cut >= len(sealed) {
				continue
			}
			if got, err := openStream(k, where, bytes.NewReader(sealed[:cut])); !damaged(err) || !bytes.HasPrefix(content, got) {
				t.Fatalf("%d bytes cut to %d: %d came back, %v", size, cut, len(got), err)
			}
		}
		if _, err := openStream(k, where, bytes.NewReader(append(bytes.Clone(sealed), 0))); !damaged(err) {
			t.Fatalf("%d bytes and one more: %v", size, err)
		}
	}
}

func TestStreamProperties(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	content := bytes.Repeat([]byte("0123456789abcde"), 10_000)
	sealed := sealStream(t, k, where, content)
	rapid.Check(t, func(r *rapid.T) {
		flipped := bytes.Clone(sealed)
		flipped[rapid.IntRange(0, len(sealed)-1).Draw(r, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		if got, err := openStream(k, where, bytes.NewReader(flipped)); !damaged(err) || !bytes.HasPrefix(content, got) {
			r.Fatalf("a flipped bit: %d bytes, %v", len(got), err)
		}
		cut := rapid.IntRange(0, len(sealed)-1).Draw(r, "length")
		if got, err := openStream(k, where, bytes.NewReader(sealed[:cut])); !damaged(err) || !bytes.HasPrefix(content, got) {
			r.Fatalf("cut to %d: %d bytes, %v", cut, len(got), err)
		}
	})
	swapped := bytes.Clone(sealed)
	copy(swapped[9+segment:9+2*segment], sealed[9:9+segment])
	if _, err := openStream(k, where, bytes.NewReader(swapped)); !damaged(err) {
		t.Errorf("a segment twice: %v", err)
	}
	record, err := k.Seal(where, content)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openStream(k, where, bytes.NewReader(record)); !damaged(err) {
		t.Errorf("a record as a stream: %v", err)
	}
	if _, err := k.Open(where, sealed); !damaged(err) {
		t.Errorf("a stream as a record: %v", err)
	}
}

func TestUnclosedStreamNeverOpens(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	for _, size := range []int{0, 10, segment, 5 * segment} {
		var out bytes.Buffer
		w, err := k.SealStream(where, &out)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if _, err := openStream(k, where, &out); !damaged(err) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestStreamErrorsBelowAreNotDamage(t *testing.T) {
	k := key(t, newKeyring(t, envelope.Config{}), "ws_a")
	sealed := sealStream(t, k, where, make([]byte, 3*segment))
	away := fault.Unavailable("the store is away")
	for _, after := range []int{0, 5, 20, 60, segment, 2 * segment, len(sealed)} {
		_, err := openStream(k, where, io.MultiReader(bytes.NewReader(sealed[:after]), iotest.ErrReader(away)))
		if !errors.Is(err, away) {
			t.Errorf("after %d bytes: %v", after, err)
		}
	}
	// A write that failed is never made good by Close.
	for _, after := range []int{0, 20, 100, segment + 10} {
		w, err := k.SealStream(where, &failing{left: after, err: away})
		if err == nil {
			if _, err = w.Write(make([]byte, 3*segment)); err == nil {
				t.Errorf("after %d bytes: the error was swallowed", after)
			}
			if closed := w.Close(); !errors.Is(closed, away) {
				t.Errorf("after %d bytes Close says %v", after, closed)
			}
		}
		if !errors.Is(err, away) {
			t.Errorf("after %d bytes: %v", after, err)
		}
	}
}

// failing takes some bytes, fails once, and takes all others.
type failing struct {
	left   int
	err    error
	failed bool
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 && !f.failed {
		f.failed = true
		return 0, f.err
	}
	return len(p), nil
}

func TestMACAndNames(t *testing.T) {
	db := sqldbtest.Open(t, envelope.Migrations())
	source := envelope.SealSource(newSeal(t), "test")
	k := key(t, newKeyring(t, envelope.Config{DB: db, Source: source}), "ws_a")
	again := key(t, newKeyring(t, envelope.Config{DB: db, Source: source}), "ws_a")
	name := regexp.MustCompile(`^[a-z2-7]{52}$`)
	part := rapid.StringMatching(`[ab\x00]{0,3}`)
	rapid.Check(t, func(r *rapid.T) {
		draw := func(label string) [3]string {
			return [3]string{part.Draw(r, label+".kind"), part.Draw(r, label+".parent"), part.Draw(r, label+".text")}
		}
		a, b := draw("a"), draw("b")
		macA, macB := k.MAC(a[0], a[1], a[2]), k.MAC(b[0], b[1], b[2])
		if len(macA) != 32 || bytes.Equal(macA, macB) != (a == b) {
			r.Fatalf("%q and %q: %x, %x", a, b, macA, macB)
		}
		if !bytes.Equal(macA, again.MAC(a[0], a[1], a[2])) || k.BlobName(a[0], a[1]) != again.BlobName(a[0], a[1]) {
			r.Fatal("after a restart it is another one")
		}
		if n := k.BlobName(a[0], a[1]); !name.MatchString(n) || (n == k.BlobName(b[0], b[1])) != (a[0] == b[0] && a[1] == b[1]) {
			r.Fatalf("%q and %q: %s", a, b, n)
		}
	})
}
