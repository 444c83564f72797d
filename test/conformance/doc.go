// Package conformance holds that the gateway speaks HTTP/2, TLS and gRPC as others understand them: grpc-go's own interoperability
// client, h2spec, grpcurl and grpc_health_probe run against it over TLS. It has tests only, in a module of their own: what they need is
// nothing that the program needs.
//
// All of it is on loopback, in a few seconds each.
package conformance
