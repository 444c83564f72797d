package apart

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// argv0 is what a worker is started with, and nothing else.
const argv0 = "redoubt-password-worker"

// socketFD is the one descriptor of a worker besides the standard ones, which lead to /dev/null.
const socketFD = 3

var hooked atomic.Bool

// Maybe becomes a worker and never returns, if this process was started as one. Else it does nothing but to say that this program can start
// workers. It is called first thing in main, and in TestMain.
func Maybe() {
	if len(os.Args) != 1 || os.Args[0] != argv0 {
		hooked.Store(true)
		return
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP) // those are for who started this, and ends it
	socket := os.NewFile(socketFD, "socket")
	if socket == nil {
		end(1)
	}
	if err := errors.Join(giveUp(), loadFilter()); err != nil {
		_ = say(socket, saidProblem, []byte(err.Error()))
		end(1)
	}
	if err := say(socket, saidReady, nil); err != nil {
		end(1)
	}
	var buf [jobHeader + MaxSalt + MaxPassword]byte
	for {
		job, err := readJob(socket, &buf)
		if err != nil {
			end(0) // who started this is gone, or has no more work
		}
		key := job.Compute()
		clear(buf[:])
		if err := say(socket, saidKey, key); err != nil {
			end(0)
		}
		clear(key)
		runtime.GC() // the next hash takes the same memory
	}
}

// end ends the process, which is a worker and nothing else.
func end(code int) { os.Exit(code) } //nolint:forbidigo // a worker has no other main

// spare is what a worker may have beside the largest hash, in bytes.
const spare = 256 << 20

// giveUp is the one half of being confined: nothing that was inherited, limits, no dump. What only makes a better neighbour may fail.
func giveUp() error {
	unix.Umask(0o077)
	yield()
	if err := closeOthers(); err != nil {
		return fmt.Errorf("close what was inherited: %w", err)
	}
	has, err := dataBytes()
	if err != nil {
		return fmt.Errorf("read its own size: %w", err)
	}
	for _, l := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"core dumps", unix.RLIMIT_CORE, 1}, // not 0: core(5), where a program takes the dumps
		{"file size", unix.RLIMIT_FSIZE, 0},
		{"memory", unix.RLIMIT_DATA, has + MaxMemory<<10 + spare},
	} {
		var old unix.Rlimit
		if err := unix.Getrlimit(l.resource, &old); err != nil {
			return fmt.Errorf("read the limit of %s: %w", l.name, err)
		}
		value := min(l.value, old.Max)
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide its memory: %w", err)
	}
	return nil
}

// loadFilter is the other half: all threads, those of the runtime too, can compute and no more.
func loadFilter() error {
	policy, err := policy()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // no_new_privs is a thread's, and is given to the others with the filter
	defer runtime.UnlockOSThread()
	if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy}); err != nil {
		return fmt.Errorf("load the system call filter: %w", err)
	}
	return nil
}

// yield lets the worker go first when memory runs out, and last when the processor does. A thread has a priority of its own and gives it to those
// that it makes, so this goes on until none has come.
func yield() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	nice := niceness
	if raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		nice += 20 - raw // the call itself answers 20 less the value
	}
	done := make(map[int]bool)
	for more := true; more; {
		more = false
		threads, _ := os.ReadDir("/proc/self/task")
		for _, t := range threads {
			if id, err := strconv.Atoi(t.Name()); err == nil && !done[id] {
				_ = unix.Setpriority(unix.PRIO_PROCESS, id, nice)
				done[id], more = true, true
			}
		}
	}
}

// niceness of a worker beside who started it, as far as the scale goes (the kernel cuts it at 19): the least share of a processor that still is
// one, and whoever else wakes up goes first.
const niceness = 5

// closeOthers closes what a parent may have left open. What the runtime has for itself is anonymous and stays.
func closeOthers() error {
	const dir = "/proc/self/fd"
	open, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range open {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= socketFD {
			continue
		}
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || strings.HasPrefix(to, "anon_inode:") {
			continue // it was that of the listing
		}
		if err := unix.Close(fd); err != nil && err != unix.EBADF {
			return err
		}
	}
	return nil
}

// dataBytes is what RLIMIT_DATA counts of this process now.
func dataBytes() (uint64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmData:" {
			kib, err := strconv.ParseUint(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fs.ErrNotExist
}

// allowed are the system calls that a runtime needs which has all of its descriptors. All others answer EPERM.
const allowed = `
	read write close futex mmap munmap mremap madvise mprotect brk nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday
	rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall sched_yield sched_getaffinity getcpu getpid gettid getrandom
	epoll_create1 epoll_ctl epoll_pwait eventfd2 set_robust_list rseq membarrier exit exit_group`

func policy() (seccomp.Policy, error) {
	native, err := arch.GetInfo("")
	if err != nil {
		return seccomp.Policy{}, err
	}
	var names []string // an architecture lacks some
	for _, name := range strings.Fields(allowed) {
		if _, ok := native.SyscallNames[name]; ok {
			names = append(names, name)
		}
	}
	return seccomp.Policy{
		DefaultAction: seccomp.ActionErrno, // EPERM
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: names},
			// Its flags lie in memory that a filter cannot read, so it is missing, and clone is used instead.
			{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
			{Action: seccomp.ActionAllow, NamesWithCondtions: []seccomp.NameWithConditions{
				// Threads, and no processes.
				{Name: "clone", Conditions: []seccomp.Condition{{Argument: 0, Operation: seccomp.BitsSet, Value: unix.CLONE_THREAD}}},
				// Signals to its own threads.
				{Name: "tgkill", Conditions: []seccomp.Condition{{Argument: 0, Operation: seccomp.Equal, Value: uint64(os.Getpid())}}},
			}},
		},
	}, nil
}
