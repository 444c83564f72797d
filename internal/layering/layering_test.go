package layering

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pkg is what go list says of one package. Paths of the module's own packages are relative to it.
type pkg struct {
	ImportPath   string
	Dir          string
	Standard     bool
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImportsFollowTheTable(t *testing.T) {
	for _, violation := range check(list(t)) {
		t.Error(violation)
	}
}

// TestCheck sees each rule refuse what it is there for, and let pass what stands beside it.
func TestCheck(t *testing.T) {
	cases := []struct {
		name string
		pkg  pkg
		want string // a part of the one violation; empty for none
	}{
		{"lower level", pkg{ImportPath: "pkg/rpc", Imports: own("pkg/fault")}, ""},
		{"higher level", pkg{ImportPath: "pkg/fault", Imports: own("pkg/rpc")}, "higher level"},
		{"higher level, by a test", pkg{ImportPath: "pkg/fault", TestImports: own("pkg/rpc")}, ""},
		{"same level without a line", pkg{ImportPath: "pkg/blob", Imports: own("pkg/sqldb")}, "sameLevel"},
		{"same level with a line", pkg{ImportPath: "internal/cli", Imports: own("internal/node")}, ""},
		{"same unit", pkg{ImportPath: "services/keyvault", Imports: own("services/keyvault/internal/store")}, ""},
		{"another service", pkg{ImportPath: "services/keyvault", Imports: own("services/identity")}, "another service"},
		{"another service, by a test", pkg{ImportPath: "services/keyvault", XTestImports: own("services/identity")}, "another service"},
		{"below a unit", pkg{ImportPath: "pkg/audit/outbox", Imports: own("pkg/rpc/chain")}, "higher level"},
		{"generated imports ours", pkg{ImportPath: "gen/x/v1", Imports: own("pkg/fault")}, "higher level"},
		{"nowhere", pkg{ImportPath: "pkg/util"}, "stands nowhere"},
		{"a name that only begins alike", pkg{ImportPath: "pkg/rpcx"}, "stands nowhere"},
		{"testmesh in a program", pkg{ImportPath: "cmd/redoubt", Imports: own("internal/testmesh")}, "tests only"},
		{"testmesh in a test", pkg{ImportPath: "services/identity", XTestImports: own("internal/testmesh")}, ""},
		{"cmd reaches past node", pkg{ImportPath: "cmd/redoubt", Imports: own("services/identity")}, "through internal/node"},
		{"driver in sqldb", pkg{ImportPath: "pkg/sqldb", Imports: []string{"modernc.org/sqlite"}}, ""},
		{"driver in a store", pkg{ImportPath: "services/identity/internal/store", Imports: []string{"github.com/jackc/pgx/v5/pgconn"}}, "SQL drivers"},
		{"driver of a like name", pkg{ImportPath: "pkg/blob", Imports: []string{"modernc.org/sqlitex"}}, ""},
		{"etcd in discovery", pkg{ImportPath: "pkg/discovery", Imports: []string{"go.etcd.io/etcd/client/v3"}}, ""},
		{"etcd in a service", pkg{ImportPath: "services/compute", Imports: []string{"go.etcd.io/etcd/client/v3"}}, "discovery and fence"},
		{"etcd embedded by node", pkg{ImportPath: "internal/node/etcd", Imports: []string{"go.etcd.io/etcd/server/v3/embed"}}, ""},
		{"etcd embedded by discovery", pkg{ImportPath: "pkg/discovery", Imports: []string{"go.etcd.io/etcd/server/v3/embed"}}, "only node"},
		{"bucket in blob", pkg{ImportPath: "pkg/blob", Imports: []string{"github.com/aws/aws-sdk-go-v2/service/s3"}}, ""},
		{"bucket in a service", pkg{ImportPath: "services/workspace", Imports: []string{"github.com/aws/aws-sdk-go-v2/service/s3"}}, "behind blob"},
		{"cipher in keyvault", pkg{ImportPath: "services/keyvault", Imports: []string{"crypto/cipher"}}, ""},
		{"cipher in workspace", pkg{ImportPath: "services/workspace", Imports: []string{"crypto/cipher"}}, "ciphers"},
		{"hash in workspace", pkg{ImportPath: "services/workspace", Imports: []string{"crypto/sha256", "crypto/subtle", "crypto/tls"}}, ""},
		{"jose in the gateway", pkg{ImportPath: "services/gateway", Imports: []string{"github.com/go-jose/go-jose/v4"}}, "ciphers"},
		{"jose in a test", pkg{ImportPath: "services/gateway", TestImports: []string{"github.com/go-jose/go-jose/v4"}}, ""},
		{"md5 in keyvault", pkg{ImportPath: "services/keyvault", Imports: []string{"crypto/md5"}}, "broken"},
		{"guessable chance", pkg{ImportPath: "pkg/rpc", Imports: []string{"math/rand"}}, "chance"},
		{"jitter", pkg{ImportPath: "pkg/rpc", Imports: []string{"math/rand/v2"}}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := check([]pkg{c.pkg})
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("refused: %q", got)
			case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
				t.Errorf("got %q, want one that holds %q", got, c.want)
			}
		})
	}
}

func TestSameLevelHasNoCircle(t *testing.T) {
	next := map[string][]string{}
	for edge, why := range sameLevel {
		from, to := units[edge[0]], units[edge[1]]
		if from == 0 || from != to || why == "" {
			t.Errorf("sameLevel %v: levels %d and %d, why %q", edge, from, to, why)
		}
		next[edge[0]] = append(next[edge[0]], edge[1])
	}
	var visit func(unit string, path []string)
	visit = func(unit string, path []string) {
		if slices.Contains(path, unit) {
			t.Fatalf("a circle: %s → %s", strings.Join(path, " → "), unit)
		}
		for _, to := range next[unit] {
			visit(to, append(slices.Clone(path), unit))
		}
	}
	for _, unit := range slices.Sorted(maps.Keys(next)) {
		visit(unit, nil)
	}
}

// check judges the imports of packages, whose own import paths are relative to the module.
func check(pkgs []pkg) []string {
	var violations []string
	for _, p := range pkgs {
		unit, level, ok := unitOf(p.ImportPath)
		if !ok {
			violations = append(violations, fmt.Sprintf("%s stands nowhere: give it a line in units (rules_test.go)", p.ImportPath))
			continue
		}
		for _, path := range p.Imports {
			if v := judge(unit, level, path); v != "" {
				violations = append(violations, fmt.Sprintf("%s imports %s: %s", p.ImportPath, path, v))
			}
		}
		// Tests may look from above, but a service's tests know no other service either.
		for _, path := range slices.Concat(p.TestImports, p.XTestImports) {
			if rel, ours := strings.CutPrefix(path, module+"/"); ours && otherService(unit, rel) {
				violations = append(violations, fmt.Sprintf("a test of %s imports %s: another service", p.ImportPath, path))
			}
		}
	}
	return violations
}

// judge says what is wrong with a package of unit importing path, or nothing.
func judge(unit string, level int, path string) string {
	rel, ours := strings.CutPrefix(path, module+"/")
	if !ours {
		if level == inTests {
			return ""
		}
		return judgeReserved(unit, path)
	}
	to, toLevel, ok := unitOf(rel)
	switch {
	case !ok:
		return "it stands nowhere"
	case to == unit:
		return ""
	case toLevel == inTests && level != inTests:
		return "it is for tests only"
	case otherService(unit, rel):
		return "another service: reach it through gen's clients or a narrow interface"
	case unit == "cmd/redoubt" && toLevel == 5:
		return "cmd reaches services and the agent through internal/node or internal/cli"
	case toLevel < level || level == inTests:
		return ""
	case toLevel > level:
		return fmt.Sprintf("a higher level (%d from %d)", toLevel, level)
	case level == generated || sameLevel[[2]string{unit, to}] != "":
		return ""
	default:
		return "the same level: turn it round or, where it must be, give it a line in sameLevel (rules_test.go)"
	}
}

// judgeReserved says what is wrong with a unit importing path from outside the module, or nothing.
func judgeReserved(unit, path string) string {
	var match reservation
	for _, r := range reserved {
		if below(path, r.prefix) && len(r.prefix) > len(match.prefix) {
			match = r
		}
	}
	if match.prefix == "" || slices.Contains(match.units, unit) || slices.Contains(match.units, "*") {
		return ""
	}
	return match.why
}

// unitOf finds the unit and level of a package.
func unitOf(rel string) (unit string, level int, ok bool) {
	for prefix, l := range units {
		name := prefix
		if parent, star := strings.CutSuffix(prefix, "/*"); star {
			first, _, _ := strings.Cut(strings.TrimPrefix(rel, parent+"/"), "/")
			name = parent + "/" + first
		}
		if below(rel, name) && len(name) > len(unit) {
			unit, level, ok = name, l, true
		}
	}
	return unit, level, ok
}

// otherService tells whether rel belongs to a service, and unit to another one.
func otherService(unit, rel string) bool {
	return strings.HasPrefix(unit, "services/") && strings.HasPrefix(rel, "services/") && !below(rel, unit)
}

// below tells whether path is prefix or lies below it.
func below(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// own makes import paths of the module's packages.
func own(rels ...string) []string {
	paths := make([]string, len(rels))
	for i, rel := range rels {
		paths[i] = module + "/" + rel
	}
	return paths
}

// list asks go list for the packages of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var pkgs []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		rel, ok := strings.CutPrefix(p.ImportPath, module+"/")
		if !ok {
			t.Fatalf("%s is not of module %s", p.ImportPath, module)
		}
		p.ImportPath = rel
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 3 {
		t.Fatalf("go list found %d packages only", len(pkgs))
	}
	return pkgs
}

// root finds the folder of the module.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.mod above the working directory")
	return ""
}
