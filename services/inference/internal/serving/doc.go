// Package serving owns the scoring listener and what is spoken on it: our own protocol, the Open Inference Protocol over REST and gRPC, KServe
// v1, MLflow's scoring server, and ScoringService for those who come through the mesh.
//
// Trust boundary: in front of it is the network. What a caller may do is decided by the credential of the endpoint that he names (flow), or by
// the chain of the mesh for ScoringService. Behind it are replicas, whose answers are user code's: of their headers a short list passes,
// and no answer is believed to be well-formed.
//
// Invariants: each request goes the way of package flow, whatever its protocol. Without a right credential nobody learns whether an endpoint
// exists. An answer that breaks off is never made to look whole. A refusal is in the words of the protocol at hand.
//
// Failure: closed. What is bounded (bodies, queues, connections, streams, calls without a credential) refuses with a status that says when
// to come back; a fault of ours is 500 and a line in the log.
//
// Sub-packages: front has the port, flow the way of a request, pool the workers' connections, tensor the translation of the other protocols.
package serving
