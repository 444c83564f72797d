//go:build !redoubt_fault_clock

package node

import "time"

// systemClock is the clock of a process where Options name none.
func systemClock() time.Time { return time.Now() }
