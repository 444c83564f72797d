//go:build linux

package stage

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// memoryEvery is how often memory is counted.
const memoryEvery = 100 * time.Millisecond

// watchMemory kills the run when its processes hold more than most bytes together. A limit of the address space alone
// would bound each process, not their sum.
func (s *stage) watchMemory(most int64) {
	ticker := time.NewTicker(memoryEvery)
	defer ticker.Stop()
	for range ticker.C {
		held := count(resident)
		if held > most {
			// Pages that processes share were counted once for each: count anew, exactly, which is slow.
			held = count(proportional)
		}
		s.peak.Store(max(s.peak.Load(), held))
		if held > most {
			s.memory.Store(true)
			_ = unix.Kill(-1, unix.SIGKILL) // all but process 1
		}
	}
}

// count sums what the processes of this pid namespace hold, without process 1.
func count(of func(pid string) int64) int64 {
	proc, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer func() { _ = proc.Close() }()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return 0
	}
	sum := int64(0)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 1 {
			sum += of(name)
		}
	}
	return sum
}

// resident is the memory of a process that is no file's. Shared memory counts: a mapping of it may stand in no file.
func resident(pid string) int64 {
	held, _ := kibibytes("/proc/"+pid+"/status", "RssAnon", "RssShmem")
	return held // 0 for a process that has ended
}

// proportional is the same with shared pages divided among those that share them, where the kernel can tell.
func proportional(pid string) int64 {
	if held, ok := kibibytes("/proc/"+pid+"/smaps_rollup", "Pss_Anon", "Pss_Shmem"); ok {
		return held
	}
	return resident(pid)
}

// kibibytes sums the named lines of a file of /proc, in bytes; ok says that there was one.
func kibibytes(path string, names ...string) (sum int64, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if slices.Contains(names, string(name)) {
			kib, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB")))), 10, 64)
			sum, ok = sum+kib<<10, ok || err == nil
		}
	}
	return sum, ok
}
