//go:build redoubt_fault_clock

package node

import (
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clockOffset is what the file that REDOUBT_FAULT_CLOCK names holds: nanoseconds, in the machine's byte order. It is shared with whoever
// makes the clock jump.
var clockOffset = func() *atomic.Int64 {
	path := os.Getenv("REDOUBT_FAULT_CLOCK")
	if path == "" {
		return new(atomic.Int64)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	defer func() { _ = f.Close() }()
	b, err := unix.Mmap(int(f.Fd()), 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*atomic.Int64)(unsafe.Pointer(&b[0])) //nolint:gosec // eight bytes, at the begin of a page
}()

// systemClock is the machine's clock and what it is off, without a monotonic part: for tests alone, with this build tag. Also what is
// measured between two readings jumps with it, which is worse than what a real clock does.
func systemClock() time.Time { return time.Now().Round(0).Add(time.Duration(clockOffset.Load())) }
