package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/stage"
)

// identity is the user that a run has on the machine.
type identity struct {
	uid, gid int
	own      bool // it is the run's own, not the agent's
}

// unused is where host users for runs begin, and how many there are: above the range that systemd gives to containers,
// below what a signed 32-bit number holds.
const (
	unused      = 0x70000000
	unusedCount = 1 << 24
)

// chooseIdentity draws a host user for a run where the agent may use another than its own.
func chooseIdentity() (identity, error) {
	self := identity{uid: os.Geteuid(), gid: os.Getegid()}
	if self.uid != 0 {
		return self, nil
	}
	uid, whole, err := drawID("/proc/self/uid_map")
	if err != nil {
		return self, err
	}
	gid, _, err := drawID("/proc/self/gid_map")
	if err != nil {
		return self, err
	}
	able, err := has(unix.CAP_SYS_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_CHOWN)
	switch {
	case err != nil:
		return self, err
	case able && uid > 0 && gid > 0:
		return identity{uid: uid, gid: gid, own: true}, nil
	case whole:
		return self, errors.New("root without CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID or CAP_CHOWN cannot give a run another user")
	}
	return self, nil // root only inside a user namespace: an ordinary user to the kernel
}

// drawID draws a number from those that this process's user namespace knows: from the unused range where that is known,
// otherwise from the end of the longest one; 0 when there is none to spare. whole says that it knows them all.
func drawID(path string) (id int, whole bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = f.Close() }()
	var longestStart, longest int
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		var inside, outside, count int
		if _, err := fmt.Sscan(scanner.Text(), &inside, &outside, &count); err != nil {
			return 0, false, fmt.Errorf("read %s: %w", path, err)
		}
		if inside <= unused && inside+count >= unused+unusedCount {
			return unused + rand.IntN(unusedCount), inside == 0 && outside == 0, nil
		}
		if count > longest {
			longestStart, longest = inside, count
		}
	}
	const spare = 4096
	if longest < 2*spare {
		return 0, false, nil
	}
	return longestStart + longest - 2 - rand.IntN(spare), false, nil // the last is often nobody
}

// has tells whether this process has all of the capabilities.
func has(capabilities ...int) (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, err
	}
	for _, c := range capabilities {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false, nil
		}
	}
	return true, nil
}

// attributes are those of the init's process: its namespaces, its user, and that it dies with the calling thread.
func (id identity) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
			unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: stage.UID, HostID: id.uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: stage.GID, HostID: id.gid, Size: 1}},
		AmbientCaps: stage.Capabilities,
		Pdeathsig:   syscall.SIGKILL,
		Setsid:      true,
	}
	if id.own {
		// Also empties the supplementary groups; an ordinary user keeps his, and the file tree keeps them of no use.
		attr.GidMappingsEnableSetgroups = true
		attr.Credential = &syscall.Credential{Uid: stage.UID, Gid: stage.GID}
	}
	return attr
}
