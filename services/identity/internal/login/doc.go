// Package login owns two things that stand before a password is looked at: what account a typed name means, and whether
// another try may be made for it now.
//
// Trust boundary: names and addresses come from strangers. Names are cut before they are folded; the state that a stranger can
// make is bounded.
//
// Invariants: all spellings of a name that sign in to one account share one count of failures, whether the account exists or
// not, so the answer to a locked name tells nothing. A try is counted before it is made, so tries at the same time do not slip
// through together. A locked account refuses the right password too.
//
// Failure: when the table is full, entries with few failures make room. Counts are in memory: a restart forgets them. Instances do not tell each
// other: each gives its part of the tries, which all come through the gateway in turn.
package login
