// Package serving owns the two listeners of inference: the one at which endpoints are scored, and the one that the workers of replicas
// connect to. It knows what endpoints there are from memory alone.
//
// Trust boundary: the scoring listener is for strangers, who show a credential of one endpoint or are turned away. The replica listener
// is for runs of workspaces: a run is believed only about the deployment that it was expected for.
//
// Invariants: when Set has returned, no request that begins later is decided by what was there before. What is not Set does not exist;
// a connection of a replica that is not expected is closed.
//
// Failure: what is unknown reads as absent; without a worker a request waits in a bounded queue.
package serving
