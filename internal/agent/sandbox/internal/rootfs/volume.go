//go:build linux

package rootfs

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Where a run finds what it may write. All of it is on the volume.
const (
	Work    = "/work"    // working folder, filled with the snapshot
	Outputs = "/outputs" // what is kept after the run
	Scratch = "/scratch" // the run's home
	Temp    = "/tmp"
	Shared  = "/dev/shm" // POSIX shared memory
)

// Platform is where a run finds what the platform gives it beside, read-only. It is not on the volume.
const Platform = "/redoubt"

// places maps the volume's folders to where they are seen.
var places = []struct{ folder, path string }{
	{"work", Work}, {"outputs", Outputs}, {"scratch", Scratch}, {"tmp", Temp}, {"shm", Shared},
}

// NewVolume makes a volume of at most size bytes as a detached mount, with its folders, owned by uid and gid as the calling
// process numbers them. It lives in memory, is never written to a disk of ours, and is gone with its last descriptor and
// mount. It needs CAP_SYS_ADMIN over the mount namespace.
func NewVolume(size int64, uid, gid int) (int, error) {
	fd, err := memoryFS(map[string]string{
		"source":    "volume",
		"size":      strconv.FormatInt(size, 10),
		"nr_inodes": strconv.FormatInt(min(max(size/4096, 4096), 1<<20), 10),
		"mode":      "0755",
	})
	if err != nil {
		return -1, err
	}
	// The descriptor of a mount is only a path: below it, files are made through a folder's descriptor.
	at := "/proc/self/fd/" + strconv.Itoa(fd) + "/"
	for _, place := range places {
		err := os.Mkdir(at+place.folder, 0o700)
		if err == nil {
			err = os.Chown(at+place.folder, uid, gid)
		}
		if err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("make the volume's folders: %w", err)
		}
	}
	return fd, nil
}

// memoryFS makes a file system in memory as a detached mount.
func memoryFS(options map[string]string) (int, error) {
	fd, err := fileSystem("tmpfs", options, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, fmt.Errorf("make a file system in memory: %w", err)
	}
	return fd, nil
}

// processFS makes a view of the calling process's pid namespace, in which a process sees only what it may inspect.
func processFS() (int, error) {
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	fd, err := fileSystem("proc", map[string]string{"source": "proc", "hidepid": "invisible"}, attrs)
	if err != nil {
		return -1, fmt.Errorf("make a view of the processes: %w", err)
	}
	return fd, nil
}

func fileSystem(kind string, options map[string]string, attrs int) (int, error) {
	fsfd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fsfd) }()
	for key, value := range options {
		if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
			return -1, fmt.Errorf("%s=%s: %w", key, value, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
}
