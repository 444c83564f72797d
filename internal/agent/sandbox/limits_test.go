//go:build linux

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
)

const mib = 1 << 20

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		args []string
	}{
		{"one process", []string{"touch", fmt.Sprint(400 * mib)}},
		{"shared, without a file", []string{"touch", fmt.Sprint(400 * mib), "shared"}},
		{"many processes", []string{"family", fmt.Sprint(100 * mib)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			config := helperConfig(t, c.args[0], c.args[1:]...)
			config.Limits.MemoryBytes = 250 * mib
			exit, out := run(t, config)
			if exit.Reason != sandbox.Memory || exit.Signal != syscall.SIGKILL || exit.PeakMemory < 250*mib {
				t.Errorf("%+v: %s", exit, out)
			}
		})
	}
	t.Run("within the limit", func(t *testing.T) {
		t.Parallel()
		config := helperConfig(t, "touch", fmt.Sprint(100*mib))
		config.Limits.MemoryBytes = 250 * mib
		reader, writer := io.Pipe()
		config.Stdout = writer
		t.Cleanup(func() { _ = writer.Close() })
		p := start(t, config)
		if said, err := line(reader); err != nil || said != "touched" {
			t.Fatalf("%q, %v", said, err)
		}
		go func() { _, _ = io.Copy(io.Discard, reader) }()
		select {
		case <-p.Done():
			exit, err := p.Wait(t.Context())
			t.Errorf("it ended: %+v, %v", exit, err)
		case <-time.After(300 * time.Millisecond): // three counts
		}
	})
	t.Run("address space", func(t *testing.T) {
		t.Parallel()
		if raceEnabled {
			t.Skip("the race detector's program does not start with a small address space")
		}
		config := helperConfig(t, "reserve", fmt.Sprint(4<<30))
		if exit, out := run(t, config); exit.Code != 0 {
			t.Errorf("without the limit: %+v, %s", exit, out)
		}
		config.Limits.AddressBytes = 3 << 30
		if exit, out := run(t, config); exit.Code != 1 || !strings.Contains(out, "cannot allocate memory") {
			t.Errorf("with the limit: %+v, %s", exit, out)
		}
	})
}

func TestDiskIsBounded(t *testing.T) {
	t.Parallel()
	config := helperConfig(t, "fill", "/work", "/outputs", "/scratch", "/tmp", "/dev/shm", "/", "/etc", "/dev", "/usr", "/proc", "/sys")
	config.Limits.DiskBytes = 16 * mib
	exit, out := run(t, config)
	last := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
	written, err := strconv.ParseInt(strings.TrimSpace(last), 10, 64)
	if exit.Code != 0 || err != nil || written < 15*mib || written > 16*mib {
		t.Errorf("%+v, %v: %s", exit, err, out)
	}
	if n := strings.Count(out, "cannot be written"); n != 6 {
		t.Errorf("%d folders cannot be written, want 6: %s", n, out)
	}

	config = helperConfig(t, "empty", "/tmp")
	config.Limits.DiskBytes = 16 * mib
	exit, out = run(t, config)
	files, err := strconv.Atoi(strings.TrimSpace(out))
	if exit.Code != 0 || err != nil || files < 4000 || files > 4096 {
		t.Errorf("%+v, %v: %s", exit, err, out)
	}

	config = helperConfig(t, "fill", "/tmp")
	config.Limits.FileBytes = mib
	if exit, out = run(t, config); exit.Code != 1 || !strings.Contains(out, "file too large") {
		t.Errorf("a file over its limit: %+v, %s", exit, out)
	}
}

func TestOpenFilesAreBounded(t *testing.T) {
	t.Parallel()
	config := helperConfig(t, "open")
	config.Limits.OpenFiles = 50
	exit, out := run(t, config)
	n, text, _ := strings.Cut(strings.TrimSpace(out), " ")
	if opened, err := strconv.Atoi(n); exit.Code != 0 || err != nil || opened > 50 || !strings.Contains(text, "too many open files") {
		t.Errorf("%+v: %s", exit, out)
	}
}

func TestProcessorTimeIsBounded(t *testing.T) {
	t.Parallel()
	config := shell("while :; do :; done")
	config.Limits.CPUTime = time.Second
	exit, out := run(t, config)
	if exit.Reason != sandbox.CPUTime || exit.Signal != syscall.SIGXCPU || exit.CPU < 500*time.Millisecond {
		t.Errorf("%+v: %s", exit, out)
	}
}

func TestProcessesAreBounded(t *testing.T) {
	t.Parallel()
	const most = 40
	config := helperConfig(t, "processes", fmt.Sprint(2*most))
	// It can start as many without the limit, here and inside.
	config.Limits.Processes = 1000
	if exit, out := run(t, config); exit.Code != 0 || strings.TrimSpace(out) != fmt.Sprint(2*most) {
		t.Errorf("without the limit: %+v, %s", exit, out)
	}
	config.Limits.Processes = most
	exit, out := run(t, config)
	n, text, _ := strings.Cut(strings.TrimSpace(out), " ")
	if started, err := strconv.Atoi(n); exit.Code != 0 || err != nil || started > most+10 || !strings.Contains(text, "resource temporarily unavailable") {
		t.Errorf("with the limit: %+v, %s", exit, out)
	}
}

func TestForkBomb(t *testing.T) {
	t.Parallel()
	// A shell that cannot fork ends, and that may happen early where others of the same user are many: a program that goes on trying.
	config := helperConfig(t, "bomb")
	config.Limits.Processes = 60
	p := start(t, config)
	eventually(t, "the bomb is as large as it may be", func() bool { return len(members(t, p.Pid())) >= 35 }) // its threads count too
	for range 20 {
		if n := len(members(t, p.Pid())); n > 75 {
			t.Errorf("%d processes", n)
		}
		// Others of the same user are not held up.
		if err := exec.Command("true").Run(); err != nil {
			t.Errorf("beside the bomb: %v", err)
		}
	}
	began := time.Now()
	pid := p.Pid()
	p.Close()
	t.Logf("killed in %v", time.Since(began))
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to kill the bomb", took)
	}
	if left := members(t, pid); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestAgentIsKilled kills an agent as an operator would, by signal 9, and looks at the run's processes.
func TestAgentIsKilled(t *testing.T) { // alone, since it takes the time
	need(t)
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "helper:agent")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	said, err := line(out)
	if err != nil {
		t.Fatal(err)
	}
	pid1, err := strconv.Atoi(said)
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	eventually(t, "the run has its processes", func() bool { pids = members(t, pid1); return len(pids) >= 4 }) // process 1, sh, two sleeps
	var watched []unix.PollFd
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		watched = append(watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	began := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for i := range watched {
		left := 500*time.Millisecond - time.Since(began)
		n, err := unix.Poll(watched[i:i+1], int(max(left, 0).Milliseconds()))
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(watched[i:i+1], int(max(left, 0).Milliseconds()))
		}
		if n != 1 || err != nil {
			t.Errorf("process %d lives %v after its agent: %v", pids[i], time.Since(began), err)
		}
	}
	t.Logf("%d processes ended within %v", len(pids), time.Since(began))
}

func TestKill(t *testing.T) { // alone, since it takes the time
	p := start(t, shell("trap '' TERM INT HUP; setsid sleep 1000 & sleep 1000 & while :; do sleep 1000; done"))
	eventually(t, "the run has its processes", func() bool { return len(members(t, p.Pid())) >= 5 })
	pid := p.Pid()
	began := time.Now()
	p.Kill()
	exit, err := p.Wait(t.Context())
	took := time.Since(began)
	if err != nil || exit.Reason != sandbox.Killed || exit.Code != 137 {
		t.Errorf("%+v, %v", exit, err)
	}
	t.Logf("killed in %v", took)
	if left := members(t, pid); took > 2*time.Second || len(left) > 0 {
		t.Errorf("after %v there are left %v", took, left)
	}
	p.Kill()
	p.Close()
	p.Close()
}

// TestNothingIsLeft counts descriptors and processes before and after runs that ended in every way.
func TestNothingIsLeft(t *testing.T) { // alone, since it counts what this process has
	need(t)
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	round := func() {
		missing := shell("")
		missing.Command = []string{"no-such-program"}
		unfilled := shell("true")
		unfilled.Populate = func(*os.Root) error { return errors.New("broken") }
		for _, config := range []sandbox.Config{shell("true"), shell("sleep 1000"), missing, unfilled} {
			p, err := sandbox.Start(t.Context(), config)
			if err != nil {
				continue
			}
			if config.Command[2] == "true" {
				if _, err := p.Wait(t.Context()); err != nil {
					t.Error(err)
				}
			}
			p.Close()
			<-p.Done()
		}
	}
	round() // what Go itself opens once is open now
	before := open()
	for range 3 {
		round()
	}
	// What a goroutine closes at its end may be open a moment longer; three leaks of one descriptor stay.
	after := open()
	for wait := time.Now().Add(5 * time.Second); after > before && time.Now().Before(wait); after = open() {
		<-time.After(10 * time.Millisecond)
	}
	if after > before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
	if left := members(t, os.Getpid()); len(left) != 1 {
		t.Errorf("processes are left: %v", left)
	}
}

// TestLost ends process 1 from outside, as the kernel does when memory runs out.
func TestLost(t *testing.T) {
	t.Parallel()
	p := start(t, shell("sleep 1000"))
	if err := unix.Kill(p.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(t.Context())
	if err == nil || exit.Reason != sandbox.Lost || exit.Code == 0 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// members lists the processes of the machine that are in the pid namespace of which pid1 is the first: itself, and all that
// descend from it, since a descendant that loses its parent becomes its child.
func members(t *testing.T, pid1 int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		var state string
		var parent int
		after := string(text[strings.LastIndexByte(string(text), ')')+1:])
		if _, err := fmt.Sscan(after, &state, &parent); err == nil && state != "Z" {
			parents[pid] = parent
		}
	}
	var found []int
	for pid := range parents {
		for at, ok := pid, true; ok; at, ok = parents[at] {
			if at == pid1 {
				found = append(found, pid)
				break
			}
		}
	}
	return found
}

// eventually asks until it is so, for at most ten seconds.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		case <-ticker.C:
		}
	}
}
