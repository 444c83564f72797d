// Package inference owns models, the endpoints that answer for them, and the listener at which they are scored. This package wires its
// parts: models, endpoints, serving and requestlog, each below internal/.
//
// Trust boundary: the mesh's port stands behind the chain, as every service's. The scoring listener is for strangers with a credential
// of one endpoint; the replica listener is for runs with the mesh's certificate. What a model answers is data.
//
// Invariants: no other service and no SQL is asked while a request is answered. A switch of an endpoint's authentication, and a new
// key, hold when the call that made them has returned. Replicas are wanted in a committed row before they are started.
//
// Each request that is answered, and each that is refused at a known endpoint, has its record in a spool before its answer is complete.
//
// Failure: killing this service loses no record of a request, no model, key or deployment; replicas reconnect. Where compute is away, what answers goes on.
package inference
