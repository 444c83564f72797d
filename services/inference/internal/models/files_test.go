package models

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

func newTree() *tree { return (&Service{cfg: Config{MaxFiles: maxFiles, MaxBytes: maxBytes}}).tree() }

// TestTree has the limits as they are, and paths that are as deep as they can be.
func TestTree(t *testing.T) {
	few := newTree()
	must(t, few.add("a", maxBytes))
	want(t, "a byte more", few.add("b", 1), codes.ResourceExhausted, 0)
	must(t, few.add("b", 0))
	want(t, "twice", few.add("b", 0), codes.InvalidArgument, faultv1.Reason_PATH_INVALID)

	many := newTree()
	for i := range maxFiles {
		must(t, many.add(fmt.Sprint(i), 1))
	}
	want(t, "a file more", many.add("x", 0), codes.ResourceExhausted, 0)

	deep, n := newTree(), 0
	folder := strings.Repeat("a/", 500)
	var err error
	for ; err == nil; n++ {
		err = deep.add(fmt.Sprint(folder, n), 0)
	}
	want(t, "too much path", err, codes.ResourceExhausted, 0)
	if n < 500 || n > 525 {
		t.Errorf("%d paths of a KiB each were taken", n-1)
	}
	for p, bad := range map[string]bool{"a": true, folder[:len(folder)-1]: true, "a/a": true, folder + "0/x": true, "b": false, "a/b": false, "aa": false} {
		tree := newTree()
		must(t, tree.add(folder+"0", 0))
		err := tree.add(p, 0)
		if bad {
			want(t, fmt.Sprintf("%.8q", p), err, codes.InvalidArgument, faultv1.Reason_PATH_INVALID)
		} else {
			must(t, err)
		}
	}
}
