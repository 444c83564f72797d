// Package stage is what runs inside a sandbox before user code does, and beside it until it ends: the same program started
// again under another name, in namespaces of its own.
//
// There are two. The init is process 1 of the run's pid namespace: it builds the file tree, brings the loopback device up,
// listens on the run's endpoint and hands the listener and the volume out, then reaps, watches memory, reports how the
// command ended, and ends; the kernel kills whatever it leaves. The launcher becomes the user's command: it gives up every
// capability, locks itself in (no_new_privs, Landlock, rlimits, seccomp) and executes it. They are two, because process 1
// must outlive the command, and because a filter cannot be taken off again.
//
// # Trust boundary
//
// The init obeys only the socket on descriptor 3, whose other end the agent holds, and ends when that closes; so a run
// cannot outlive its agent, even where the death signal was lost. User code shares its uid and its pid namespace, but
// cannot signal it (process 1 takes no signal from below), nor trace or read it (it is not dumpable and holds capabilities
// that user code lacks). Nothing is read from user code but its exit status and its memory counts.
//
// # Failure
//
// Every step that confines is required: when one fails the step's name goes to the agent and nothing was executed. Only
// Landlock may be missing, and only when the agent said that it may; which version applies is reported.
package stage
