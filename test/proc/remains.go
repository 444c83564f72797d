package proc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// agents are the processes that work in a run's folder of this installation.
func agents(data string) []int {
	var out []int
	for _, pid := range pids() {
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && strings.HasPrefix(cwd, filepath.Join(data, "compute", "runs")+"/") {
			out = append(out, pid)
		}
	}
	return out
}

// marked are the processes with this text among their arguments.
func marked(text string) []int {
	var out []int
	for _, pid := range pids() {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && pid != os.Getpid() && bytes.Contains(b, []byte(text)) {
			out = append(out, pid)
		}
	}
	return out
}

func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func killAgents(data string) {
	for _, pid := range agents(data) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// remains is what an installation that was stopped has left beside its state: agents, sockets, folders of runs, files on their way.
func (in *Installation) remains() []string {
	var out []string
	for _, pid := range agents(in.Data) {
		out = append(out, fmt.Sprintf("agent %d", pid))
	}
	for _, dir := range []string{in.Data, in.Temp} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name := filepath.Base(path)
			switch {
			case path == in.Temp:
			case dir == in.Temp:
				out = append(out, path)
			case d.Type()&fs.ModeSocket != 0, strings.HasPrefix(name, ".new-"), d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) == ".tmp", strings.HasSuffix(name, "-wal"), filepath.Dir(path) == filepath.Join(in.Data, "compute", "runs"):
				out = append(out, path)
			}
			return nil
		})
		if err != nil {
			out = append(out, "what cannot be read: "+err.Error())
		}
	}
	return out
}

// WantNothingLeft stops the installation and looks for remains. What ends by itself soon may do so.
func (in *Installation) WantNothingLeft(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = poll(ctx, func() error { // the folder of a run that has just ended goes within moments
		if len(agents(in.Data)) > 0 {
			return errors.New("agents")
		}
		if e, _ := os.ReadDir(filepath.Join(in.Data, "compute", "runs")); len(e) > 0 {
			return errors.New("folders")
		}
		return nil
	})
	in.Stop(t)
	for _, r := range in.remains() {
		t.Errorf("left: %s", r)
	}
}

// digests of all files below a folder, by their path in it.
func digests(t testing.TB, dir string) map[string]string {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	out := make(map[string]string)
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := root.ReadFile(path)
		out[path] = fmt.Sprintf("%x %d", sha256.Sum256(b), len(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
