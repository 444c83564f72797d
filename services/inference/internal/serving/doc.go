// Package serving owns the way of a scoring request: the listener that strangers reach, the credential, the body, the choice of a
// deployment, the worker, the answer, and the record of it.
//
// Trust boundary: in front of it is the network; what a caller may do is decided here, by the credential of the endpoint that he names, or
// by the chain of the mesh for those who come by ScoringService. Behind it are replicas, whose answers are user code's: of their headers a
// short list passes, and no answer is believed to be well-formed.
//
// Invariants: nothing on the way of a request asks SQL or another service. When Set has returned, no request that begins later is judged by
// what was before, and none is forwarded on a credential that is no longer one. A body is whole before a worker is taken, and is sent once
// at most. Without a right credential nobody learns whether an endpoint exists. The record of a request to an endpoint is handed over
// before the last byte of its answer; requests to what is no endpoint are counted.
//
// Failure: closed. An endpoint that was not set, a form of authentication that was not chosen and a deployment without workers answer
// nothing. What is bounded (bodies, queues, connections, streams) refuses with a status that says when to come back.
//
// Sub-packages: front has the port, pool the workers' connections, tensor the translation of the other protocols.
package serving
