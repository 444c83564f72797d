// Package etcdnode owns the etcd member that "redoubt up" runs inside its own process, and the keys of that etcd.
//
// Trust boundary: its client port. It speaks TLS 1.3 only and takes no client without a certificate of its own root, which
// is not the mesh's: etcd must work before identity has issued anything, and after all that identity has issued has ended.
// The root is long-lived and stored under <dir>/pki, its key 0600; leaves are made again at each start and while it runs.
// Whoever holds a client certificate may read and write every key: etcd's own access control by prefix is not used, as
// everything of `up` is one process and one user.
//
// Invariants: one process at a time uses a folder; a member of one has no peer port at all; the address of the client port
// is no part of the stored membership, so it may change from start to start; every write is on disk before it is
// acknowledged.
//
// Failure: Start returns an error that says what to do, or a member that has a leader and answers. A member that fails
// later closes Node.Failed.
package etcdnode
