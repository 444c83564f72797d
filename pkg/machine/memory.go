// Package machine owns what a process can know of the machine it runs on, or of the container.
//
// Trust boundary: /proc and /sys/fs/cgroup, which are the kernel's. Whoever mounts others there decides what is believed.
//
// Invariants: what cannot be told is 0, never a guess.
package machine

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"strings"
)

// limits are the files in which a container finds what it may use, of both versions of control groups.
var limits = []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}

// Memory is how many bytes this process may use at most: the machine's, or what its container may have where that is less; 0 where it
// cannot be told.
func Memory() int64 {
	whole := total("/proc/meminfo")
	if limit := Limit(); limit > 0 && (whole == 0 || limit < whole) {
		return limit
	}
	return whole
}

// Limit is how many bytes the container may use; 0 where there is no container, or no limit.
func Limit() int64 {
	for _, path := range limits {
		if b := number(path); b > 0 {
			return b
		}
	}
	return 0
}

// number reads a limit; 0 where there is none, which version 1 writes as a number that no machine has.
func number(path string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	b, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || b <= 0 || b > math.MaxInt64/4 {
		return 0
	}
	return b
}

func total(path string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if fields := strings.Fields(string(line)); len(fields) > 1 && fields[0] == "MemTotal:" {
			if kib, err := strconv.ParseInt(fields[1], 10, 64); err == nil && kib > 0 {
				return kib << 10
			}
		}
	}
	return 0
}
