//go:build linux

package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestExtra(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "python", "bin")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name  string
		paths []string
		want  []string // the paths shown
		says  string   // or a part of the error
	}{
		{"none", nil, nil, ""},
		{"a folder", []string{dir}, []string{dir}, ""},
		{"a file", []string{file}, []string{file}, ""},
		{"covered by another", []string{file, dir + "/"}, []string{dir}, ""},
		{"shown anyway", []string{"/usr/lib", "/bin/sh", "/usr"}, nil, ""},
		{"not absolute", []string{"usr"}, nil, "not an absolute path"},
		{"missing", []string{filepath.Join(dir, "gone")}, nil, "no such file"},
		{"everything", []string{"/"}, nil, "would cover"},
		{"by a detour", []string{"/usr/../"}, nil, "would cover"},
		{"the machine's settings", []string{"/etc"}, nil, "would cover /etc"},
		{"our temporary folder", []string{"/tmp"}, nil, "would cover /tmp"},
		{"the machine's state", []string{"/var"}, nil, "would cover /var"},
		{"sockets", []string{"/run/docker.sock"}, nil, "stays closed"},
		{"sockets by another name", []string{"/var/run/docker.sock"}, nil, "stays closed"},
		{"processes", []string{"/proc/1"}, nil, "stays closed"},
		{"disks", []string{"/dev/mem"}, nil, "stays closed"},
		{"hardware", []string{"/sys/kernel"}, nil, "stays closed"},
		{"a device", []string{"/etc/../dev/null"}, nil, "stays closed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			entries, err := Extra(c.paths)
			var got []string
			for _, e := range entries {
				got = append(got, e.Path)
			}
			switch {
			case c.says == "" && (err != nil || !slices.Equal(got, c.want)):
				t.Errorf("%q, %v; want %q", got, err, c.want)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("%q, %v; want an error that says %q", got, err, c.says)
			}
		})
	}
}

// TestSystemShowsNoState holds the list of what every run sees to what it is meant for.
func TestSystemShowsNoState(t *testing.T) {
	t.Parallel()
	entries, err := System()
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 6 {
		t.Errorf("only %d entries", len(entries))
	}
	for _, e := range entries {
		for _, closed := range []string{"/home", "/root", "/var", "/run", "/proc", "/tmp", "/boot", "/mnt", "/etc/passwd", "/etc/shadow", "/etc/ssl/private"} {
			if below(e.Path, closed) || below(closed, e.Path) && e.Path != "/" {
				t.Errorf("%s is shown", e.Path)
			}
		}
		if e.Path == "/" || e.Device != strings.HasPrefix(e.Path, "/dev/") {
			t.Errorf("%+v", e)
		}
	}
}
