//go:build linux

package rootfs

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// files are those of /etc that are ours: nothing of the machine's users, names or resolvers is told.
//
//nolint:gosec // no user of these has a password
var files = map[string]string{
	"/etc/passwd":        "root:x:0:0:root:/:/sbin/nologin\nrun:x:1000:1000:run:/scratch:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
	"/etc/group":         "root:x:0:\nrun:x:1000:\nnogroup:x:65534:\n",
	"/etc/hosts":         "127.0.0.1 localhost run\n::1 localhost\n",
	"/etc/hostname":      "run\n",
	"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
	"/etc/resolv.conf":   "",
	"/etc/host.conf":     "multi on\n",
}

var links = map[string]string{
	"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	"/etc/mtab": "/proc/mounts",
}

// Build makes the root of the calling process's mount namespace anew. The entries' trees stand in trees at the same index,
// -1 for a link; all of them, and the volume, are left open for the caller. The platform's files stand in Platform, by name. The old
// root is gone afterwards.
func Build(entries []Entry, trees []int, volume int, platform map[string][]byte) error {
	// From here the propagation of what the machine mounts or unmounts ends.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The kernel gives a new /proc only where the old one can still be seen.
	proc, err := processFS()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(proc) }()
	base, err := memoryFS(map[string]string{"source": "root", "size": "4m", "mode": "0755"})
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(base) }()
	if err := enter(base); err != nil {
		return err
	}
	for path, target := range links {
		if err := link(path, target); err != nil {
			return err
		}
	}
	for path, text := range files {
		if err := write(path, text); err != nil {
			return err
		}
	}
	for name, content := range platform {
		if err := write(filepath.Join(Platform, name), string(content)); err != nil {
			return err
		}
	}
	if err := attach(proc, "/proc", true); err != nil {
		return err
	}
	if err := attachVolume(volume); err != nil {
		return err
	}
	for i, entry := range entries {
		if entry.Link != "" {
			err = link(entry.Path, entry.Link)
		} else {
			err = attach(trees[i], entry.Path, entry.Dir)
		}
		if err != nil {
			return err
		}
	}
	err = unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}

// enter makes the mount base the root, and lets go of the old one.
func enter(base int) error {
	// It has to be attached somewhere for a moment, and /proc is a folder that surely exists.
	if err := unix.MoveMount(base, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the root: %w", err)
	}
	if err := unix.Fchdir(base); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	// The old root is stacked onto the new one and taken off again, so it needs no folder.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	return nil
}

// attachVolume shows the volume's folders at their places, and nowhere else.
func attachVolume(volume int) error {
	const whole = "/volume"
	if err := attach(volume, whole, true); err != nil {
		return err
	}
	for _, place := range places {
		fd, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(whole, place.folder), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open %s of the volume: %w", place.folder, err)
		}
		err = attach(fd, place.path, true)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
	}
	if err := unix.Unmount(whole, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("hide the volume: %w", err)
	}
	return os.Remove(whole)
}

// attach attaches a detached mount at path, which is made.
func attach(fd int, path string, dir bool) error {
	var err error
	if dir {
		err = os.MkdirAll(path, 0o755)
	} else {
		err = write(path, "")
	}
	if err != nil {
		return fmt.Errorf("make the place of a mount: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

func link(path, target string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

func write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
