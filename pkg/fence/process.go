package fence

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process tells a process from every other one that was or will be, as far as one can look at it from beside it.
type process struct {
	Boot  string `json:"boot,omitempty"`  // of the kernel
	Space string `json:"space,omitempty"` // the namespace that PID counts in
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot
}

// thisProcess is zero where the system does not tell.
func thisProcess() process {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, e := os.Readlink("/proc/self/ns/pid")
	start, alive, known := lives(os.Getpid())
	if err != nil || e != nil || !alive || !known {
		return process{}
	}
	return process{Boot: strings.TrimSpace(string(boot)), Space: space, PID: os.Getpid(), Start: start}
}

// dead reports whether p is known to be over, seen from this process: false where it cannot be seen.
func (p process) dead(from process) bool {
	if p.PID == 0 || from.PID == 0 || p.Boot != from.Boot || p.Space != from.Space {
		return false
	}
	start, alive, known := lives(p.PID)
	return known && (!alive || start != p.Start)
}

// lives tells whether a process is there and more than a corpse, and when it started.
func lives(pid int) (start uint64, alive, known bool) {
	if unix.Kill(pid, 0) == unix.ESRCH { // asked of the kernel: /proc may hide the processes of others
		return 0, false, true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The name in parentheses may hold anything. After it: state, …, and as the 20th the start (proc(5)).
	i := bytes.LastIndexByte(stat, ')')
	if err != nil || i < 0 {
		return 0, false, false
	}
	fields := strings.Fields(string(stat[i+1:]))
	if len(fields) < 20 {
		return 0, false, false
	}
	if start, err = strconv.ParseUint(fields[19], 10, 64); err != nil {
		return 0, false, false
	}
	if fields[0] == "Z" || fields[0] == "X" {
		// The first thread alone may be over.
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return start, err != nil || len(threads) > 1, err == nil
	}
	return start, true, true
}
