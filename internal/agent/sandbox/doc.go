// Package sandbox runs one command of a tenant so that it reaches nothing but its own files and its own endpoint (A4, H3).
//
// It owns the processes of a run, from start to the last one's end, the volume on which they write, and the listener
// through which they speak to their agent. What is said there, what fills the working folder and what becomes of the
// outputs are the agent's affairs.
//
// # Trust boundary
//
// The command, and all that it starts, is hostile. It has user, pid, mount, network, ipc, uts and cgroup namespaces of its
// own; a file tree of programs, read-only, and a volume (packages below internal/ have the details); a loopback device and
// no other network; no capability, no way to gain one, and none of the system calls that could; Landlock besides, where the
// kernel has it. Its environment is what Config says and nothing else. Every descriptor but its output is closed.
//
// An agent that is root gives each run a host user of its own, drawn from a range that nobody uses, because the kernel
// exempts the host's root from the limit of processes and lets it read what belongs to it. An agent that is not can only
// give its own user: then it is the file tree that keeps the run from that user's files, and the pid namespace and the lack
// of capabilities that keep it from that user's processes.
//
// # Limits
//
// Everything that is written is on the volume, in memory, of Limits.DiskBytes: the machine's disk cannot fill, nothing of a
// run is left on it (D8), and ending the run wipes it. So outputs are bounded by memory too; that is the price, until
// targets have encrypted scratch disks. Memory is bounded by the address space of each process, and counted over all of
// them ten times a second; between two counts a run can exceed its limit, and the kernel's own last resort is told to
// choose the run first. What the kernel holds for sockets and pipes is bounded by the limits of processes and open files
// only.
//
// # Invariants
//
// Nothing of a run outlives its agent: process 1 of its pid namespace, which is ours, gets the kernel's death signal and
// sees the agent's socket close, and with it every process of the run is killed. Kill does the same. A command starts only
// when every step that confines it was taken; only Landlock may be missing, and Isolation says whether it is.
//
// # Failure
//
// Check tells beforehand whether a machine can isolate, by doing it. Start fails with TARGET_NO_ISOLATION where it cannot,
// with RUN_COMMAND_MISSING where there is no such command, and leaves nothing behind.
//
// # Use
//
// A program that calls Start must call MaybeStage first thing in main, and a test binary in TestMain: the same file is
// started again to set the sandbox up from inside. All methods of Process may be called from any goroutine.
package sandbox
