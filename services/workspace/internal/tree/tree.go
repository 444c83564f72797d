// Package tree judges the paths of a snapshot and writes its entries down in the one canonical form that gives it its id (H2).
//
// Trust boundary: paths come from whoever uploads, and are later made into files on a machine of another. What is taken is a relative
// path of plain segments that means the same file on every common file system, and a tree in which no two paths can become the same
// file, nor a file a folder.
//
// Invariants: Check accepts a list exactly if Encode's form of it decodes to the same list, sorted; equal trees have equal ids,
// whatever the order in which they were given.
//
// Failure: PATH_INVALID with the index of the entry and what is wrong with it. The path itself is not repeated in the message.
package tree

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// MaxPathBytes is the most bytes of a path.
	MaxPathBytes = 1024
	// MaxSegmentBytes is the most bytes of what stands between two slashes: what common file systems take.
	MaxSegmentBytes = 255
	// MaxDepth is the most segments of a path.
	MaxDepth = 64

	digestBytes = sha256.Size
	// idDigits is how many hexadecimal digits of the digest stand in an id: 160 bits.
	idDigits = 40
)

// Entry is one regular file.
type Entry struct {
	Path       string
	Digest     [digestBytes]byte
	Size       int64
	Executable bool
}

// CheckPath says what is wrong with one path, "" if nothing.
func CheckPath(path string) string {
	switch {
	case path == "":
		return "is empty"
	case len(path) > MaxPathBytes:
		return "is longer than 1,024 bytes"
	case !utf8.ValidString(path):
		return "is not UTF-8"
	case !norm.NFC.IsNormalString(path):
		return "is not in Unicode's normal form C"
	case path[0] == '/':
		return "is absolute"
	case strings.Count(path, "/") >= MaxDepth:
		return "has more than 64 segments"
	}
	for _, r := range path {
		switch {
		case r == '\\':
			return "has a backslash"
		case unicode.IsControl(r):
			return "has a control character"
		case unicode.Is(unicode.Cf, r), r == '\u2028', r == '\u2029', r == '\ufffd':
			return "has a character that cannot be seen"
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		if wrong := checkSegment(segment); wrong != "" {
			return wrong
		}
	}
	if len(path) > 1 && path[1] == ':' {
		return "begins with a drive"
	}
	return ""
}

func checkSegment(segment string) string {
	switch {
	case segment == "":
		return "has an empty segment"
	case segment == ".", segment == "..":
		return "has a segment . or .."
	case len(segment) > MaxSegmentBytes:
		return "has a segment of more than 255 bytes"
	case strings.HasSuffix(segment, "."), strings.HasSuffix(segment, " "), strings.HasPrefix(segment, " "):
		return "has a segment that begins with a space or ends with a space or dot"
	}
	return ""
}

// fold maps what some file systems take for the same name to one text: case, and compositions of the same character.
func fold(path string) string {
	return norm.NFC.String(cases.Fold().String(norm.NFD.String(path)))
}

// Limits of a tree.
type Limits struct {
	FileBytes, TotalBytes int64
	Entries               int
}

// Check judges entries and returns them sorted by path, with the sum of their sizes.
func Check(entries []Entry, limits Limits) ([]Entry, int64, error) {
	if len(entries) == 0 {
		return nil, 0, fault.InvalidArgument("a snapshot has at least one file").Field("entries", "is empty")
	}
	if len(entries) > limits.Entries {
		return nil, 0, tooMuch("a snapshot has at most %d files", limits.Entries)
	}
	var total int64
	keys := make([]key, len(entries))
	for i, e := range entries {
		if wrong := CheckPath(e.Path); wrong != "" {
			return nil, 0, invalid(i, wrong)
		}
		if e.Size < 0 {
			return nil, 0, fault.InvalidArgument("entries[%d].size is less than 0", i).Field(field(i)+".size", "is less than 0")
		}
		if e.Size > limits.FileBytes {
			return nil, 0, tooMuch("a file of a snapshot has at most %d bytes", limits.FileBytes)
		}
		if total += e.Size; total > limits.TotalBytes {
			return nil, 0, tooMuch("the files of a snapshot have at most %d bytes together", limits.TotalBytes)
		}
		keys[i] = key{index: i, folded: fold(e.Path)}
	}
	if err := collisions(entries, keys); err != nil {
		return nil, 0, err
	}
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return sorted, total, nil
}

type key struct {
	index  int
	folded string
}

// collisions refuses trees in which two paths can become one file or folder. In the order of folded segments, all paths that share a
// folded beginning stand together, so that neighbours are enough.
func collisions(entries []Entry, keys []key) error {
	slices.SortFunc(keys, func(a, b key) int { return bySegment(a.folded, b.folded) })
	for i := 1; i < len(keys); i++ {
		a, b := keys[i-1], keys[i]
		if a.folded == b.folded {
			if entries[a.index].Path == entries[b.index].Path {
				return invalid(b.index, "stands there twice")
			}
			return invalid(b.index, "differs from another one only in the case or composition of letters")
		}
		if strings.HasPrefix(b.folded, a.folded+"/") {
			return invalid(a.index, "is a file, and a folder of another entry")
		}
		as, bs := strings.Split(entries[a.index].Path, "/"), strings.Split(entries[b.index].Path, "/")
		for n := range min(len(as), len(bs)) {
			if as[n] == bs[n] {
				continue
			}
			if fold(as[n]) == fold(bs[n]) {
				return invalid(b.index, "is in a folder that differs from another one only in the case or composition of letters")
			}
			break
		}
	}
	return nil
}

// bySegment compares with the slash before every other byte.
func bySegment(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

// head begins the canonical form, so that no other text of ours has the same digest.
const head = "redoubt snapshot v1\n"

// Encode is the canonical form of entries that Check has sorted.
func Encode(entries []Entry) []byte {
	out := []byte(head)
	for _, e := range entries {
		out = binary.BigEndian.AppendUint32(out, uint32(len(e.Path)))
		out = append(out, e.Path...)
		out = append(out, e.Digest[:]...)
		out = binary.BigEndian.AppendUint64(out, uint64(e.Size))
		if e.Executable {
			out = append(out, 1)
		} else {
			out = append(out, 0)
		}
	}
	return out
}

// ID is the id of the snapshot with this canonical form: s and 40 hexadecimal digits of its SHA-256.
func ID(encoded []byte) string {
	sum := sha256.Sum256(encoded)
	return "s" + hex.EncodeToString(sum[:])[:idDigits]
}

// Decode reads what Encode wrote, and refuses all else.
func Decode(encoded []byte) ([]Entry, error) {
	damaged := fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the entries of the snapshot are damaged")
	rest, ok := strings.CutPrefix(string(encoded), head)
	if !ok {
		return nil, damaged
	}
	var out []Entry
	for rest != "" {
		if len(rest) < 4 {
			return nil, damaged
		}
		n := int(binary.BigEndian.Uint32([]byte(rest[:4])))
		if rest = rest[4:]; n > MaxPathBytes || len(rest) < n+digestBytes+8+1 {
			return nil, damaged
		}
		e := Entry{Path: rest[:n], Executable: rest[n+digestBytes+8] == 1}
		copy(e.Digest[:], rest[n:])
		e.Size = int64(binary.BigEndian.Uint64([]byte(rest[n+digestBytes : n+digestBytes+8])))
		if CheckPath(e.Path) != "" || e.Size < 0 || len(out) > 0 && out[len(out)-1].Path >= e.Path {
			return nil, damaged
		}
		out, rest = append(out, e), rest[n+digestBytes+9:]
	}
	return out, nil
}

func field(i int) string { return "entries[" + strconv.Itoa(i) + "]" }

func invalid(i int, wrong string) error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_PATH_INVALID, "the path of entries[%d] %s", i, wrong).Field(field(i)+".path", wrong)
}

func tooMuch(format string, args ...any) error {
	return fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, format, args...)
}
