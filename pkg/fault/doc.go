// Package fault owns the errors that cross Redoubt's borders: a canonical gRPC code, one machine-readable reason
// (proto/redoubt/fault/v1), a message for a tired reader that says what to do next, and details.
//
// Trust boundary: ToStatus is the place where an inner error becomes what a stranger reads. Whatever is not a *Error, a
// context error or a gRPC status becomes INTERNAL with no text of its own: no SQL, path or key can leak through it.
//
// Invariants: every status that ToStatus makes carries exactly one ErrorInfo and, where the request id is known, one
// RequestInfo; FromStatus gives back an error for which Code and ReasonOf answer the same as at the sender.
//
// Failure: the functions do not fail; a detail that cannot be encoded is left out.
package fault
