// Package oracle keeps what clients of an installation did and were told, and judges afterwards what is there against it.
//
// It owns the book: every attempt of a call under a request id of its own, with its fate, and every object with the writes that were
// tried on it.
//
// Trust boundary: it believes its own clients about what they were told, and nobody else. What is there it gets from whoever looks, and
// compares.
//
// Invariants: a call is acknowledged, refused for sure, or unknown: the answer did not come, or says that the service was not there.
// An object has one writer, who stops writing it once a write's fate is unknown: so only the last write of an object can be. What an
// unknown write turns out to have been stays so.
//
// Failure: what contradicts the book is a violation, each told once. It never repairs its book from what it sees, but for unknown fates.
package oracle
