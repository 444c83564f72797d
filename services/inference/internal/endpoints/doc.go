// Package endpoints owns endpoints, their credentials and their deployments, and tells the listener of them. Package replicas looks after
// what the deployments need.
//
// Trust boundary: callers come through the chain, which has decided that they may. What they write is sealed; what they choose of a
// replica is checked here, and again by compute.
//
// Invariants: one form of credential opens an endpoint at a time. What the listener was told is what is committed, and a change is there
// when its call returns. Of a token nothing is kept that opens anything.
//
// Failure: an endpoint that cannot be read, or of which it is not known whether a change was committed, is closed until it can be read.
package endpoints
