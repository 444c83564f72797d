// Package rest owns REST with JSON of the public RPCs, as the google.api.http options of the contracts say it: grpc-gateway's generated
// handlers between strict reading and errors in the form of AIP-193.
//
// Trust boundary: the request is a stranger's. Nothing is decided here: each route is one RPC, made with the caller's own token by
// package onward, and the service behind decides.
//
// Invariants: every method that strangers may reach and that takes no stream has a route, and no other method has one. A body is bound
// by what the method takes; unknown fields and parameters are refused; bodies are JSON, not compressed. Of the request's headers
// grpc-gateway sees none, and of the service's metadata nothing becomes a header.
//
// Failure: every error is {"error": {code, status, message, details}}, with one ErrorInfo among the details. A stream that breaks off
// ends with a line that holds one.
package rest
