package tree

import (
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

var wide = Limits{FileBytes: 1 << 30, TotalBytes: 4 << 30, Entries: 100_000}

func file(path string) Entry {
	return Entry{Path: path, Size: 1, Digest: sha256.Sum256([]byte(path))}
}

func files(paths ...string) []Entry {
	out := make([]Entry, len(paths))
	for i, p := range paths {
		out[i] = file(p)
	}
	return out
}

// H2: what a folder of code really has is taken.
func TestGoodPaths(t *testing.T) {
	good := []string{
		"train.py", "src/model/net.py", ".gitignore", ".config/x", "a..b", "..a", "...a", "a b.txt", "Makefile", "README.md", "données/été.csv", "数据/训练.py",
		"a-b_c+d=e@f,g;h!i#j$k%l&m'(n)[o]{p}~q^r`s", "x²", "ß", "%2e%2e/x", "con.py", "ab:c", strings.Repeat("a", MaxSegmentBytes), strings.Repeat("d/", MaxDepth-1) + "f",
		strings.Repeat(strings.Repeat("b", 127)+"/", 7) + strings.Repeat("c", 128),
	}
	for _, p := range good {
		if wrong := CheckPath(p); wrong != "" {
			t.Errorf("%q %s", p, wrong)
		}
	}
	if _, _, err := Check(files("a", "b/a", "b/c", "bc", "b-c", "b.c/a", "B2/a"), wide); err != nil {
		t.Error(err)
	}
}

// H2: paths that leave the tree, or mean something else elsewhere.
func TestHostilePaths(t *testing.T) {
	bad := []string{
		"", "/", "//", "/etc/passwd", "//etc/passwd", "///", "a//b", "a/", "a/b/", "/a/", ".", "..", "./a", "../a", "a/.", "a/..", "a/./b", "a/../b", "a/../../b", "../../../../etc/passwd",
		"a/b/../../../c", "./", "../", ".../", "a/... /b", "..\\a", "a\\b", "\\", "\\\\server\\share", "C:\\a", "C:/a", "c:a", "a\\..\\..\\b", "\x00", "a\x00b", "a.py\x00.txt", "a\nb", "a\rb", "a\tb", "\x1b[31m", "a\x7f", "a\x85b",
		"a\xff", "\xc3\x28", "\xc0\xae\xc0\xae/a", "\xed\xa0\x80", "cafe\u0301", "\u1112\u1161\u11ab", "\u212b", "\u2126", "a\u200bb", "a\u200db", "\ufeffa", "a\u202eyp.x", "\u2066a", "a\u2028b", "a\u2029b", "a\u00adb", "\ufffd", "\U000e0041",
		"a.", "a ", " a", "a./b", "a /b", "dir/ b", "a/b.", "..  /a", ".. /a", "a..", "...", strings.Repeat("a", MaxSegmentBytes+1), "d/" + strings.Repeat("a", MaxSegmentBytes+1), strings.Repeat("d/", MaxDepth) + "f",
		strings.Repeat("abc/", 256) + "x", strings.Repeat("a", 10<<20),
	}
	if len(bad) < 60 {
		t.Fatalf("only %d", len(bad))
	}
	for _, p := range bad {
		name := p[:min(len(p), 40)]
		if CheckPath(p) == "" {
			t.Errorf("%q is taken", name)
		}
		_, _, err := Check(files("ok", p), wide)
		if fault.Code(err) != codes.InvalidArgument || fault.ReasonOf(err) != faultv1.Reason_PATH_INVALID {
			t.Errorf("%q: %v", name, err)
			continue
		}
		var f *fault.Error
		if errors.As(err, &f); len(f.Violations()) != 1 || f.Violations()[0].Field != "entries[1].path" {
			t.Errorf("%q: %v", name, f.Violations())
		}
	}
}

func TestCollisions(t *testing.T) {
	cases := []struct {
		name  string
		paths []string
	}{
		{"the same twice", []string{"a", "b", "a"}},
		{"case", []string{"README", "readme"}},
		{"case in a folder", []string{"src/A.py", "src/a.py"}},
		{"case of a folder", []string{"Src/a", "src/b"}},
		{"case of a folder far above", []string{"a/b/C/d/e", "a/B/x", "z"}},
		{"case of a folder, others between", []string{"D/a", "D/b", "d/c", "D/z"}},
		{"sharp s", []string{"stra\u00dfe", "STRASSE"}},
		{"final sigma", []string{"\u03c3", "\u03c2"}},
		{"Kelvin", []string{"k\u00e9", "K\u00c9"}},
		{"file and folder", []string{"a", "a/b"}},
		{"file and folder far below", []string{"x/y", "x/y/z/w", "x/ya"}},
		{"file and folder by case", []string{"A", "a/b"}},
		{"file and folder, others between in bytes", []string{"a", "a-b", "a.c", "a/b"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for range 5 {
				rand.Shuffle(len(c.paths), func(i, j int) { c.paths[i], c.paths[j] = c.paths[j], c.paths[i] })
				if _, _, err := Check(files(c.paths...), wide); fault.ReasonOf(err) != faultv1.Reason_PATH_INVALID {
					t.Fatalf("%q: %v", c.paths, err)
				}
			}
		})
	}
}

func TestLimits(t *testing.T) {
	small := Limits{FileBytes: 10, TotalBytes: 25, Entries: 3}
	sized := func(sizes ...int64) []Entry {
		out := make([]Entry, len(sizes))
		for i, n := range sizes {
			out[i] = file(strings.Repeat("x", i+1))
			out[i].Size = n
		}
		return out
	}
	cases := []struct {
		name  string
		sizes []int64
		code  codes.Code
	}{
		{"none", nil, codes.InvalidArgument},
		{"just", []int64{10, 10, 5}, codes.OK},
		{"empty file", []int64{0}, codes.OK},
		{"file", []int64{11}, codes.ResourceExhausted},
		{"sum", []int64{10, 10, 6}, codes.ResourceExhausted},
		{"count", []int64{1, 1, 1, 1}, codes.ResourceExhausted},
		{"negative", []int64{-1}, codes.InvalidArgument},
		{"huge", []int64{1 << 62, 1 << 62, 1 << 62}, codes.ResourceExhausted},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := Check(sized(c.sizes...), small); fault.Code(err) != c.code {
				t.Errorf("%v", err)
			}
		})
	}
}

// Equal trees have equal ids, and what is written is what is read.
func TestCanonicalForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segment := rapid.StringMatching(`[a-z0-9_]{1,4}`)
		paths := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(segment, 1, 3).Draw(t, "segments"), "/")
		}), 1, 12, rapid.ID).Draw(t, "paths")
		in := files(paths...)
		for i := range in {
			in[i].Executable, in[i].Size = i%2 == 0, int64(i)
		}
		sorted, _, err := Check(in, wide)
		if err != nil {
			return // a file and a folder
		}
		encoded := Encode(sorted)
		out, err := Decode(encoded)
		if err != nil || len(out) != len(in) {
			t.Fatalf("%v", err)
		}
		for i := range out {
			if out[i] != sorted[i] {
				t.Fatalf("%v is not %v", out[i], sorted[i])
			}
		}
		other := append([]Entry{}, in...)
		rand.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		again, _, err := Check(other, wide)
		if err != nil || ID(Encode(again)) != ID(encoded) {
			t.Fatalf("the order counts: %v", err)
		}
		other[0].Executable = !other[0].Executable
		if again, _, _ = Check(other, wide); ID(Encode(again)) == ID(encoded) {
			t.Fatal("another tree has the same id")
		}
		for n := range len(encoded) - 1 {
			if got, err := Decode(encoded[:n]); err == nil && len(got) == len(out) {
				t.Fatalf("cut at %d it decodes", n)
			}
		}
	})
}
