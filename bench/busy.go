package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"syscall"
)

// serveBusy is what passwords are compared with: it keeps as many cores busy as hash passwords, half of them, with next to no memory and at the
// lowest priority, until its standard input ends.
func serveBusy() error {
	if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19); err != nil { // before there are threads that would keep theirs
		return err
	}
	for range max(1, runtime.NumCPU()/2) {
		go func() {
			runtime.LockOSThread()
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19) // of this thread
			for n := uint64(1); n != 0; {
				n = n*6364136223846793005 + 1442695040888963407
				if n == 0 {
					n = 1
				}
			}
		}()
	}
	if err := json.NewEncoder(os.Stdout).Encode(hello{}); err != nil {
		return err
	}
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	return nil
}
