// Package node owns the putting together: it builds one service from its configuration, with its own listener, SVID, store,
// etcd client and seal key, runs it, and stops it; and for `redoubt up` it builds all of them in one process.
//
// Trust boundary: none of its own. Up only composes: each service is built as Serve builds it alone, and every call between
// two of them passes a socket and the whole chain.
//
// Invariants: what was started is stopped in reverse order; a state folder has one process at a time; nothing waits for the order
// in which services start; secrets are in files of mode 0600 or in memory.
//
// Failure: a service that cannot start says which file, port or peer it lacks, and leaves nothing running.
package node
