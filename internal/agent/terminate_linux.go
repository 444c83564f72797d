package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// terminate asks the command to end: SIGTERM to what process 1 of the sandbox started. A process that only has the number of
// one of those by now is not touched.
func terminate(initPid int) error {
	parent := strconv.Itoa(initPid)
	tasks, err := filepath.Glob("/proc/" + parent + "/task/*/children") // each thread has its own
	if err != nil {
		return err
	}
	var children []string
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		children = append(children, strings.Fields(string(list))...)
	}
	asked := errors.New("agent: no command to end")
	for _, field := range children {
		pid, err := strconv.Atoi(field)
		if err != nil {
			continue
		}
		p, err := os.FindProcess(pid) // holds the process, not its number
		if err != nil {
			continue
		}
		if parentOf(pid) == parent && p.Signal(syscall.SIGTERM) == nil {
			asked = nil
		}
		_ = p.Release()
	}
	return asked
}

func parentOf(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return ""
	}
	return fields[1]
}
