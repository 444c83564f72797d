// Package onward owns the way of an HTTP request to a service: which of its headers pass, how long the call may take, and how an
// answer that did not come from the service reads.
//
// Trust boundary: the request is a stranger's. The caller's token and proof pass as they came, and the service decides. The address of
// the caller is written here and is never taken from a header.
//
// Invariants: a method that strangers may not reach by gRPC cannot be called from here either, whatever route leads to it. Metadata
// that others put into the context do not pass.
//
// Failure: a service that is away is UNAVAILABLE with a reason; a service's own refusal passes as it is.
package onward
