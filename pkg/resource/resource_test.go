package resource

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const ws = "subscriptions/s1/resourceGroups/g1/workspaces/w1"

func TestParse(t *testing.T) {
	cases := []struct {
		name, in, id, parent, relative string
		kind                           Kind
	}{
		{"root", "/", "", "", "", KindRoot},
		{"subscription", "subscriptions/a", "a", "/", "", KindSubscription},
		{"longest id", "subscriptions/a" + strings.Repeat("9", 62), "a" + strings.Repeat("9", 62), "/", "", KindSubscription},
		{"group", "subscriptions/s1/resourceGroups/g-1", "g-1", "subscriptions/s1", "", KindResourceGroup},
		{"workspace", ws, "w1", "subscriptions/s1/resourceGroups/g1", "", KindWorkspace},
		{"run", ws + "/runs/R_1-x", "R_1-x", ws, "runs/R_1-x", KindRun},
		{"run named like a collection", ws + "/runs/runs", "runs", ws, "runs/runs", KindRun},
		{"longest run", ws + "/runs/" + strings.Repeat("Z", 256), strings.Repeat("Z", 256), ws, "runs/" + strings.Repeat("Z", 256), KindRun},
		{"compute", ws + "/computes/c", "c", ws, "computes/c", KindCompute},
		{"snapshot", ws + "/snapshots/" + strings.Repeat("0", 128), strings.Repeat("0", 128), ws, "snapshots/" + strings.Repeat("0", 128), KindSnapshot},
		{"secret", ws + "/secrets/db", "db", ws, "secrets/db", KindSecret},
		{"key", ws + "/keys/k", "k", ws, "keys/k", KindKey},
		{"role", "roleDefinitions/owner", "owner", "/", "", KindRole},
		{"user", "users/ada", "ada", "/", "", KindUser},
		{"group of people", "groups/staff", "staff", "/", "", KindGroup},
		{"service principal", "servicePrincipals/ci", "ci", "/", "", KindServicePrincipal},
		{"application", "applications/board", "board", "/", "", KindApplication},
		{"issuer", "issuers/partner", "partner", "/", "", KindIssuer},
		{"managed identity", "managedIdentities/mid_abcdefghijklmnopqrstuvwxyz", "mid_abcdefghijklmnopqrstuvwxyz", "/", "", KindManagedIdentity},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n, err := Parse(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if n.String() != c.in || n.Kind() != c.kind || n.ID() != c.id || n.Parent().String() != c.parent || n.Relative() != c.relative || n.IsZero() {
				t.Errorf("got %q kind %v id %q parent %q relative %q", n, n.Kind(), n.ID(), n.Parent(), n.Relative())
			}
			if len(c.in) > MaxNameBytes {
				t.Errorf("a good name of %d bytes is past the bound", len(c.in))
			}
			if n.Kind() != KindRoot {
				child, err := n.Parent().Child(n.Kind().Collection(), n.ID())
				if err != nil || child != n {
					t.Errorf("parent and id give %q, %v", child, err)
				}
			}
		})
	}
}

// TestParseRefuses is the list of spellings with which others were fooled: B2, and goal 23's path forms.
func TestParseRefuses(t *testing.T) {
	cases := []struct{ name, in string }{
		{"empty", ""},
		{"two slashes", "//"},
		{"leading slash", "/subscriptions/s1"},
		{"trailing slash", "subscriptions/s1/"},
		{"double slash", "subscriptions//s1"},
		{"collection alone", "subscriptions"},
		{"collection and slash", "subscriptions/"},
		{"odd segments", "subscriptions/s1/resourceGroups"},
		{"unknown collection", "tenants/t1"},
		{"collection at the wrong place", "workspaces/w1"},
		{"run without workspace", "subscriptions/s1/runs/r1"},
		{"below a leaf", ws + "/runs/r1/runs/r2"},
		{"workspace twice", ws + "/workspaces/w2"},
		{"collection in upper case", "Subscriptions/s1"},
		{"collection in lower case", "subscriptions/s1/resourcegroups/g1"},
		{"id in upper case", "subscriptions/S1"},
		{"dot", "subscriptions/."},
		{"dots", "subscriptions/.."},
		{"dots in a run", ws + "/runs/.."},
		{"dots at the end", ws + "/.."},
		{"path out", ws + "/runs/r1/../r2"},
		{"starts with digit", "subscriptions/1s"},
		{"starts with hyphen", "subscriptions/-s"},
		{"ends with hyphen", "subscriptions/s-"},
		{"underscore", "subscriptions/s_1"},
		{"64 bytes", "subscriptions/" + strings.Repeat("a", 64)},
		{"run of 257", ws + "/runs/" + strings.Repeat("a", 257)},
		{"run starts with underscore", ws + "/runs/_r"},
		{"run starts with hyphen", ws + "/runs/-r"},
		{"run with newline at the end", ws + "/runs/r1\n"},
		{"run with dot", ws + "/runs/r.1"},
		{"run with digit of another script", ws + "/runs/r\u0661"},
		{"snapshot in upper case", ws + "/snapshots/ABC"},
		{"snapshot of 129", ws + "/snapshots/" + strings.Repeat("a", 129)},
		{"NUL", "subscriptions/s1\x00"},
		{"NUL inside", "subscriptions/s\x001"},
		{"NUL and more", "/\x00"},
		{"space", "subscriptions/s 1"},
		{"trailing space", "subscriptions/s1 "},
		{"leading space", " subscriptions/s1"},
		{"space after root", "/ "},
		{"percent", "subscriptions/s%31"},
		{"percent slash", "subscriptions%2fs1"},
		{"backslash", `subscriptions\s1`},
		{"homoglyph", "subscriptions/\u0455\u0431"}, // Cyrillic
		{"homoglyph in the collection", "subscr\u0456ptions/s1"},
		{"full width slash", "subscriptions\uff0fs1"},
		{"full width letter", "subscriptions/\uff41"},
		{"NFC", "subscriptions/caf\u00e9"},
		{"NFD", "subscriptions/cafe\u0301"},
		{"zero width", "subscriptions/s\u200b1"},
		{"right to left", "subscriptions/\u202es1"},
		{"Kelvin sign", ws + "/runs/\u212a"},
		{"long s", "subscriptions/\u017f"},
		{"not UTF-8", "subscriptions/s\xff"},
		{"query", "subscriptions/s1?x=1"},
		{"fragment", "subscriptions/s1#x"},
		{"wildcard", "subscriptions/*"},
		{"managed identity without uid", "managedIdentities/mine"},
		{"10 MiB", strings.Repeat("a", 10<<20)},
		{"10 MiB of slashes", strings.Repeat("/", 10<<20)},
		{"10 MiB that begins well", "subscriptions/" + strings.Repeat("a", 10<<20)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n, err := ParseField("scope", c.in)
			if err == nil {
				t.Fatalf("taken as %v %q", n.Kind(), n)
			}
			if !n.IsZero() || n != (Name{}) {
				t.Errorf("refused, and yet a name came: %q", n)
			}
			f, ok := err.(*fault.Error) //nolint:errorlint // exactly this type
			if !ok || fault.Code(err) != codes.InvalidArgument {
				t.Fatalf("not an InvalidArgument: %v", err)
			}
			v := f.Violations()
			if len(v) != 1 || v[0].Field != "scope" || v[0].Description == "" {
				t.Errorf("violations %v", v)
			}
			if m := f.Message(); len(m) > 400 || !strings.Contains(m, "scope") || (len(c.in) > 14 && strings.Contains(m, c.in)) {
				t.Errorf("message %q", m)
			}
		})
	}
}

func TestParseIsCheap(t *testing.T) {
	good := ws + "/runs/r1"
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse(good) }); n != 0 {
		t.Errorf("a good name costs %v allocations", n)
	}
	n, _ := Parse(good)
	if got := testing.AllocsPerRun(100, func() { _, _ = n.Workspace(); _ = n.Relative(); _ = n.Parent() }); got != 0 {
		t.Errorf("looking at a name costs %v allocations", got)
	}
	// Were all of it read, a name of 10 MiB would take more than that. The best of many, since the machine has other work.
	huge := "subscriptions/" + strings.Repeat("a", 10<<20)
	best := time.Hour
	for range 100 {
		start := time.Now()
		_, _ = Parse(huge)
		best = min(best, time.Since(start))
	}
	if best > 30*time.Microsecond {
		t.Errorf("a name of 10 MiB costs %v", best)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse(huge) }); n > 20 {
		t.Errorf("a name of 10 MiB costs %v allocations", n)
	}
}

// oracle is the grammar a second time, as one expression.
var oracle = func() *regexp.Regexp {
	const id = `[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?`
	const below = `runs/[a-zA-Z0-9][\w\-]{0,255}|snapshots/[a-z0-9-]{1,128}|(?:computes|secrets|keys)/` + id
	return regexp.MustCompile(`\A(?:/|(?:roleDefinitions|users|groups|servicePrincipals)/` + id +
		`|managedIdentities/[a-z]{1,8}_[a-z2-7]{26}` +
		`|subscriptions/` + id + `(?:/resourceGroups/` + id + `(?:/workspaces/` + id + `(?:/(?:` + below + `))?)?)?)\z`)
}()

func TestParseAgreesWithTheGrammar(t *testing.T) {
	segment := rapid.OneOf(
		rapid.SampledFrom([]string{"", "subscriptions", "resourceGroups", "workspaces", "runs", "computes", "snapshots", "secrets", "keys", "roleDefinitions", "users", "groups", "servicePrincipals", "managedIdentities", "s1", "w1", "..", "S", "mid_abcdefghijklmnopqrstuvwxyz", "mid_1"}),
		rapid.StringMatching(`[a-zA-Z0-9_-]{0,66}`),
		rapid.String(),
	)
	valid := rapid.StringMatching(`subscriptions/[a-z][a-z0-9]{0,3}/resourceGroups/[a-z]{1,3}/workspaces/[a-z]{1,3}/(runs|keys|snapshots)/[a-z0-9_-]{1,3}`)
	name := rapid.OneOf(
		rapid.Map(rapid.SliceOfN(segment, 0, 9), func(s []string) string { return strings.Join(s, "/") }),
		rapid.Map(valid, func(s string) string { return s }),
		rapid.Custom(func(t *rapid.T) string { // one byte of a good name changed
			b := []byte(valid.Draw(t, "valid"))
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
			return string(b)
		}),
	)
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		s := name.Draw(t, "name")
		n, err := Parse(s)
		want := oracle.MatchString(s) && len(s) <= MaxNameBytes
		if (err == nil) != want {
			t.Fatalf("%q: %v, the grammar says %v", s, err, want)
		}
		if err == nil {
			taken++
			if n.String() != s {
				t.Fatalf("%q became %q", s, n)
			}
			for p := n.Parent(); !p.IsZero(); p = p.Parent() {
				again, err := Parse(p.String())
				if err != nil || again != p || !n.Within(p) || p.Within(n) {
					t.Fatalf("%q has the ancestor %q: %v", n, p, err)
				}
			}
		}
	})
	if taken == 0 {
		t.Error("no name was taken: the test tried nothing")
	}
}

func TestAncestors(t *testing.T) {
	run, _ := Parse(ws + "/runs/r1")
	w, _ := Parse(ws)
	twin, _ := Parse(ws + "1") // begins with the same bytes
	user, _ := Parse("users/ada")
	if got, ok := run.Workspace(); !ok || got != w {
		t.Errorf("workspace %q %v", got, ok)
	}
	if got, ok := w.Workspace(); !ok || got != w || w.Relative() != "" {
		t.Errorf("workspace of itself %q %v, relative %q", got, ok, w.Relative())
	}
	if got, ok := w.Parent().Workspace(); ok || !got.IsZero() {
		t.Errorf("a group is in the workspace %q", got)
	}
	if run.Within(twin) || twin.Within(w) || !run.Within(w) || !run.Within(RootName()) || !user.Within(RootName()) || run.Within(user) {
		t.Error("within is wrong")
	}
	var zero Name
	if zero.Within(zero) || run.Within(zero) || zero.Within(RootName()) || !zero.Parent().IsZero() || zero.ID() != "" || zero.String() != "" || zero.Relative() != "" {
		t.Error("the zero name is something")
	}
	if _, err := zero.Child("subscriptions", "s1"); err == nil {
		t.Error("the zero name has children")
	}
	if !RootName().Parent().IsZero() || RootName().ID() != "" {
		t.Error("the root has a parent")
	}
}

func TestChildRefuses(t *testing.T) {
	w, _ := Parse(ws)
	for _, c := range [][2]string{{"runs", ""}, {"runs", "a/b"}, {"runs", ".."}, {"computes", "X"}, {"subscriptions", "s1"}, {"", "a"}, {"runs/r1/runs", "r2"}} {
		if n, err := w.Child(c[0], c[1]); err == nil || !n.IsZero() || !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%q: %q, %v", c, n, err)
		}
	}
}

func TestKinds(t *testing.T) {
	for k := KindRoot; k < kinds; k++ {
		if got, ok := ParseKind(k.String()); !ok || got != k {
			t.Errorf("%v: %v %v", k, got, ok)
		}
		if (k.Collection() == "") != (k == KindRoot) || (shapes[k].valid == nil) != (k == KindRoot) {
			t.Errorf("%v has the collection %q", k, k.Collection())
		}
	}
	for _, s := range []string{"", "unknown", "Workspace", "scope"} {
		if k, ok := ParseKind(s); ok {
			t.Errorf("%q is %v", s, k)
		}
	}
	if Kind(200).String() != "unknown" || Kind(200).Collection() != "" {
		t.Error("a kind out of range")
	}
}

func TestIDs(t *testing.T) {
	if ValidID("a") != nil || ValidRunID("0_-") != nil || ValidSnapshotID("-0") != nil {
		t.Error("a good id is refused")
	}
	for name, err := range map[string]error{"id": ValidID("A"), "run_id": ValidRunID("é"), "snapshot_id": ValidSnapshotID(""), "workspace_id": ValidIDField("workspace_id", "a-")} {
		f, ok := err.(*fault.Error) //nolint:errorlint // exactly this type
		if !ok || fault.Code(err) != codes.InvalidArgument || f.Violations()[0].Field != name {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		uid := NewUID("ws_")
		if !IsUID(uid) || !strings.HasPrefix(uid, "ws_") || len(uid) != 29 || seen[uid] {
			t.Fatalf("uid %q", uid)
		}
		seen[uid] = true
	}
	if uid := NewUID("run"); !strings.HasPrefix(uid, "run_") || strings.Contains(uid, "__") {
		t.Errorf("uid %q", uid)
	}
	good := "ws_abcdefghijklmnopqrstuvwxyz"
	for _, s := range []string{"", "ws_", good[3:], "_" + good[3:], strings.ToUpper(good), good + "a", good[:28], good[:28] + "1", "WS_" + good[3:], good[:28] + "\x00", "ws__" + good[4:]} {
		if IsUID(s) {
			t.Errorf("%q passes as a uid", s)
		}
	}
	for _, prefix := range []string{"", "_", "W", "a-b", "abcdefghi", "ws__"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("prefix %q is taken", prefix)
				}
			}()
			NewUID(prefix)
		}()
	}
}

func TestPageSize(t *testing.T) {
	for _, c := range []struct {
		n         int32
		def, most int
		want      int
		refused   bool
	}{{0, 100, 1000, 100, false}, {1, 100, 1000, 1, false}, {1000, 100, 1000, 1000, false}, {1001, 100, 1000, 1000, false}, {1<<31 - 1, 100, 1000, 1000, false}, {-1, 100, 1000, 0, true}, {-1 << 31, 100, 1000, 0, true}, {0, 100, 10, 10, false}} {
		got, err := PageSize(c.n, c.def, c.most)
		if got != c.want || (err != nil) != c.refused || (err != nil && !fault.Is(err, codes.InvalidArgument)) {
			t.Errorf("%+v: %d, %v", c, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"/", ws, ws + "/runs/r1", "users/ada", "subscriptions/s1/../s2", "managedIdentities/mid_abcdefghijklmnopqrstuvwxyz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if (err == nil) != (len(s) <= MaxNameBytes && oracle.MatchString(s)) {
			t.Fatalf("%q: %v", s, err)
		}
		if err == nil && n.String() != s {
			t.Fatalf("%q became %q", s, n)
		}
	})
}
