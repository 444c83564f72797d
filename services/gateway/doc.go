// Package gateway owns the one public address of an installation: TLS for strangers, gRPC by service name, reflection over all
// services, REST with JSON, MLflow's API, and the OAuth documents and token endpoint over HTTP. The HTTP facades are in its internal
// packages.
//
// Trust boundary: in front of it is the network, behind it the mesh. It is not trusted to authenticate: it forwards the
// caller's token and proof as they came, and the service behind decides. What it adds is the caller's address.
//
// Invariants: only methods whose rule lets strangers in are forwarded: what services call among themselves and enrolment do not
// exist here. Of the metadata, a fixed list passes in each direction; the address header never comes from outside. Messages
// are not decoded and not kept. Nothing that depends on who asks may be cached.
//
// Failure: a service that is away is UNAVAILABLE with a reason; what is unknown is UNIMPLEMENTED, on HTTP 404. A client that
// does not read is cut by a write deadline.
package gateway
