package client

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
	"google.golang.org/grpc/codes"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// What an installation takes by default; it has the last word.
const (
	MaxFiles         = 100_000
	MaxFileBytes     = 1 << 30
	MaxSnapshotBytes = 4 << 30

	maxPathBytes    = 1024
	maxSegmentBytes = 255
	maxDepth        = 64
)

// limits of a folder; tests have smaller ones.
type limits struct {
	files       int
	file, total int64
}

var defaults = limits{MaxFiles, MaxFileBytes, MaxSnapshotBytes}

// folder is what a local folder would send.
type folder struct {
	root    *os.Root
	entries []*workspacev1.SnapshotEntry
	total   int64
	limits  limits
	folded  map[string]string
}

// scan reads a folder whole, and refuses it whole: nothing is sent of a tree that would not be taken.
func scan(root *os.Root, l limits) (*folder, error) {
	f := &folder{root: root, limits: l, folded: make(map[string]string)}
	err := fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fault.FailedPrecondition("%s cannot be read: %v", shown(p), cause(err))
		}
		if p == "." {
			return nil
		}
		return f.add(p, d)
	})
	if err != nil {
		return nil, err
	}
	if len(f.entries) == 0 {
		return nil, fault.FailedPrecondition("there is no file in the folder; a snapshot has at least one")
	}
	slices.SortFunc(f.entries, func(a, b *workspacev1.SnapshotEntry) int { return strings.Compare(a.GetPath(), b.GetPath()) })
	return f, nil
}

func (f *folder) add(p string, d fs.DirEntry) error {
	if wrong := badPath(p); wrong != "" {
		return invalid(p, wrong)
	}
	// A folder and a file in two spellings of one name are one on some machines.
	key := norm.NFC.String(cases.Fold().String(norm.NFD.String(p)))
	if other, taken := f.folded[key]; taken {
		return invalid(p, fmt.Sprintf("cannot be told from %s where case or composition of letters does not count; rename one", shown(other)))
	}
	f.folded[key] = p
	switch t := d.Type(); {
	case t.IsDir():
		return nil
	case t&fs.ModeSymlink != 0:
		return invalid(p, "is a link; put the file itself there, or take it out of the folder")
	case !t.IsRegular():
		return invalid(p, "is no regular file but "+kind(t)+"; take it out of the folder")
	case len(f.entries) >= f.limits.files:
		return tooMuch("the folder has more than %d files; leave out what the run does not need", f.limits.files)
	}
	e, err := f.read(p)
	if err != nil {
		return err
	}
	if f.total += e.GetSize(); f.total > f.limits.total {
		return tooMuch("the files of the folder have more than %s together; leave out what the run does not need", size(f.limits.total))
	}
	f.entries = append(f.entries, e)
	return nil
}

// read takes the digest of a file.
func (f *folder) read(p string) (*workspacev1.SnapshotEntry, error) {
	file, info, err := openRegular(f.root, p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if info.Size() > f.limits.file {
		return nil, tooMuch("%s has more than %s, the most of one file; leave it out of the folder", shown(p), size(f.limits.file))
	}
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(file, f.limits.file+1))
	if err != nil {
		return nil, fault.FailedPrecondition("%s cannot be read: %v", shown(p), cause(err))
	}
	if n > f.limits.file {
		return nil, tooMuch("%s has more than %s, the most of one file; leave it out of the folder", shown(p), size(f.limits.file))
	}
	return &workspacev1.SnapshotEntry{Path: p, Digest: h.Sum(nil), Size: n, Executable: info.Mode().Perm()&0o100 != 0}, nil
}

// openRegular opens a file that was a file before and still is the same one after: no link and no pipe comes in between.
func openRegular(root *os.Root, p string) (*os.File, fs.FileInfo, error) {
	before, err := root.Lstat(p)
	if err != nil {
		return nil, nil, fault.FailedPrecondition("%s cannot be read: %v", shown(p), cause(err))
	}
	if !before.Mode().IsRegular() {
		return nil, nil, invalid(p, "is no regular file any more")
	}
	file, err := root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fault.FailedPrecondition("%s cannot be read: %v", shown(p), cause(err))
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || !os.SameFile(before, info) {
		_ = file.Close()
		return nil, nil, fault.FailedPrecondition("%s was changed while it was read; repeat the command", shown(p))
	}
	return file, info, nil
}

// badPath says what is wrong with a relative path that another machine is to write, "" if nothing. The services judge alike.
func badPath(p string) string {
	switch {
	case p == "":
		return "is empty"
	case len(p) > maxPathBytes:
		return fmt.Sprintf("is longer than %d bytes", maxPathBytes)
	case !utf8.ValidString(p):
		return "is not UTF-8; rename it"
	case !norm.NFC.IsNormalString(p):
		return "is not in Unicode's composed form (NFC); rename it"
	case path.IsAbs(p):
		return "is absolute"
	case strings.Count(p, "/") >= maxDepth:
		return fmt.Sprintf("lies more than %d folders deep", maxDepth)
	case len(p) > 1 && p[1] == ':':
		return "begins like a drive"
	}
	if i := strings.IndexFunc(p, unseen); i >= 0 {
		return "has a backslash, a control character or one that cannot be seen; rename it"
	}
	for segment := range strings.SplitSeq(p, "/") {
		switch {
		case segment == "", segment == ".", segment == "..":
			return "has an empty segment, or one that is . or .."
		case len(segment) > maxSegmentBytes:
			return fmt.Sprintf("has a segment of more than %d bytes", maxSegmentBytes)
		case strings.TrimSpace(segment) != segment, strings.HasSuffix(segment, "."):
			return "has a segment with a space around it or a dot at its end; rename it"
		}
	}
	return ""
}

func unseen(r rune) bool {
	return r == '\\' || r == '\u2028' || r == '\u2029' || r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
}

func kind(t fs.FileMode) string {
	switch {
	case t&fs.ModeNamedPipe != 0:
		return "a pipe"
	case t&fs.ModeSocket != 0:
		return "a socket"
	case t&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}

func invalid(p, wrong string) error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_PATH_INVALID, "%s %s", shown(p), wrong)
}

func tooMuch(format string, args ...any) error {
	return fault.New(codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, format, args...)
}

// shown is a name as a terminal can take it.
func shown(p string) string { return fmt.Sprintf("%q", p) }

// size writes bytes for people.
func size(n int64) string {
	for _, u := range []struct {
		name string
		n    int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.n && n%u.n == 0 {
			return fmt.Sprintf("%d %s", n/u.n, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// cause is an error of the system without the operation around it.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
