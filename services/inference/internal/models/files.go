package models

import (
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// badPath says what is wrong with the path of a file, "" if nothing: it will be written below a folder of somebody else. What the
// outputs of a run may be called, files of a version may.
func badPath(p string) string {
	switch {
	case p == "" || len(p) > 1024:
		return "has 1 to 1,024 bytes"
	case !utf8.ValidString(p) || !norm.NFC.IsNormalString(p):
		return "is UTF-8 in NFC"
	case strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }):
		return "holds no control characters and no backslash"
	case p[0] == '/' || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../"):
		return "is relative and without . and .."
	}
	return ""
}

func errPath(what string) error {
	return fault.New(codes.InvalidArgument, faultv1.Reason_PATH_INVALID, "the path of a file of a model %s", what).Field("file.path", what)
}

// tree is what a version's files may still be called.
type tree struct {
	files, folders map[string]bool
	bytes          int64
	paths          int // bytes of all paths
	mostFiles      int
	mostBytes      int64
}

func (s *Service) tree() *tree {
	return &tree{files: make(map[string]bool), folders: make(map[string]bool), mostFiles: s.cfg.MaxFiles, mostBytes: s.cfg.MaxBytes}
}

// add takes a file, or refuses it before its content is moved.
func (t *tree) add(p string, size int64) error {
	if wrong := badPath(p); wrong != "" {
		return errPath(wrong)
	}
	switch {
	case size < 0:
		return fault.InvalidArgument("the size of a file is less than 0").Field("file.size", "is less than 0")
	case len(t.files) >= t.mostFiles:
		return fault.ResourceExhausted("a version has at most %d files; pack them into fewer", t.mostFiles)
	case t.paths+len(p) > maxPathBytes:
		return fault.ResourceExhausted("the paths of a version have at most %d bytes in all; choose shorter ones", maxPathBytes)
	case size > t.mostBytes-t.bytes:
		return fault.ResourceExhausted("the files of a version have at most %d bytes in all", t.mostBytes)
	case t.files[p]:
		return errPath("stands there once")
	case t.folders[p]:
		return errPath("is that of a file, and not of a folder as well")
	}
	for at := strings.LastIndexByte(p, '/'); at > 0; at = strings.LastIndexByte(p[:at], '/') {
		d := p[:at]
		if t.files[d] {
			return errPath("is that of a file, and not of a folder as well")
		}
		if t.folders[d] {
			break // and so are those above it
		}
		t.folders[d] = true
	}
	t.files[p] = true
	t.bytes += size
	t.paths += len(p)
	return nil
}
