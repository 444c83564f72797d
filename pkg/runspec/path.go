package runspec

import (
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Path refuses what is not a plain relative path: somebody will read or write it below a folder of his own. what is its name in the
// refusal: "the path of an output".
func Path(field, what, p string) error {
	bad := func(wrong string) error {
		return fault.New(codes.InvalidArgument, faultv1.Reason_PATH_INVALID, "%s %s", what, wrong).Field(field, wrong)
	}
	switch {
	case p == "" || len(p) > 1024:
		return bad("has 1 to 1,024 bytes")
	case !utf8.ValidString(p) || !norm.NFC.IsNormalString(p):
		return bad("is UTF-8 in NFC")
	case strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }):
		return bad("holds no control characters and no backslash")
	case p[0] == '/' || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../"):
		return bad("is relative and without . and ..")
	}
	return nil
}
