// Package discovery says who is alive and where: services register in etcd under a lease, and clients find them there. It
// is the only owner of the etcd client besides pkg/fence.
//
// What it writes is the format of etcd's own gRPC naming (client/v3/naming), below one prefix:
//
//	<prefix>/<service>/<instance>  ->  {"Addr": "host:port"}, attached to the instance's lease
//
// so any tool that speaks that format reads it. The reading side is our own: the official resolver blocks the first call
// on a channel while etcd is away, and stops for good when its watch ends.
//
// Trust boundary: etcd is trusted for where, never for who. An address is only a hint; the client pins the SPIFFE ID of the
// service that it wants (pkg/svid), so a wrong entry costs availability and nothing else. Every connection to etcd is
// mutual TLS. Each service writes below its own prefix; etcd is not asked to enforce that yet, so any holder of a client
// certificate of etcd's root can write anything there.
//
// Invariants: what was known is kept while etcd is away; an entry ends with its instance's lease; a registration comes
// back by itself after a lost lease, a restart of etcd, or an etcd that lost its data. One watch serves all channels of a
// process.
//
// Failure: nothing here blocks without the caller's deadline, and nothing needs etcd at start. Errors of etcd become
// faults, with the cause of a refused connection found out: a missing or foreign certificate reads like a timeout
// otherwise.
package discovery
