package config

import (
	"strings"
	"testing"
)

func TestOrigins(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "db.secret", "hunter2", 0o600)
	path := write(t, dir, "c.yaml", "mesh: {trust_domain: file, peers: [f]}\nidentity: {database: {password_file: db.secret}}\nworkers: 2\n", 0o600)
	src := Source{Path: path, Env: []string{"REDOUBT_WORKERS=3", "REDOUBT_TOKEN=x", "PATH=/bin"}, Flags: map[string]string{"mesh.trust_domain": "flag"}}
	got, err := Origins[process](src)
	if err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{"mesh.trust_domain": "--set", "mesh.peers": path, "identity.database.password_file": path, "workers": "REDOUBT_WORKERS", "mesh.timeout": ""} {
		if got[setting] != want {
			t.Errorf("%s is from %q", setting, got[setting])
		}
	}
	v, err := LoadFrom(src, process{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := DumpOrigins(v, got)
	if err != nil || strings.Contains(out, "hunter2") {
		t.Fatal(out, err)
	}
	for _, line := range []string{"trust_domain: flag # --set", "workers: 3 # REDOUBT_WORKERS", "timeout: 0s # default", "# " + path + "\n    peers:", "[redacted]' # " + path} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	if _, err := Origins[process](Source{Path: dir + "/none"}); err == nil {
		t.Error("without the file")
	}
}
