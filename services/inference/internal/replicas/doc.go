// Package replicas brings the replicas of deployments to what the deployments say: it asks compute for runs and has them stopped, and
// writes down what became of them.
//
// Trust boundary: compute is believed about runs, the listener about workers that are connected. What a run says of why it ended is
// its user's, and is shown as such.
//
// Invariants: a replica's row is committed before its run is asked for, and is ended only when its run has ended or was stopped, so that
// none is forgotten. A replica that answers is taken away only when enough others answer. One keeper looks after a deployment; what it
// has in memory can be seen again, so it goes on from wherever it was killed.
//
// Failure: without compute, replicas stay as they are and it is tried again; what cannot start says why, and is tried ever more slowly.
package replicas
