//go:build linux

package rootfs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one path of the machine that is visible at the same place inside, read-only.
type Entry struct {
	Path   string // absolute and clean
	Link   string // the entry is a symbolic link with this target; nothing is opened
	Dir    bool   // the entry is a folder, with everything mounted below it
	Device bool   // the entry is a device node that may be used
}

// programs are where a system keeps its programs and libraries. Where they are links (merged /usr), the link is made again.
var programs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store"}

// settings are the files of /etc without which dynamic linking, TLS verification, time zones or alternatives fail.
var settings = []string{
	"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives",
	"/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ca-certificates", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted",
	"/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/protocols", "/etc/services",
}

// hardware tells libraries how many processors there are and how they are joined.
var hardware = []string{"/sys/devices/system/cpu", "/sys/devices/system/node"}

var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// System lists what every run sees of the machine it runs on. What does not exist is left out, but for the devices.
func System() ([]Entry, error) {
	var entries []Entry
	for _, path := range programs {
		info, err := os.Lstat(path)
		if err != nil {
			continue
		}
		switch {
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return nil, err
			}
			entries = append(entries, Entry{Path: path, Link: target})
		case info.IsDir():
			entries = append(entries, Entry{Path: path, Dir: true})
		}
	}
	for _, path := range slices.Concat(settings, hardware) {
		if info, err := os.Stat(path); err == nil {
			entries = append(entries, Entry{Path: path, Dir: info.IsDir()})
		}
	}
	for _, path := range devices {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.Mode()&fs.ModeCharDevice == 0 {
			return nil, fmt.Errorf("%s is not a device", path)
		}
		entries = append(entries, Entry{Path: path, Device: true})
	}
	return entries, nil
}

// ours are the places that no path of the machine may stand at or above.
var ours = []string{"/proc", "/sys", "/dev", "/etc", "/run", "/tmp", "/var", Work, Outputs, Scratch, Platform}

// Extra makes the entries of paths that the caller wants to be visible besides. Each is absolute and exists; none may cover
// what the sandbox itself provides, nor open the machine's state: /proc, /sys, /dev and /run stay closed with all below them.
// What System shows already, or another of the paths, is left out.
func Extra(paths []string) ([]Entry, error) {
	var entries []Entry
	clean := slices.Clone(paths)
	for i, path := range clean {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s is not an absolute path", path)
		}
		clean[i] = filepath.Clean(path)
	}
	slices.Sort(clean)
	last := ""
	for _, path := range clean {
		if slices.ContainsFunc(programs, func(p string) bool { return below(path, p) }) || last != "" && below(path, last) {
			continue
		}
		for _, place := range ours {
			if below(place, path) {
				return nil, fmt.Errorf("%s would cover %s", path, place)
			}
		}
		for _, closed := range []string{"/proc", "/sys", "/dev", "/run", "/var/run"} {
			if below(path, closed) {
				return nil, fmt.Errorf("%s is below %s, which stays closed", path, closed)
			}
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is neither a folder nor a file", path)
		}
		entries = append(entries, Entry{Path: path, Dir: info.IsDir()})
		last = path
	}
	return entries, nil
}

// Open opens the entry as a detached mount with everything below it: read-only, private, no set-user-id programs, and no
// devices unless it is one. It needs CAP_SYS_ADMIN over the mount namespace that it is called in. An entry that is a link
// has nothing to open, and gives -1.
func (e Entry) Open() (int, error) {
	if e.Link != "" {
		return -1, nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, e.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("open tree %s: %w", e.Path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if e.Device {
		attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	} else {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make %s read-only: %w", e.Path, err)
	}
	return fd, nil
}

// below tells whether path is top or lies below it. Both are clean.
func below(path, top string) bool {
	return path == top || strings.HasPrefix(path, strings.TrimSuffix(top, "/")+"/")
}
