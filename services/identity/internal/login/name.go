package login

import (
	"strings"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// maxName bounds what is folded, in bytes.
const maxName = 256

// Canonical is the id of the account that a typed name means: NFKC, folded case, without space around it. What is too long or
// is not UTF-8 means no account, which is "".
func Canonical(typed string) string {
	if len(typed) > maxName {
		return ""
	}
	// Folding can undo the composed form and composing can make what folds again, so it is done until nothing changes.
	s := typed
	for range 4 {
		next := cases.Fold().String(norm.NFKC.String(s))
		if next == s {
			break
		}
		s = next
	}
	s = strings.TrimSpace(s)
	if strings.ContainsRune(s, '\uFFFD') {
		return ""
	}
	return s
}

// looks are letters of an id that a reader takes for others.
var looks = strings.NewReplacer("0", "o", "1", "l", "rn", "m", "vv", "w", "-", "")

// Skeleton is what an id looks like. Two ids with one skeleton would be taken for each other by a reader. The id is one of
// the grammar a-z, 0-9 and hyphen.
func Skeleton(id string) string { return looks.Replace(id) }
