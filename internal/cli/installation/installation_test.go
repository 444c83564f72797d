package installation

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// The first password goes to a private file where there is no terminal, and not to the output.
func TestHandOver(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	a := verbs{&app.App{Out: &out}}
	if err := a.handOver(dir, "users/admin", redact.FromString("pass-word"), []byte("CA")); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, adminPasswordFile)
	info, err := os.Stat(p)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if b, err := os.ReadFile(p); err != nil || string(b) != "pass-word\n" {
		t.Errorf("%q, %v", b, err)
	}
	if !strings.Contains(out.String(), p) || strings.Contains(out.String(), "pass-word") {
		t.Errorf("printed %q", out.String())
	}
}

// What was kept of another installation at the same address does not hold for a new one.
func TestKeepContext(t *testing.T) {
	env := map[string]string{"HOME": t.TempDir()}
	a := verbs{&app.App{Env: func(k string) string { return env[k] }}}
	name, err := a.keepContext("https://127.0.0.1:1", []byte("CA 1"), "users/admin")
	if err != nil || name != "local" {
		t.Fatal(name, err)
	}
	d, _ := a.Folder()
	f, err := d.Read()
	if err != nil || f.CurrentContext != "local" {
		t.Fatal(f, err)
	}
	c, _ := f.Find("local")
	c.Workspace, c.User = "w", "users/ada"
	f.Put(c)
	if err := d.Write(f); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ server, ca, name, workspace, user string }{
		{"https://127.0.0.1:1", "CA 1", "local", "w", "users/ada"},
		{"https://127.0.0.1:1", "CA 2", "local", "", "users/admin"},
		{"https://127.0.0.1:2", "CA 3", "127.0.0.1:2", "", "users/admin"},
	} {
		name, err := a.keepContext(step.server, []byte(step.ca), "users/admin")
		if err != nil || name != step.name {
			t.Fatal(name, err)
		}
		if f, err = d.Read(); err != nil {
			t.Fatal(err)
		}
		if c, _ := f.Find(name); c.CA != step.ca || c.Workspace != step.workspace || c.User != step.user {
			t.Errorf("got %+v", c)
		}
	}
}
