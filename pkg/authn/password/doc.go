// Package password owns how passwords and client secrets are kept: as argon2id hashes in PHC form (A1).
//
// Trust boundary: the password comes from a stranger, so its length is bounded before any work and the number of hashes
// that run at once is capped, each needing tens of MiB, as is how long one waits for them. The stored hash comes from the service's own database and is
// still bounded, so that a damaged row cannot ask for all of the memory.
//
// Invariants: Verify and Dummy take the same time for the same cost, so an unknown user cannot be told from a wrong
// password; the comparison is constant-time; an empty password and an empty hash never match; nothing here prints or
// stores a password.
//
// Failure: a malformed stored hash is Internal, too many waiting is ResourceExhausted (RATE_LIMITED), a worker that died is
// Unavailable (package apart), a password that is empty or too long is InvalidArgument when it is set and merely wrong when it is tried.
//
// A Hasher is safe for concurrent use.
package password
