package proc

import (
	"context"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// D10: everything was stopped for longer than certificates live. It starts by itself.
func TestColdStart(t *testing.T) {
	needSandbox(t)
	long(t)
	for name, several := range map[string]bool{"several": true, "whole": false} {
		t.Run(name, func(t *testing.T) {
			in := New(t, several)
			in.Stop(t)
			time.Sleep(LeafLife + 2*time.Second) // the passing of time is what is tested
			begin := time.Now()
			in.Start(t)
			in.WaitReady(t)
			t.Logf("ready %s after a cold start", time.Since(begin).Round(time.Millisecond))
			Walk(t, in.Access(), "after", time.Second)
			in.WantNothingLeft(t)
		})
	}
}

// H3, G2, D10: what an operator meets with one process: the walk, a second start, kills, damage. One installation for all.
func TestWhole(t *testing.T) {
	needSandbox(t)
	in := New(t, false)
	t.Run("second start", func(t *testing.T) {
		code, out := Run(t, Environment(in.base), "up", "--data", in.Data, "--listen", freePorts(t))
		if code != 1 && code != 2 || !strings.Contains(out, "another redoubt runs on "+in.Data) {
			t.Errorf("ends with %d: %s", code, out)
		}
	})
	t.Run("together", func(t *testing.T) {
		t.Run("walk", func(t *testing.T) {
			t.Parallel()
			calls, certificates := Walk(t, in.Access(), "walk", 4*time.Second)
			t.Logf("%d calls, none failed; %d certificates", calls, certificates)
		})
		t.Run("agent killed", func(t *testing.T) {
			t.Parallel()
			agentKilled(t, in)
		})
	})
	t.Run("kills", func(t *testing.T) { killsOn(t, in, "kills", 2, 0) })
	in.WantNothingLeft(t)
	t.Run("damage", func(t *testing.T) { damaged(t, in) })
	in.Start(t)
	in.WaitReady(t)
	in.Stop(t)
}

// damaged damages files of a stopped installation. It must say which service's state is damaged, and leave all of it as it is.
func damaged(t *testing.T, in *Installation) {
	for _, c := range []struct {
		name, service, file string
		damage              func([]byte) []byte
		says                string
	}{
		{"database's head", "workspace", "db.sqlite", func(b []byte) []byte { copy(b, "not a database at all"); return b }, "db.sqlite"},
		{"database's middle", "workspace", "db.sqlite", func(b []byte) []byte {
			for i := 4096; i < len(b); i++ {
				b[i] ^= 0x5a
			}
			return b
		}, "db.sqlite"},
		{"seal key cut off", "compute", "seal.key", func(b []byte) []byte { return b[:len(b)/2] }, "seal.key"},
		{"seal key of another", "compute", "seal.key", nil, "seal.key"},
		{"seal key missing", "compute", "seal.key", func([]byte) []byte { return nil }, "seal.key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(in.Data, c.service)
			path := filepath.Join(dir, c.file)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := os.WriteFile(path, good, 0o600); err != nil {
					t.Fatal(err)
				}
			}()
			var bad []byte
			if c.damage != nil {
				bad = c.damage(append([]byte(nil), good...))
			} else if bad, err = os.ReadFile(filepath.Join(in.Data, "telemetry", c.file)); err != nil {
				t.Fatal(err)
			}
			if bad == nil {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, bad, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := digests(t, dir)
			code, out := Run(t, Environment(in.base), "up", "--data", in.Data, "--listen", strings.TrimPrefix(in.URL, "https://"), "--leaf-life", LeafLife.String())
			if code == 0 || !strings.Contains(out, c.service) || !strings.Contains(out, c.says) {
				t.Errorf("it ends with %d and does not name %s of %s: %s", code, c.says, c.service, out)
			}
			after := digests(t, dir)
			for _, m := range []map[string]string{before, after} {
				maps.DeleteFunc(m, func(path, _ string) bool { return strings.HasPrefix(path, "etcd/") }) // certificates made anew at each start
			}
			if !maps.Equal(before, after) {
				t.Errorf("the state was touched:\n%v\n%v", before, after)
			}
		})
	}
}

// D10: what keeps an installation from starting is named, and nothing is left behind.
func TestDoesNotStart(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Run("a port in use", func(t *testing.T) {
		home := t.TempDir()
		listen := freePorts(t)
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			t.Fatal(err)
		}
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", listen)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		data := filepath.Join(home, "data")
		code, out := Run(t, Environment(home), "up", "--data", data, "--listen", net.JoinHostPort(host, port))
		if code == 0 || !strings.Contains(out, listen) || !strings.Contains(out, "--listen") {
			t.Errorf("ends with %d: %s", code, out)
		}
		if d := digests(t, data); len(d) > 1 { // the lock
			t.Errorf("left %v", d)
		}
	})
	t.Run("a folder that cannot be written", func(t *testing.T) {
		home := t.TempDir()
		data := filepath.Join(home, "data")
		if err := os.Mkdir(data, 0o500); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), startLimit)
		defer cancel()
		args := []string{"up", "--data", data, "--listen", freePorts(t)}
		cmd := exec.CommandContext(ctx, Binary(), args...)
		cmd.Env = Environment(home)
		if os.Getuid() == 0 { // whom permissions do not hold: as nobody, who must be able to reach the program
			world, err := os.MkdirTemp("", "proc-world") //nolint:usetesting // above it lie folders that nobody may enter
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(world) })
			program, folder := filepath.Join(world, "redoubt"), filepath.Join(world, "data")
			b, err := os.ReadFile(Binary())
			if err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{os.Chmod(world, 0o755), os.WriteFile(program, b, 0o755), os.Mkdir(folder, 0o755)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			data = folder
			cmd = exec.CommandContext(ctx, program, "up", "--data", data, "--listen", freePorts(t))
			cmd.Dir, cmd.Env = world, Environment(world)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() <= 0 || !strings.Contains(string(out), data) || !strings.Contains(string(out), "permission denied") {
			t.Errorf("ends with %d: %s", cmd.ProcessState.ExitCode(), out)
		}
	})
}
