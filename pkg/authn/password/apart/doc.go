// Package apart owns the computation of one argon2id hash, and the process that does it apart from the services, so that neither the scheduler
// nor the collector of those who check tokens is in its way (A1).
//
// A worker is this program started again, which knows itself by its argv. It computes one hash at a time. It starts when there is one to
// compute, and ends when it had none for a while.
//
// Trust boundary: a worker holds passwords, and takes orders from its socket alone. Nobody but the process that started it has the other end. It
// is confined before it is given the first: no open file but the socket, no system call that could open one, connect or execute; no core dump and
// nobody of the same user may look into it; the kernel takes it first when memory runs out, and last when the processor is asked for.
//
// Invariants: a password is in no argument, environment or file, and is cleared when its hash is made; what argon2 has filled is used again by the
// next hash and is gone with the worker. No worker outlives who started it: it is killed with that process, and ends when the socket closes. A hash
// is given only if the worker has sent all of it: whatever else happens is an error, and never a match.
//
// Failure: UNAVAILABLE, for one caller, where a worker died, was silent for too long or cannot start; the next call starts another one. A program
// that does not call Maybe first thing in main, and a system other than Linux, cannot have workers: New says so.
//
// A Pool is safe for concurrent use.
package apart
