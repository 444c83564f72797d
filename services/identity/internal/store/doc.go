// Package store owns the records of identity: principals, passwords, client secrets, memberships, sessions, revocations,
// signing keys, roots, join tokens and pinned keys.
//
// Trust boundary: whoever writes the database. Names, display names, password hashes, private keys and the actions of agents
// are sealed under identity's own seal and bound to the row that they stand in, so a row that was changed or moved does not open.
// In clear are uids, states, times, keyed hashes of names, and digests of secrets that have 256 random bits (docs/data.md).
//
// Invariants: a change of revocations or memberships takes the next number of the security stream from one locked row in the
// transaction of the change (Change), so the stream has no gap and its order is that of the commits; groups never contain
// themselves and nest at most MaxNesting deep; a join token lets in one key.
//
// Failure: errors of the driver become faults in pkg/sqldb; what does not open is DATA_DAMAGED and is never taken for absent.
package store
