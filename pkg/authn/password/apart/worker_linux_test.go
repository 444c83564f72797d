package apart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// parentEnv makes this test binary a program that has a hash computed for ever: it says its worker's pid first.
const parentEnv = "APART_TEST_PARENT"

func TestMain(m *testing.M) {
	Maybe()
	if os.Getenv(parentEnv) != "" {
		p, err := New(Config{})
		if err != nil {
			panic(err)
		}
		if _, err := p.Compute(context.Background(), small("pw")); err != nil {
			panic(err)
		}
		fmt.Println(p.idle[0].cmd.Process.Pid)
		_, _ = p.Compute(context.Background(), long())
		select {}
	}
	os.Exit(m.Run())
}

func logger(w *bytes.Buffer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// long is a job of more than a second.
func long() Job {
	j := small("a password that is being hashed")
	j.Memory, j.Passes = 128<<10, MaxPasses
	return j
}

func newPool(t *testing.T, cfg Config) *Pool {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func compute(t *testing.T, p *Pool, j Job) {
	t.Helper()
	key, err := p.Compute(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	if want := j.Compute(); !bytes.Equal(key, want) {
		t.Fatalf("the worker gave %x, this process %x", key, want)
	}
}

// busy starts a long job and gives the worker that has it.
func busy(t *testing.T, p *Pool) (w *worker, result <-chan error) {
	t.Helper()
	end := make(chan error, 1)
	go func() { _, err := p.Compute(context.Background(), long()); end <- err }()
	await(t, "a worker", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.all) == 1 && len(p.idle) == 0 {
			for w = range p.all {
				return true
			}
		}
		return false
	})
	await(t, "the hash's memory", func() bool { return field(t, w.cmd.Process.Pid, "VmRSS") > 64<<10 })
	return w, end
}

// await waits for as long as a slow machine needs.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there is no end of waiting for %s", what)
		}
	}
}

// field is a number of /proc/pid/status, 0 where the process is gone.
func field(t *testing.T, pid int, name string) int {
	t.Helper()
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// A1
func TestCompute(t *testing.T) {
	p := newPool(t, Config{Lanes: 2})
	for _, pw := range []string{"correct horse", "", "\x00\xff", strings.Repeat("p", MaxPassword)} {
		j := small(pw)
		compute(t, p, j)
		j.Lanes, j.Passes, j.KeyBytes = 2, 3, 64
		compute(t, p, j)
	}
	if s := p.Stats(); s.Started != 1 || s.Failed != 0 {
		t.Errorf("%+v for jobs one after the other", s)
	}
	if _, err := p.Compute(t.Context(), Job{}); fault.Code(err) != codes.Internal {
		t.Errorf("a job of nothing: %v", err)
	}
}

// A hash that is under way when its worker is killed is no match and no mismatch: that one caller is told to come back, and the next one is served.
func TestKilledWorker(t *testing.T) {
	var log bytes.Buffer
	p := newPool(t, Config{Logger: logger(&log)})
	w, end := busy(t, p)
	if err := syscall.Kill(w.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := <-end
	if fault.Code(err) != codes.Unavailable || fault.ReasonOf(err) != faultv1.Reason_SERVICE_UNAVAILABLE {
		t.Errorf("the job of the killed worker: %v", err)
	}
	compute(t, p, small("pw"))
	if s := p.Stats(); s.Started != 2 || s.Failed != 1 {
		t.Errorf("%+v", s)
	}
	if strings.Count(log.String(), "level=ERROR") != 1 {
		t.Errorf("logged %q", log.String())
	}
	// One that is killed while it has nothing to do fails nobody.
	p.mu.Lock()
	idle := p.idle[0]
	p.mu.Unlock()
	if err := syscall.Kill(idle.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-idle.over
	compute(t, p, small("pw"))
}

// A worker that is silent is killed, not waited for.
func TestSilentWorker(t *testing.T) {
	p := newPool(t, Config{})
	compute(t, p, small("pw"))
	p.mu.Lock()
	p.cfg.Patience = 200 * time.Millisecond
	w := p.idle[0]
	p.mu.Unlock()
	if err := syscall.Kill(w.cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := p.Compute(t.Context(), small("pw")); fault.Code(err) != codes.Unavailable || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) > 30*time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	<-w.over
}

// Nothing of a password can be read from outside, and a worker can do nothing but what it is for.
func TestConfined(t *testing.T) {
	leak, err := os.Open("/dev/null") // a descriptor that would be inherited
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = leak.Close() }()
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: core.Max, Max: core.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &core) }()
	p := newPool(t, Config{})
	w, end := busy(t, p)
	dir := fmt.Sprintf("/proc/%d/", w.cmd.Process.Pid)
	for _, name := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(dir + name)
		if name == "environ" && os.Geteuid() != 0 {
			if !errors.Is(err, os.ErrPermission) {
				t.Errorf("its own user may look into it: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if name == "cmdline" && string(text) != argv0+"\x00" || bytes.Contains(text, long().Password) {
			t.Errorf("%s is %q", name, text)
		}
		if name == "environ" && string(text) != "GOMAXPROCS=1\x00GOGC=off\x00" {
			t.Errorf("%s is %q", name, text)
		}
	}
	open, err := os.ReadDir(dir + "fd")
	if err != nil && (os.Geteuid() == 0 || !errors.Is(err, os.ErrPermission)) {
		t.Fatal(err)
	}
	for _, e := range open {
		to, err := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		fd, _ := strconv.Atoi(e.Name())
		if err != nil || fd <= 2 && to != "/dev/null" || fd == 3 && !strings.HasPrefix(to, "socket:") || fd > 3 && !strings.HasPrefix(to, "anon_inode:") {
			t.Errorf("descriptor %d is %s %v", fd, to, err)
		}
	}
	limits, err := os.ReadFile(dir + "limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		f := strings.Fields(line)
		if strings.HasPrefix(line, "Max core file size") && f[4] != strconv.FormatUint(min(core.Max, 1), 10) || strings.HasPrefix(line, "Max data size") && f[3] == "unlimited" || strings.HasPrefix(line, "Max file size") && f[3] != "0" {
			t.Error(line)
		}
	}
	if score, err := os.ReadFile(dir + "oom_score_adj"); err != nil || strings.TrimSpace(string(score)) != "1000" {
		t.Errorf("oom_score_adj is %s %v", score, err)
	}
	ownRaw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir(dir + "task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		id, _ := strconv.Atoi(thread.Name())
		raw, err := unix.Getpriority(unix.PRIO_PROCESS, id)
		if nice := 20 - raw; err != nil || nice != min(19, 20-ownRaw+niceness) {
			t.Errorf("thread %d has the priority %d %v, this process %d", id, nice, err, 20-ownRaw)
		}
		for name, want := range map[string]int{"NoNewPrivs": 1, "Seccomp": 2} {
			if got := field(t, id, name); got != want {
				t.Errorf("thread %d has %s %d", id, name, got)
			}
		}
	}
	if len(threads) < 2 {
		t.Errorf("%d threads: the runtime has more, are those meant?", len(threads))
	}
	w.end()
	<-end
}

// What a confined process may not do it cannot: a child that is confined as a worker is tries.
func TestConfinedTries(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestTries$", "-test.v")
	cmd.Env = append(os.Environ(), "APART_TEST_TRIES=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	at := bytes.IndexByte(out, '{')
	var got map[string]string
	if at < 0 || json.NewDecoder(bytes.NewReader(out[at:])).Decode(&got) != nil {
		t.Fatalf("it said %s", out)
	}
	for _, try := range []string{"open", "socket", "execute", "fork", "signal its parent", "read its parent", "priority"} {
		if got[try] != "operation not permitted" {
			t.Errorf("%s: %q", try, got[try])
		}
	}
	if got["dumpable"] != "0" {
		t.Errorf("it is dumpable: %s", got["dumpable"])
	}
}

func TestTries(t *testing.T) {
	if os.Getenv("APART_TEST_TRIES") == "" {
		t.Skip("a part of TestConfinedTries")
	}
	if err := giveUp(); err != nil {
		t.Fatal(err)
	}
	n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0) // which nobody may ask who is confined
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{"dumpable": strconv.Itoa(n)}
	if err := loadFilter(); err != nil {
		t.Fatal(err)
	}
	try := func(name string, number uintptr, args ...uintptr) {
		var a [4]uintptr
		copy(a[:], args)
		_, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], 0, 0)
		said[name] = errno.Error()
	}
	try("open", unix.SYS_OPENAT, 0, 0)
	try("socket", unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM)
	try("execute", unix.SYS_EXECVE)
	try("fork", unix.SYS_CLONE, uintptr(syscall.SIGCHLD))
	try("signal its parent", unix.SYS_KILL, uintptr(os.Getppid()), 0)
	try("read its parent", unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()))
	try("priority", unix.SYS_SETPRIORITY, unix.PRIO_PROCESS)
	small("pw").Compute()
	text, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.Write(append(text, '\n'))
	syscall.Exit(0)
}

// kill -9 of who started a worker leaves nothing behind, even in the middle of a hash.
func TestParentKilled(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), parentEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	await(t, "the long hash", func() bool { return field(t, pid, "VmRSS") > 64<<10 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for begun := time.Now(); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > time.Second {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the worker outlives who started it")
		}
	}
}

// alive is whether a process runs; a dead one may wait for whoever takes orphans.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// The other way by which a worker learns that nobody needs it.
func TestSocketClosed(t *testing.T) {
	p := newPool(t, Config{})
	compute(t, p, small("pw"))
	p.mu.Lock()
	w := p.idle[0]
	p.mu.Unlock()
	_ = w.conn.(*net.UnixConn).CloseWrite()
	select {
	case <-w.over:
	case <-time.After(30 * time.Second):
		t.Fatal("it waits for work that cannot come")
	}
	if !w.cmd.ProcessState.Success() {
		t.Errorf("it ended by %v", w.cmd.ProcessState)
	}
}

// Signals for the group or the service of who started it are not for the worker.
func TestSignalsAreIgnored(t *testing.T) {
	p := newPool(t, Config{})
	compute(t, p, small("pw"))
	pid := p.idle[0].cmd.Process.Pid
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	compute(t, p, small("pw"))
	if s := p.Stats(); s.Started != 1 {
		t.Errorf("%+v", s)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("its session is %d %v", sid, err)
	}
}

// An idle pool costs nothing, and starts again.
func TestIdle(t *testing.T) {
	p := newPool(t, Config{Idle: 50 * time.Millisecond})
	compute(t, p, small("pw"))
	await(t, "the worker's end", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.all) == 0 })
	compute(t, p, small("pw"))
	if s := p.Stats(); s.Started != 2 {
		t.Errorf("%+v", s)
	}
}

// The memory of a hash is used again by the next one.
func TestMemoryIsUsedAgain(t *testing.T) {
	p := newPool(t, Config{})
	j := small("pw")
	j.Memory = 64 << 10
	var at [2]int
	for i := range 8 {
		compute(t, p, j)
		at[min(i, 1)] = field(t, p.idle[0].cmd.Process.Pid, "VmHWM")
	}
	if at[1]-at[0] > 32<<10 {
		t.Errorf("at most %d KiB in the first hash, %d in eight", at[0], at[1])
	}
}

func TestClose(t *testing.T) {
	p := newPool(t, Config{Patience: time.Hour}) // what ends the job is Close
	w, end := busy(t, p)
	p.Close()
	if err := <-end; fault.Code(err) != codes.Unavailable {
		t.Errorf("the job under way: %v", err)
	}
	<-w.over
	if _, err := p.Compute(t.Context(), small("pw")); fault.Code(err) != codes.Unavailable {
		t.Errorf("the next job: %v", err)
	}
}

func TestNeedsMaybe(t *testing.T) {
	hooked.Store(false)
	defer hooked.Store(true)
	if _, err := New(Config{}); err == nil {
		t.Error("a program that would start itself again without end is let to")
	}
}

func TestCannotStart(t *testing.T) {
	var log bytes.Buffer
	p := newPool(t, Config{Logger: logger(&log)})
	old := program
	program = "/nowhere"
	defer func() { program = old }()
	for range 3 {
		if _, err := p.Compute(t.Context(), small("pw")); fault.Code(err) != codes.Unavailable {
			t.Errorf("%v", err)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("said %d times: %s", n, log.String())
	}
	program = old
	compute(t, p, small("pw"))
}
