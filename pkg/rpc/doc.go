// Package rpc owns the chain: the one object that every call to a Redoubt service passes, unary or stream, and the clients
// with which services call each other.
//
// The links, in this order: request id, trace and metrics, log, fault mapping, recover, address limit, deadline, peer
// identity, token, principal limit, validate, authorize (the right, then how fresh the sign-in is), handler; the audit record
// stands around all of them. So a refusal by any link is mapped, logged, counted and recorded. What needs only headers runs
// before the message is decoded.
//
// Trust boundary: everything before the handler. The peer's SPIFFE ID comes from the TLS handshake, the principal from a
// token that this service verified itself; no header is believed but the client address that the gateway reports, and that
// only for limits and records. A token for the installation counts only from the gateway or from the operator it belongs to; a
// token for this service only from the service that stands in its act claim.
//
// Invariants: a method without a rule cannot be registered; a handler runs only after its rule held; an answer to a method
// whose rule says AUDIT_ALWAYS leaves only after its record is durable; per-method state is made once, when the method is
// registered; the messages of a stream are decided one by one.
//
// Failure: closed. Stale authorization or revocation state, a missing record, an unknown peer: the call is refused, with a
// canonical code, one reason and the request id.
package rpc
