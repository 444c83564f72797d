package proc

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
)

// E1, D10: what has passed through an installation of several processes is looked for in the memory of each, which is what a core dump would
// hold, after the calls have ended. Go clears nothing that it gives free, so it may remain where it passed; nowhere else. And no core is
// written, though the limit around the processes allows one and Go is asked to crash.
func TestMemoryHoldsWhatPassedAndIsNotDumped(t *testing.T) {
	needSandbox(t)
	long(t)
	if os.Getuid() != 0 {
		t.Skip("only root can read the memory of processes that hide it")
	}
	allowCores(t)
	in := New(t, true)
	in.Stop(t)
	for _, p := range in.Processes {
		p.env = append(p.env, "GOTRACEBACK=crash")
	}
	in.Start(t)
	in.WaitReady(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := NewLab(ctx, in.Access(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	secret, file := []byte("canary-"+rand.Text()), []byte("canary-"+rand.Text())
	s, err := l.Secrets().SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: l.Workspace, SecretId: "memory", Value: secret})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := l.Secrets().AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: s.GetName()}); err != nil || !bytes.Equal(v.GetValue(), secret) {
		t.Fatalf("the secret's value: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.txt"), bytes.Repeat(append(file, '\n'), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot, err := l.UploadSnapshot(ctx, l.Workspace, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	const marker = "1000.0627" // seconds; nobody else sleeps so long
	run, err := l.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: l.Workspace, Compute: l.Compute, Snapshot: snapshot.GetName(), Command: []string{"sleep", marker}})
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, func() error {
		if len(marked(marker)) == 0 {
			return errors.New("the command does not run")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	type canary struct {
		bytes []byte
		in    []string // the processes that it passes
	}
	canaries := map[string]canary{
		"the administrator's password": {in.Password.Reveal(), []string{"gateway", "identity"}},
		"his token":                    {[]byte(l.Token), []string{"gateway", "identity", "workspace", "keyvault", "compute"}}, // where he called
		"a secret's value":             {secret, []string{"gateway", "keyvault"}},
		"a file of a snapshot":         {file, []string{"gateway", "workspace", "agent"}},
	}
	for _, name := range node.Services {
		if key := sealOf(t, in, name); key != nil {
			canaries["the seal of "+name] = canary{key, []string{name}}
		}
	}
	processes := map[string]int{}
	for _, p := range in.Processes {
		processes[p.Name] = p.cmd.Process.Pid
	}
	if found := agents(in.Data); len(found) > 0 {
		processes["agent"] = found[0]
	} else {
		t.Error("the run has no agent")
	}
	hits, searched := 0, int64(0)
	for _, name := range slices.Sorted(maps.Keys(processes)) {
		counts, size := searchMemory(t, processes[name], func(found func([]byte) int) map[string]int {
			out := map[string]int{}
			for what, c := range canaries {
				out[what] = found(c.bytes)
			}
			return out
		})
		searched += size
		for _, what := range slices.Sorted(maps.Keys(counts)) {
			n := counts[what]
			if n == 0 {
				continue
			}
			hits += n
			t.Logf("%-10s holds %s %d times", name, what, n)
			if !slices.Contains(canaries[what].in, name) {
				t.Errorf("%s holds %s, which does not pass it", name, what)
			}
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", processes[name]))
		if err != nil {
			t.Fatal(err)
		}
		if line := lineOf(limits, "Max core file size"); !slices.Equal(strings.Fields(line), []string{"Max", "core", "file", "size", "1", "1", "bytes"}) {
			t.Errorf("%s: %s", name, line)
		}
	}
	if hits == 0 || searched < 50<<20 {
		t.Errorf("%d hits in %d MiB: the search sees nothing", hits, searched>>20)
	}
	t.Logf("%d canaries in %d MiB of %d processes: %d hits, all where it passed", len(canaries), searched>>20, len(processes), hits)

	if _, err := l.Runs().CancelRun(ctx, &computev1.CancelRunRequest{Name: run.GetName()}); err != nil {
		t.Error(err)
	}
	if _, err := l.WaitRun(ctx, run.GetName(), nil); err != nil {
		t.Error(err)
	}
	for _, p := range in.Processes {
		if err := p.Signal(syscall.SIGABRT); err != nil {
			t.Error(err)
		}
		var exit *exec.ExitError
		if !errors.As(p.Err(), &exit) {
			t.Errorf("%s ended with %v", p.Name, p.Err())
			continue
		}
		if status, ok := exit.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.CoreDump() {
			t.Errorf("%s: %v, a core dump: %v", p.Name, exit, status.CoreDump())
		}
	}
}

// allowCores lifts the limit around the test and what it starts.
func allowCores(t *testing.T) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		t.Skipf("the limit of core dumps cannot be lifted, so it shows nothing: %v", err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &old) })
}

// sealOf is a service's seal as its process holds it, nil where it has none.
func sealOf(t *testing.T, in *Installation, service string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(in.Data, service, "seal.key"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lineOf(text, "key "), "key "))
	if err != nil || len(key) != 32 {
		t.Fatalf("the seal of %s is %d bytes, %v", service, len(key), err)
	}
	return key
}

func lineOf(text []byte, begin string) string {
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, begin) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// searchMemory counts what ask asks for in everything that a process can write.
func searchMemory(t *testing.T, pid int, ask func(found func([]byte) int) map[string]int) (counts map[string]int, size int64) {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = maps.Close() }()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	counts = map[string]int{}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		const step = 16 << 20
		for at := from; at < to; at += step {
			b := make([]byte, min(step+4096, to-at)) // what lies over a border is counted twice at most
			n, err := mem.ReadAt(b, at)
			if err != nil && !errors.Is(err, io.EOF) && n == 0 {
				continue
			}
			size += int64(min(n, step))
			for what, k := range ask(func(c []byte) int { return bytes.Count(b[:n], c) }) {
				counts[what] += k
			}
		}
	}
	return counts, size
}
