// Package pool owns the connections of workers: who may bring one, which are free, who waits for one, and the one exchange at a time
// that each carries.
//
// Trust boundary: the agents of replicas dial in. One is believed because its certificate names a run of a workspace, and that run was
// expected for that workspace; what it says then is user code's, and is read as such: the head of an answer is bounded, its framing
// has to be unambiguous, and what follows it unasked ends the connection.
//
// Invariants: a connection carries one request at a time, and a request goes to one connection at most, from its first byte on.
// Only replicas that the deployment lists get new requests. As many wait as the deployment allows. A request that waits and goes away
// leaves no trace; a connection that was promised to it goes to the next.
//
// Failure: a deployment whose last connection broke is waited for during a short grace, then it is refused at once until a worker
// comes. A late answer costs the worker its connection.
//
// A Pool is safe for concurrent use; a Conn belongs to who acquired it until it is released.
package pool
