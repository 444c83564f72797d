package cli

import "golang.org/x/sys/unix"

// NoCores keeps the memory of this process, and of those that it starts, off the disk: no core dump is written when one of them crashes. A
// limit of one byte, and not of none, since Linux looks away from the limit where a program takes the dumps, but for this very value
// (core(5)).
func NoCores() error {
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})
}
