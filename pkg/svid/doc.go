// Package svid owns the identities of the mesh: who may sign them, how a workload gets and keeps one, how it is served to
// the code that uses it, and how two peers prove theirs to each other. It knows no service.
//
// Its parts, from the root to the connection:
//
//   - Authority signs: X.509-SVIDs by the rules of the SPIFFE standard, and plain TLS leaves for listeners that are not
//     part of the mesh. It is a value; whoever owns it (identity) stores it and seals its key.
//   - Keeper holds the identity of one workload: a P-256 key made once and pinned at enrolment, and the SVID of the
//     moment, renewed at half of its life while the old one serves.
//   - WorkloadServer offers what a Keeper holds as the standard SPIFFE Workload API on a private unix socket.
//   - Source consumes a Workload API (ours, or that of a SPIRE agent) and makes gRPC transport credentials from it.
//   - EnrolClientTLS and EnrolServerTLS are the one connection that comes before any SVID: the server is known by the pin
//     of its root, the client by the key that it proves in the handshake.
//
// Trust boundary: a peer is believed because of a chain to a root of our own trust domain, a time, and the one SPIFFE ID in
// its leaf; never because of its address or a name it gives. On the Workload API's socket a peer is believed because the
// kernel says that it runs under our own user id, the user who could read the key file anyway.
//
// Invariants: TLS 1.3 only; no session is resumed, so that no connection outlives a root that was taken away by more than
// its own life; clients pin the SPIFFE ID of the server; the clock is Config.Now in every check; private keys are written
// 0600 and never printed. A Keeper never replaces a good SVID with a bad one.
//
// Failure: closed. A workload without a valid SVID neither accepts nor opens connections; while its authority is away it
// goes on with the SVID that it has until that ends, over restarts too.
package svid
