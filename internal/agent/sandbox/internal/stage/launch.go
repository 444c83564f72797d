//go:build linux

package stage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox/internal/rootfs"
)

// The launcher's descriptors. Both close when it executes.
const (
	specFD   = 3
	reportFD = 4
)

// launcherMain becomes the command. It runs on one thread, which is the only one that execution keeps.
func launcherMain() {
	runtime.LockOSThread()
	// A handler turns into the default action on execution; what was ignored would stay ignored.
	signal.Notify(make(chan os.Signal, 1))
	if err := unix.CloseRange(specFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		syscall.Exit(exitLost)
	}
	unix.Umask(0o022)
	reports := os.NewFile(reportFD, "report")
	if _, err := reports.WriteString("loaded\n"); err != nil {
		syscall.Exit(exitLost)
	}
	var command Command
	if err := json.NewDecoder(os.NewFile(specFD, "spec")).Decode(&command); err != nil {
		syscall.Exit(exitLost) // the init has ended
	}
	report := json.NewEncoder(reports)
	image, err := newImage(command)
	if err != nil {
		_ = report.Encode(Started{Problem: Execute + err.Error(), NotFound: errors.Is(err, fs.ErrNotExist)})
		syscall.Exit(exitLost)
	}
	version, err := confine(command)
	if err != nil {
		_ = report.Encode(Started{Problem: err.Error()})
		syscall.Exit(exitLost)
	}
	// The last limit may be less than this process holds already, so nothing may be allocated after it.
	debug.SetGCPercent(-1)
	if err := report.Encode(Started{Landlock: version}); err != nil {
		syscall.Exit(exitLost)
	}
	address := unix.Rlimit{Cur: command.Limits.AddressBytes, Max: command.Limits.AddressBytes}
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_AS, uintptr(unsafe.Pointer(&address)), 0, 0, 0) //nolint:gosec // a system call takes a pointer
	if errno == 0 && command.Probe {
		syscall.Exit(0)
	}
	if errno == 0 {
		//nolint:gosec // a system call takes pointers, and syscall.Exec allocates
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(image.path)), uintptr(unsafe.Pointer(&image.args[0])), uintptr(unsafe.Pointer(&image.env[0])))
	}
	number := [1]byte{byte(errno)}
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, reportFD, uintptr(unsafe.Pointer(&number[0])), 1) //nolint:gosec // a system call takes a pointer
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, exitLost, 0, 0)
	}
}

// image is what execve takes.
type image struct {
	path      *byte
	args, env []*byte
}

func newImage(command Command) (image, error) {
	if err := os.Chdir(rootfs.Work); err != nil {
		return image{}, fmt.Errorf("enter the working folder: %w", err)
	}
	if command.Probe {
		return image{}, nil
	}
	path, err := find(string(command.Args[0]), command.Env)
	if err != nil {
		return image{}, err
	}
	var img image
	if img.path, err = unix.BytePtrFromString(path); err != nil {
		return image{}, err
	}
	if img.args, err = pointers(command.Args); err != nil {
		return image{}, err
	}
	img.env, err = pointers(command.Env)
	return img, err
}

func pointers(list [][]byte) ([]*byte, error) {
	made := make([]*byte, 0, len(list)+1)
	for _, b := range list {
		p, err := unix.BytePtrFromString(string(b))
		if err != nil {
			return nil, err
		}
		made = append(made, p)
	}
	return append(made, nil), nil
}

// find looks a command up as a shell does, by the PATH of its own environment, in the tree that it will see.
func find(name string, env [][]byte) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	search := ""
	for _, entry := range env {
		if value, ok := strings.CutPrefix(string(entry), "PATH="); ok {
			search = value
			break
		}
	}
	refused := fs.ErrNotExist
	for _, dir := range filepath.SplitList(search) {
		path := filepath.Join(dir, name)
		if name == "" || !filepath.IsAbs(path) {
			continue // the working folder is not searched
		}
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			refused = err
		}
	}
	return "", refused
}

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return errors.New("it is a folder")
	case info.Mode()&0o111 == 0:
		return errors.New("it is not executable")
	}
	return nil
}
