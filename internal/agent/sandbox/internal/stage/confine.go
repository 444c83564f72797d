//go:build linux

package stage

import (
	"fmt"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/rootfs"
)

// confine gives up what the calling thread has and locks it in, as far as that can be done before execution. It gives the
// version of Landlock that applies, 0 for none.
func confine(command Command) (int, error) {
	deprioritize()
	if err := limit(command.Limits); err != nil {
		return 0, err
	}
	if err := giveUpCapabilities(); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("set no_new_privs: %w", err)
	}
	version, err := landlocked(command.RequireLandlock)
	if err != nil {
		return 0, err
	}
	return version, loadFilter()
}

// deprioritize lets a run go first when memory runs out, and last when the processor does. Neither confines anything: the
// machine only answers better.
func deprioritize() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 10)
}

// limit sets the limits but for the address space, which would bind the launcher itself.
func limit(l Limits) error {
	for _, one := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"processes", unix.RLIMIT_NPROC, l.Processes},
		{"open files", unix.RLIMIT_NOFILE, l.OpenFiles},
		{"file size", unix.RLIMIT_FSIZE, l.FileBytes},
		{"processor time", unix.RLIMIT_CPU, l.CPUSeconds},
		{"core dumps", unix.RLIMIT_CORE, 0},
		{"message queues", unix.RLIMIT_MSGQUEUE, 0},
	} {
		if one.resource == unix.RLIMIT_CPU && one.value == 0 {
			continue
		}
		var old unix.Rlimit
		if err := unix.Getrlimit(one.resource, &old); err != nil {
			return fmt.Errorf("read the limit of %s: %w", one.name, err)
		}
		value := min(one.value, old.Max)
		limit := unix.Rlimit{Cur: value, Max: value}
		if one.resource == unix.RLIMIT_CPU {
			limit.Max = min(value+1, old.Max) // SIGXCPU first, and SIGKILL to whoever catches it
		}
		if err := unix.Setrlimit(one.resource, &limit); err != nil {
			return fmt.Errorf("limit %s: %w", one.name, err)
		}
	}
	return nil
}

// giveUpCapabilities empties every set of the thread's capabilities, and sees to it that none comes back.
func giveUpCapabilities() error {
	for c := uintptr(0); c < 64; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil {
			break // past the kernel's last
		}
		if has == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	const never = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<7 // NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, all locked; KEEP_CAPS locked off
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, never, 0, 0, 0); err != nil {
		return fmt.Errorf("lock the secure bits: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// landlocked restricts writing to the volume, whatever is mounted where, and keeps signals and abstract sockets inside.
func landlocked(required bool) (int, error) {
	version, err := llsys.LandlockGetABIVersion()
	if err != nil || version < 1 {
		if required {
			return 0, fmt.Errorf("this kernel has no Landlock, and it is required")
		}
		return 0, nil
	}
	config := landlock.Config{HandledAccessFS: landlock.V11.HandledAccessFS, Scoped: landlock.V11.Scoped}
	places := landlock.RWDirs(rootfs.Work, rootfs.Outputs, rootfs.Scratch, rootfs.Temp, rootfs.Shared)
	if version > 1 { // version 1 cannot allow to move files between folders
		places = places.WithRefer()
	}
	devices := landlock.RWFiles("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom").WithIoctlDev()
	if err := config.BestEffort().Restrict(landlock.RODirs("/"), places, devices); err != nil {
		return 0, fmt.Errorf("landlock: %w", err)
	}
	return version, nil
}
