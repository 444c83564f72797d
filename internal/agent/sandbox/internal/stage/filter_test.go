//go:build linux

package stage

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	allow  = unix.SECCOMP_RET_ALLOW
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// judge runs the filter as the kernel does. The machine of x/net/bpf reads big-endian, and each word is written so.
func judge(t *testing.T, vm *bpf.VM, archID uint32, number uint32, args ...uint64) uint32 {
	t.Helper()
	data := binary.BigEndian.AppendUint32(nil, number)
	data = binary.BigEndian.AppendUint32(data, archID)
	data = append(data, make([]byte, 8)...)
	for i := range 6 {
		var arg uint64
		if i < len(args) {
			arg = args[i]
		}
		data = binary.BigEndian.AppendUint32(data, uint32(arg)) // the low word comes first, as on the machines that we build for
		data = binary.BigEndian.AppendUint32(data, uint32(arg>>32))
	}
	verdict, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(verdict)
}

func machine(t *testing.T) (*bpf.VM, *arch.Info) {
	t.Helper()
	raw, err := filter()
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 4096 {
		t.Fatalf("%d instructions: the kernel takes 4096", len(raw))
	}
	program := make([]bpf.Instruction, len(raw))
	for i, r := range raw {
		program[i] = r.Disassemble()
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	native, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	return vm, native
}

func TestFilterJudgesEveryCall(t *testing.T) {
	t.Parallel()
	vm, native := machine(t)
	conditional := []string{"clone", "socket", "socketpair", "personality"}
	for name, number := range native.SyscallNames {
		want := enosys
		switch {
		case slices.Contains(conditional, name):
			continue
		case slices.Contains(strings.Fields(allowed), name):
			want = allow
		case slices.Contains(strings.Fields(forbidden), name):
			want = eperm
		}
		// Whatever the arguments are.
		for _, arg := range []uint64{0, 1, 0xffffffffffffffff} {
			if got := judge(t, vm, uint32(native.ID), uint32(number), arg, arg, arg, arg, arg, arg); got != want {
				t.Errorf("%s(%#x, …): %#x, want %#x", name, arg, got, want)
			}
		}
	}
	for name, foreign := range map[string]*arch.Info{"i386": arch.I386, "x86_64": arch.X86_64, "arm": arch.ARM, "aarch64": arch.AARCH64} {
		for _, number := range []int{0, 1, 26, 60, 101, 221} {
			if got := judge(t, vm, uint32(foreign.ID), uint32(number)); foreign.ID != native.ID && got != enosys {
				t.Errorf("call %d by the numbers of %s: %#x, want %#x", number, name, got, enosys)
			}
		}
	}
	if got := judge(t, vm, uint32(native.ID), 1<<30|1); got != enosys {
		t.Errorf("call by the numbers of x32: %#x, want %#x", got, enosys)
	}
	if got := judge(t, vm, uint32(native.ID), 9999); got != enosys {
		t.Errorf("a call that no kernel has yet: %#x, want %#x", got, enosys)
	}
}

func TestFilterLooksAtArguments(t *testing.T) {
	t.Parallel()
	vm, native := machine(t)
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM |
		unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
	cases := []struct {
		name string
		args []uint64
		want uint32
	}{
		{"clone", []uint64{uint64(unix.SIGCHLD)}, allow},
		{"clone", []uint64{thread}, allow},
		{"clone", []uint64{unix.CLONE_VFORK | unix.CLONE_VM | uint64(unix.SIGCHLD)}, allow},
		{"clone", []uint64{unix.CLONE_NEWUSER}, enosys},
		{"clone", []uint64{unix.CLONE_NEWNS | uint64(unix.SIGCHLD)}, enosys},
		{"clone", []uint64{unix.CLONE_NEWPID}, enosys},
		{"clone", []uint64{unix.CLONE_NEWNET | thread}, enosys},
		{"clone", []uint64{unix.CLONE_NEWIPC}, enosys},
		{"clone", []uint64{unix.CLONE_NEWUTS}, enosys},
		{"clone", []uint64{unix.CLONE_NEWCGROUP}, enosys},
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, allow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM}, allow},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM}, allow},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, allow},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, enosys},
		{"socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW}, enosys},
		{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, enosys},
		{"socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, enosys},
		{"socket", []uint64{1<<32 | unix.AF_INET}, enosys},
		{"socketpair", []uint64{unix.AF_UNIX}, allow},
		{"socketpair", []uint64{unix.AF_TIPC}, enosys},
		{"personality", []uint64{0}, allow},
		{"personality", []uint64{0xffffffff}, allow},
		{"personality", []uint64{0x0040000}, enosys},
	}
	for _, c := range cases {
		number, ok := native.SyscallNames[c.name]
		if !ok {
			t.Fatalf("no call %s", c.name)
		}
		if got := judge(t, vm, uint32(native.ID), uint32(number), c.args...); got != c.want {
			t.Errorf("%s(%#x): %#x, want %#x", c.name, c.args, got, c.want)
		}
	}
	// A condition that failed leaves its argument in the register: no argument may pass for a call's number.
	for value := range uint64(1024) {
		for _, name := range []string{"socket", "socketpair", "personality"} {
			got := judge(t, vm, uint32(native.ID), uint32(native.SyscallNames[name]), value)
			known := name == "personality" && value == 0 || name != "personality" && value == unix.AF_UNIX ||
				name == "socket" && (value == unix.AF_INET || value == unix.AF_INET6 || value == unix.AF_NETLINK)
			if (got == allow) != known {
				t.Errorf("%s(%d): %#x", name, value, got)
			}
		}
	}
}

func TestListsAreDisjointAndKnown(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, name := range strings.Fields(allowed + " " + forbidden) {
		if seen[name] {
			t.Errorf("%s stands twice", name)
		}
		seen[name] = true
		known := false
		for _, info := range []*arch.Info{arch.X86_64, arch.AARCH64, arch.I386} {
			_, ok := info.SyscallNames[name]
			known = known || ok
		}
		if !known {
			t.Errorf("no architecture has %s", name)
		}
	}
}
