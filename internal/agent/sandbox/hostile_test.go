//go:build linux

package sandbox_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostile has a command try what it should not be able to do. Each attack is shown to work without the sandbox first,
// as the agent's own user: an attack that fails there too proves nothing.
func TestHostile(t *testing.T) {
	t.Parallel()
	need(t)
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	if err := os.WriteFile(canary, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	shown := t.TempDir()
	if err := os.Chmod(shown, 0o777); err != nil {
		t.Fatal(err)
	}
	unixSocket := filepath.Join(dir, "socket")
	abstract := "@sandbox-test-" + strconv.Itoa(os.Getpid())
	listen(t, "unix", unixSocket)
	listen(t, "unix", abstract)
	tcp := listen(t, "tcp", "127.0.0.1:0").Addr().String()
	// A descriptor that someone forgot to close on execution.
	leaked, err := unix.Open(canary, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(leaked) })
	const leakedAt = 200
	if err := unix.Dup3(leaked, leakedAt, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(leakedAt) })
	self := "/proc/" + strconv.Itoa(os.Getpid())
	victim, secret := victim(t)

	const (
		anyone = iota
		root   // works for root only, even without a sandbox
		docker // works where there is one
		first  // inside, process 1 is ours: outside it is another
	)
	cases := []struct {
		name string
		who  int
		args []string
	}{
		{"the agent's files", anyone, []string{"read", canary}},
		{"the agent's files past the root", anyone, []string{"read", "/.." + canary}},
		{"the machine's passwords", root, []string{"read", "/etc/shadow"}},
		{"the agent's folder", anyone, []string{"list", dir}},
		{"the agent's environment", anyone, []string{"read", self + "/environ"}},
		{"the agent's descriptors", anyone, []string{"list", self + "/fd"}},
		{"the agent's files by /proc", anyone, []string{"read", self + "/root" + canary}},
		{"the agent's program", anyone, []string{"link", self + "/exe"}},
		{"process 1's environment", first, []string{"read", "/proc/1/environ"}},
		{"process 1's program", first, []string{"link", "/proc/1/exe"}},
		{"process 1's descriptors", first, []string{"list", "/proc/1/fd"}},
		{"another's memory by /proc", anyone, []string{"memory", victim, secret}},
		{"another's memory", anyone, []string{"peek", victim, secret}},
		{"tracing another", anyone, []string{"trace", victim}},
		{"another's signals", anyone, []string{"signal", victim}},
		{"another's descriptors", anyone, []string{"pidfd", victim}},
		{"another's namespace", root, []string{"setns", "/proc/" + victim + "/ns/net"}},
		{"a forgotten descriptor", anyone, []string{"descriptor", strconv.Itoa(leakedAt)}},
		{"a socket", anyone, []string{"dial", "unix", unixSocket}},
		{"a socket without a path", anyone, []string{"dial", "unix", abstract}},
		{"a port of the machine", anyone, []string{"dial", "tcp", tcp}},
		{"docker", docker, []string{"dial", "unix", "/var/run/docker.sock"}},
		{"a path that is shown", anyone, []string{"write", filepath.Join(shown, "x")}},
		{"leaving a namespace", root, []string{"unshare"}},
		{"a user namespace", anyone, []string{"clone"}},
		{"clone3", anyone, []string{"clone3"}},
		{"mounting", anyone, []string{"mount"}},
		{"taking a tree of mounts", anyone, []string{"open_tree"}},
		{"another root", root, []string{"chroot"}},
		{"files by handle", root, []string{"handle"}},
		{"keyrings", anyone, []string{"keyring"}},
		{"io_uring", anyone, []string{"io_uring"}},
		{"userfaultfd", anyone, []string{"userfaultfd"}},
		{"bpf", root, []string{"bpf"}},
		{"performance events", anyone, []string{"perf"}},
		{"filters of its own", anyone, []string{"seccomp"}},
		{"another personality", anyone, []string{"personality"}},
		{"uncounted shared memory", anyone, []string{"shm"}},
		{"uncounted files in memory", anyone, []string{"memfd"}},
		{"kernel events", anyone, []string{"uevents"}},
		{"raw packets", anyone, []string{"packets"}},
		{"calls by 32-bit numbers", anyone, []string{"int80"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			config := helperConfig(t, "attack", c.args...)
			config.ReadOnlyPaths = append(config.ReadOnlyPaths, shown)
			free := exec.Command(config.Command[0], config.Command[1:]...)
			free.Dir = dir
			out, _ := free.CombinedOutput()
			works := strings.TrimSpace(string(out)) == "REACHED"
			switch {
			case works:
			case c.who == docker, c.who == first, c.who == root && os.Geteuid() != 0:
				// It is still tried inside.
			default:
				unlessForbidden(t, c.args[0], string(out))
			}
			exit, inside := run(t, config)
			if exit.Code != 1 || !strings.HasPrefix(inside, "REFUSED ") {
				t.Errorf("inside: %+v, %q", exit, inside)
			}
			t.Logf("without: %q inside: %q", out, inside)
		})
	}
}

// unlessForbidden fails the test for an attack that does not work without a sandbox either, unless this machine has a
// setting that says so.
func unlessForbidden(t *testing.T, attack, out string) {
	t.Helper()
	settings := map[string]string{
		"memory": "kernel/yama/ptrace_scope", "peek": "kernel/yama/ptrace_scope", "trace": "kernel/yama/ptrace_scope", "pidfd": "kernel/yama/ptrace_scope",
		"perf": "kernel/perf_event_paranoid", "io_uring": "kernel/io_uring_disabled", "userfaultfd": "vm/unprivileged_userfaultfd",
	}
	if setting, ok := settings[attack]; ok {
		if value, err := os.ReadFile("/proc/sys/" + setting); err == nil && strings.TrimSpace(string(value)) != "0" {
			t.Logf("not shown to work outside: %s is %s", setting, value)
			return
		}
	}
	if strings.Contains(out, "not implemented") {
		t.Logf("this kernel does not have it")
		return
	}
	if attack == "int80" && strings.Contains(out, "segmentation fault") {
		t.Logf("this kernel takes no int 0x80 from 64-bit code: what the filter does with it is not shown here")
		return
	}
	t.Errorf("without the sandbox it does not work either: %s", out)
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// victim is another process of the agent's user, and where its secret lies.
func victim(t *testing.T) (pid, secret string) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "helper:wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	said, err := line(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(said, &pid, &secret); err != nil {
		t.Fatal(err)
	}
	return pid, secret
}
