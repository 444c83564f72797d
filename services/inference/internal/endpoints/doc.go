// Package endpoints owns endpoints, their credentials and their deployments, and brings replicas to what deployments say.
//
// Trust boundary: callers come through the chain, which has decided that they may. Compute is believed about runs; what replicas say
// is data.
//
// Invariants: one form of credential opens an endpoint at a time. What Set has told the listener is what is committed, and a change is
// there when its call returns. A replica's row is committed before its run is asked for, so that none is forgotten.
//
// Failure: without compute, replicas stay as they are and it is tried again; a deployment that cannot start says why.
package endpoints
