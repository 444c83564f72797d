//go:build linux

package stage

import (
	"fmt"
	"strings"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// allowed are the system calls that user code may make, whatever their arguments. Everything that is not named in this
// file, and every call by another architecture's numbers, answers ENOSYS, as on a kernel that lacks it: so a call that a
// later kernel adds is closed until someone puts it here, and libraries fall back.
//
// Left out on purpose, since what they hold is counted nowhere: memfd_create and System V shared memory, queues and
// semaphores. POSIX shared memory is on the volume, and works.
const allowed = `
	read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek dup dup2 dup3 fcntl flock ioctl
	open openat openat2 creat access faccessat faccessat2 stat fstat lstat newfstatat fstatat64 statx statfs fstatfs readlink readlinkat
	getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir rename renameat renameat2 link linkat symlink symlinkat unlink unlinkat
	mknod mknodat truncate ftruncate fallocate fsync fdatasync sync syncfs sync_file_range copy_file_range sendfile splice tee vmsplice
	chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes utimensat futimesat readahead fadvise64 cachestat
	getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
	inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
	mmap munmap mremap mprotect pkey_mprotect pkey_alloc pkey_free madvise mincore msync brk mlock mlock2 munlock mlockall munlockall mseal
	membarrier map_shadow_stack mbind get_mempolicy set_mempolicy set_mempolicy_home_node
	poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2
	pipe pipe2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime
	connect accept accept4 bind listen shutdown getsockname getpeername getsockopt setsockopt sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
	fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pause alarm restart_syscall
	rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack pidfd_open pidfd_send_signal
	set_tid_address set_robust_list get_robust_list rseq futex futex_waitv futex_wake futex_wait futex_requeue arch_prctl prctl
	getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getpgrp getsid setpgid setsid
	setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capget capset
	getpriority setpriority ioprio_get ioprio_set sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam
	sched_getscheduler sched_setscheduler sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval
	getrlimit setrlimit prlimit64 getrusage times sysinfo uname getcpu getrandom
	time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getitimer setitimer
	timer_create timer_settime timer_gettime timer_getoverrun timer_delete
	landlock_create_ruleset landlock_add_rule landlock_restrict_self`

// forbidden are calls that could reach out of the sandbox or deep into the kernel. They answer EPERM, so that a program
// that tries them says what it was refused.
const forbidden = `
	ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
	mount umount2 mount_setattr move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick pivot_root chroot statmount listmount
	unshare setns name_to_handle_at open_by_handle_at fanotify_init fanotify_mark quotactl quotactl_fd swapon swapoff
	add_key request_key keyctl bpf perf_event_open userfaultfd seccomp lookup_dcookie syslog acct
	kexec_load kexec_file_load init_module finit_module delete_module create_module reboot
	iopl ioperm modify_ldt vhangup sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex
	move_pages migrate_pages remap_file_pages nfsservctl uselib _sysctl sysfs vm86 vm86old`

// newNamespaces are the flags of clone that make one.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// missing stands for the default answer, ENOSYS, until the program is assembled: the library has no name for that.
const missing = seccomp.ActionTrap

// filter is the program that judges every system call of user code.
func filter() ([]bpf.RawInstruction, error) {
	native, err := arch.GetInfo("")
	if err != nil {
		return nil, err
	}
	names := func(list string) []string {
		var known []string // an architecture lacks some, such as arm64 the old ones
		for _, name := range strings.Fields(list) {
			if _, ok := native.SyscallNames[name]; ok {
				known = append(known, name)
			}
		}
		return known
	}
	is := func(argument uint32, value uint64) seccomp.Condition {
		return seccomp.Condition{Argument: argument, Operation: seccomp.Equal, Value: value}
	}
	when := func(name string, conditions ...seccomp.Condition) seccomp.NameWithConditions {
		return seccomp.NameWithConditions{Name: name, Conditions: conditions}
	}
	policy := seccomp.Policy{
		DefaultAction: missing,
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: names(allowed)},
			{Action: seccomp.ActionErrno, Names: names(forbidden)},
			// Conditions stand last: the program does not load the call's number again after it looked at an argument.
			{Action: seccomp.ActionAllow, NamesWithCondtions: []seccomp.NameWithConditions{
				// clone3's flags lie in memory that a filter cannot read, so it is missing, and clone is used instead.
				when("clone", seccomp.Condition{Argument: 0, Operation: seccomp.BitsNotSet, Value: newNamespaces}),
				when("socket", is(0, unix.AF_UNIX)),
				when("socket", is(0, unix.AF_INET)),
				when("socket", is(0, unix.AF_INET6)),
				when("socket", is(0, unix.AF_NETLINK), is(2, unix.NETLINK_ROUTE)), // to list the interfaces
				when("socketpair", is(0, unix.AF_UNIX)),
				when("personality", is(0, 0)),          // what is set already
				when("personality", is(0, 0xffffffff)), // to ask
			}},
		},
	}
	program, err := policy.Assemble()
	if err != nil {
		return nil, err
	}
	for i, instruction := range program {
		if ret, ok := instruction.(bpf.RetConstant); ok && ret.Val == uint32(missing) {
			program[i] = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
		}
	}
	return bpf.Assemble(program)
}

// loadFilter puts the filter on the calling thread, for good. no_new_privs is set before.
func loadFilter() error {
	program, err := filter()
	if err != nil {
		return fmt.Errorf("make the system call filter: %w", err)
	}
	instructions := make([]unix.SockFilter, len(program))
	for i, in := range program {
		instructions[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))) //nolint:gosec // a system call takes a pointer
	if errno != 0 {
		return fmt.Errorf("load the system call filter: %w", errno)
	}
	return nil
}
