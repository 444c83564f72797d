package layering

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// clocked are the packages that decide whether a token or a certificate is good, or make one: they read no clock but the one of their Config, by
// which a test, or a machine whose clock is known to be off, can turn it (A3, D10).
var clocked = []string{
	"pkg/authn", "pkg/authz", "pkg/svid", "pkg/edge", "services/identity", "internal/agent",
}

// systemClocks are calls of time.Now, time.Since and time.Until there, and TLS without a clock anywhere in a service, that decide nothing about a token or
// a certificate of the mesh.
var systemClocks = map[string]string{
	"pkg/svid/creds.go": "a socket's deadline",

	"pkg/authn/password/password.go":           "what a hash takes, and a context's deadline",
	"pkg/authn/password/apart/worker_linux.go": "a socket's deadline",

	"pkg/edge/conn.go":              "a socket's deadline",
	"pkg/edge/guard.go":             "a socket's deadline",
	"pkg/edge/listener.go":          "rates, and a socket's deadline",
	"pkg/blob/s3.go":                "the bucket's server is of others, and so is its clock",
	"internal/node/etcdnode/pki.go": "etcd's leases are on the system's clock, and so are its certificates, of 825 days",
}

// clockUse are the places in a file that read the system's clock: calls, and configurations of TLS or of a chain's check without a clock. Naming
// time.Now, as the default of a Config does, is no call.
func clockUse(file *ast.File, calls bool) (out []token.Pos) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch x := n.(type) {
		case *ast.CallExpr:
			if s, ok := x.Fun.(*ast.SelectorExpr); ok && calls && of(s, "time") && slices.Contains([]string{"Now", "Since", "Until"}, s.Sel.Name) {
				out = append(out, x.Pos())
			}
		case *ast.CompositeLit:
			s, ok := x.Type.(*ast.SelectorExpr)
			if !ok {
				break
			}
			field := ""
			switch {
			case of(s, "tls") && s.Sel.Name == "Config":
				field = "Time"
			case of(s, "x509") && s.Sel.Name == "VerifyOptions":
				field = "CurrentTime"
			default:
				return true
			}
			if !slices.ContainsFunc(x.Elts, func(e ast.Expr) bool {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					return false
				}
				id, ok := kv.Key.(*ast.Ident)
				return ok && id.Name == field
			}) {
				out = append(out, x.Pos())
			}
		}
		return true
	})
	return out
}

func of(s *ast.SelectorExpr, pkg string) bool {
	id, ok := s.X.(*ast.Ident)
	return ok && id.Name == pkg
}

func TestVerifiersReadTheClockOfTheirConfig(t *testing.T) { // A3, D10
	top, used := root(t), map[string]bool{}
	for _, p := range list(t) {
		rel, err := filepath.Rel(top, p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		service := below(rel, "pkg") || below(rel, "services") || below(rel, "internal/agent") || below(rel, "internal/node")
		if !service {
			continue // a command's clock is its machine's
		}
		strict := slices.ContainsFunc(clocked, func(c string) bool { return below(rel, c) })
		for _, name := range p.GoFiles {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			at := clockUse(f, strict)
			file := filepath.ToSlash(filepath.Join(rel, name))
			if _, ok := systemClocks[file]; ok {
				used[file] = used[file] || len(at) > 0
				continue
			}
			for _, pos := range at {
				t.Errorf("%s:%d: this reads the system's clock, and not that of the Config", file, set.Position(pos).Line)
			}
		}
	}
	for file := range systemClocks {
		if !used[file] {
			t.Errorf("%s reads the system's clock no more: take it out of the list", file)
		}
	}
}

func TestClockUse(t *testing.T) {
	for text, want := range map[string]int{
		`var a = time.Now()`:                                         1,
		`var a = time.Since(b)`:                                      1,
		`var a = time.Until(b)`:                                      1,
		`var a = time.Now`:                                           0,
		`var a = time.Unix(1, 0)`:                                    0,
		`var a = &tls.Config{MinVersion: 1}`:                         1,
		`var a = &tls.Config{MinVersion: 1, Time: b}`:                0,
		`var a = x509.VerifyOptions{Roots: b}`:                       1,
		`var a = x509.VerifyOptions{Roots: b, CurrentTime: c}`:       0,
		`func f() { _ = []any{tls.Config{}, func() { time.Now() }}}`: 2,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\n"+text, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(clockUse(f, true)); got != want {
			t.Errorf("%s: %d", strings.TrimSpace(text), got)
		}
	}
}
