//go:build linux

package sandbox_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errReached is what an attack returns when it got where it should not.
var errReached = errors.New("REACHED")

// attack tries one thing, named by its first argument.
func attack(args []string) error {
	runtime.LockOSThread()
	name, args := args[0], args[1:]
	f, ok := attacks[name]
	if !ok {
		return fmt.Errorf("no such attack: %s", name)
	}
	if err := f(args); err != nil {
		return fmt.Errorf("REFUSED %w", err)
	}
	return errReached
}

// attacks are what a hostile command might try. Nil means that it worked.
var attacks = map[string]func(args []string) error{
	"read": func(args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		if n, err := f.Read(make([]byte, 1)); n == 0 {
			return fmt.Errorf("nothing is there: %w", err)
		}
		return nil
	},
	"list": func(args []string) error {
		entries, err := os.ReadDir(args[0])
		if err == nil && len(entries) == 0 {
			return fs.ErrNotExist
		}
		return err
	},
	"link": func(args []string) error {
		_, err := os.Readlink(args[0])
		return err
	},
	"write": func(args []string) error {
		return os.WriteFile(args[0], []byte("x"), 0o600)
	},
	"descriptor": func(args []string) error {
		fd, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		_, err = unix.Pread(fd, make([]byte, 1), 0)
		return err
	},
	"dial": func(args []string) error {
		conn, err := net.DialTimeout(args[0], args[1], time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	},
	"trace": func(args []string) error {
		pid, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		if err := unix.PtraceAttach(pid); err != nil {
			return err
		}
		if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
			return err
		}
		return unix.PtraceDetach(pid)
	},
	"peek": func(args []string) error { // by process_vm_readv
		pid, address, err := numbers(args)
		if err != nil {
			return err
		}
		buf := make([]byte, 8)
		local := []unix.Iovec{{Base: &buf[0], Len: 8}}
		remote := []unix.RemoteIovec{{Base: address, Len: 8}}
		_, err = unix.ProcessVMReadv(pid, local, remote, 0)
		return err
	},
	"memory": func(args []string) error { // by /proc
		pid, address, err := numbers(args)
		if err != nil {
			return err
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return err
		}
		_, err = f.ReadAt(make([]byte, 8), int64(address))
		return err
	},
	"signal": func(args []string) error {
		pid, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return unix.Kill(pid, unix.SIGCONT)
	},
	"setns": func(args []string) error {
		fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return unix.Setns(fd, 0)
	},
	"unshare": func([]string) error { return unix.Unshare(unix.CLONE_NEWUTS) },
	"clone":   func([]string) error { return inNamespaces("nothing") },
	"nothing": func([]string) error { return nil },
	// What a sandbox is made of, done by hand.
	"isolate": func([]string) error {
		return errors.Join(unix.Mount("x", "/tmp", "tmpfs", 0, ""), unix.Mount("x", "/proc", "proc", 0, ""))
	},
	"clone3": func([]string) error { return reaches(unix.EINVAL, unix.SYS_CLONE3, 0, 0) },
	"mount": func([]string) error {
		return eitherWay("mount", func() error { return unix.Mount("x", "/tmp", "tmpfs", 0, "") })
	},
	"open_tree": func([]string) error {
		return eitherWay("open_tree", func() error {
			_, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
			return err
		})
	},
	"chroot": func([]string) error { return unix.Chroot("/") },
	"handle": func([]string) error {
		handle, mount, err := unix.NameToHandleAt(unix.AT_FDCWD, "/usr", 0)
		if err != nil {
			return err
		}
		_ = mount
		at, err := unix.Open("/usr", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		_, err = unix.OpenByHandleAt(at, handle, unix.O_RDONLY)
		return err
	},
	"keyring": func([]string) error {
		_, err := unix.AddKey("user", "sandbox-test", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
		return err
	},
	"io_uring": func([]string) error {
		params := make([]byte, 120)
		return reaches(0, unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])))
	},
	"userfaultfd": func([]string) error { return reaches(0, unix.SYS_USERFAULTFD, 1) },
	"bpf":         func([]string) error { return reaches(unix.EINVAL, unix.SYS_BPF, 0, 0, 0) },
	"perf": func([]string) error {
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK, Bits: unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv}
		attr.Size = uint32(unsafe.Sizeof(attr))
		_, err := unix.PerfEventOpen(&attr, 0, -1, -1, 0)
		return err
	},
	"seccomp":     func([]string) error { return reaches(unix.EINVAL, unix.SYS_SECCOMP, 99, 0, 0) },
	"personality": func([]string) error { return reaches(0, unix.SYS_PERSONALITY, 0x0400000) }, // READ_IMPLIES_EXEC
	"shm":         func([]string) error { return reaches(0, unix.SYS_SHMGET, 0, 4096, 0o1600) },
	"memfd": func([]string) error {
		_, err := unix.MemfdCreate("x", 0)
		return err
	},
	"uevents": func([]string) error {
		_, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)
		return err
	},
	"packets": func([]string) error {
		return eitherWay("packets", func() error {
			_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
			return err
		})
	},
	"pidfd": func(args []string) error {
		pid, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		_, err = unix.PidfdGetfd(fd, 1, 0)
		return err
	},
	"int80": int80,
}

// eitherWay tries at once, and then in namespaces of its own making, where an ordinary user may do as root does.
func eitherWay(name string, try func() error) error {
	if os.Getenv("IN_NAMESPACES") != "" || os.Geteuid() != 0 {
		if err := try(); err == nil || os.Getenv("IN_NAMESPACES") != "" {
			return err
		}
	}
	return inNamespaces(name)
}

func inNamespaces(attack string) error {
	cmd := exec.Command("/proc/self/exe", "helper:attack", attack)
	cmd.Env = append(os.Environ(), "IN_NAMESPACES=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
	}
	out, err := cmd.Output()
	if strings.HasPrefix(string(out), "REACHED") {
		return nil
	}
	return fmt.Errorf("in namespaces of its own: %w: %s", err, out)
}

// reaches tells whether the kernel takes a system call: it succeeds, or fails in the way of one that was looked at.
func reaches(wanted syscall.Errno, number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno == 0 || errno == wanted {
		return nil
	}
	return errno
}

func numbers(args []string) (pid int, address uintptr, err error) {
	if pid, err = strconv.Atoi(args[0]); err != nil {
		return 0, 0, err
	}
	value, err := strconv.ParseUint(args[1], 10, 64)
	return pid, uintptr(value), err
}

// int80 makes a call by the 32-bit numbers, which a filter that looks at numbers alone takes for others: 26 is ptrace there,
// and msync here. The program is written by hand: there is no other way to make such a call from Go.
func int80([]string) error {
	if runtime.GOARCH != "amd64" {
		return errors.ErrUnsupported
	}
	code := []byte{
		0xb8, 0x1a, 0, 0, 0, // mov eax, 26 (ptrace)
		0x31, 0xdb, // xor ebx, ebx (PTRACE_TRACEME)
		0x31, 0xc9, 0x31, 0xd2, 0x31, 0xf6, // xor ecx, edx, esi
		0xcd, 0x80, // int 0x80
		0x89, 0xc7, // mov edi, eax
		0xf7, 0xdf, // neg edi
		0xb8, 0xe7, 0, 0, 0, // mov eax, 231 (exit_group by the 64-bit numbers)
		0x0f, 0x05, // syscall
	}
	const base = 0x400000
	elf := append([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, make([]byte, 9)...)
	for _, v := range []uint16{2, 62} {
		elf = binary.LittleEndian.AppendUint16(elf, v)
	}
	elf = binary.LittleEndian.AppendUint32(elf, 1)
	for _, v := range []uint64{base + 120, 64, 0} {
		elf = binary.LittleEndian.AppendUint64(elf, v)
	}
	elf = binary.LittleEndian.AppendUint32(elf, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		elf = binary.LittleEndian.AppendUint16(elf, v)
	}
	for _, v := range []uint32{1, 5} {
		elf = binary.LittleEndian.AppendUint32(elf, v)
	}
	size := uint64(120 + len(code))
	for _, v := range []uint64{0, base, base, size, size, 4096} {
		elf = binary.LittleEndian.AppendUint64(elf, v)
	}
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "int80")
	if err := os.WriteFile(path, append(elf, code...), 0o700); err != nil {
		return err
	}
	return exec.Command(path).Run() // its exit code is the call's errno
}
