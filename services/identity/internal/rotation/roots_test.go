package rotation

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestRoots(t *testing.T) { // D10
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	soon, past := now.Add(time.Hour), now.Add(-time.Hour)
	two := func(a, b Phase) []Root {
		return []Root{{Pin: "a", Phase: a, Signed: past, Quiet: past}, {Pin: "b", Phase: b}}
	}
	aware := []Leaf{{Holder: "service/compute/a", Pin: "b", Bundle: []string{"a", "b"}, Expire: soon}}
	w := Waits{Run: 10 * time.Minute, Connection: 32 * time.Minute}
	activate := func(roots []Root, leaves []Leaf, pin string, force bool) error {
		next, err := Activated(now, roots, leaves, pin, force)
		if n := len(slices.DeleteFunc(slices.Clone(next), func(r Root) bool { return r.Phase != Active })); err == nil && n != 1 {
			t.Errorf("%d roots sign", n)
		}
		return err
	}
	taint := func(roots []Root, pin string, yes bool) error { _, err := WithTaint(now, roots, pin, yes); return err }
	for _, c := range []struct {
		name string
		err  error
		part string // of the refusal, "" for none
	}{
		{"beside nothing", Beside([]Root{{Pin: "a", Phase: Active}}), ""},
		{"beside another", Beside(two(Active, Prepared)), "stands beside"},
		{"beside one without a phase", Beside(two(Active, "")), "stands beside"},
		{"activate what all know", activate(two(Active, Prepared), aware, "b", false), ""},
		{"activate what one does not know", activate(two(Active, Prepared), []Leaf{{Holder: "service/compute/a", Bundle: []string{"a"}, Expire: soon}}, "b", false), "service/compute/a"},
		{"by force", activate(two(Active, Prepared), []Leaf{{Holder: "service/compute/a", Bundle: []string{"a"}, Expire: soon}}, "b", true), ""},
		{"who does not know has ended", activate(two(Active, Prepared), []Leaf{{Holder: "service/compute/a", Bundle: []string{"a"}, Expire: now}}, "b", false), ""},
		{"an operator need not know", activate(two(Active, Prepared), []Leaf{{Holder: "operator/x", Bundle: []string{"a"}, Expire: soon}}, "b", false), ""},
		{"activate the old one", activate(two(Old, Active), aware, "a", false), ""},
		{"activate a tainted one", activate(two(Tainted, Active), aware, "a", true), "untaint"},
		{"activate one without a phase", activate(two(Active, ""), aware, "b", true), "untaint"},
		{"activate nothing", activate(two(Active, Prepared), aware, "", true), "no such root"},
		{"taint the old one", taint(two(Old, Active), "a", true), ""},
		{"taint it again", taint(two(Tainted, Active), "a", true), ""},
		{"untaint it", taint(two(Tainted, Active), "a", false), ""},
		{"taint the one that signs", taint(two(Old, Active), "b", true), "signs"},
		{"taint a prepared one", taint(two(Active, Prepared), "b", true), "only one that has signed"},
		{"revoke a prepared one", Revocable(now, two(Active, Prepared), nil, "b", w, false), ""},
		{"revoke a tainted one", Revocable(now, two(Tainted, Active), nil, "a", w, false), ""},
		{"revoke an old one", Revocable(now, two(Old, Active), nil, "a", w, true), "taint it first"},
		{"revoke the one that signs", Revocable(now, two(Old, Active), nil, "b", w, true), "signs"},
		{"revoke what is held", Revocable(now, two(Tainted, Active), []Leaf{{Holder: "operator/x", Pin: "a", Expire: soon}}, "a", w, false), "operator/x"},
		{"that by force", Revocable(now, two(Tainted, Active), []Leaf{{Holder: "operator/x", Pin: "a", Expire: soon}}, "a", w, true), ""},
		{"revoke where a leaf has just ended", Revocable(now, two(Tainted, Active), []Leaf{{Holder: "operator/x", Pin: "a", Expire: now}}, "a", w, false), "may stand until 2026-01-01T12:32:30Z"},
		{"revoke what has just signed for a run", Revocable(now, []Root{{Pin: "a", Phase: Tainted, Signed: now}, {Pin: "b", Phase: Active}}, nil, "a", w, false), "may stand until 2026-01-01T12:42:30Z"},
		{"revoke what a service has just left", Revocable(now, []Root{{Pin: "a", Phase: Tainted, Quiet: now}, {Pin: "b", Phase: Active}}, nil, "a", w, false), "may stand until 2026-01-01T12:32:30Z"},
	} {
		code := fault.Code(c.err)
		if (c.err == nil) != (c.part == "") || c.err != nil && (code != codes.FailedPrecondition && code != codes.NotFound || !strings.Contains(c.err.Error(), c.part)) {
			t.Errorf("%s: %v", c.name, c.err)
		}
	}
}
