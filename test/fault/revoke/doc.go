// Command revoke takes rights away from an installation of many processes under load, and looks whether any of them is honoured after the
// call has returned (A3, B1, ADR 28, ADR 36). docs/revocation.md says what is counted.
//
// It owns an installation of its own (test/fault/internal/mesh), lanes that give a right, use it at every service, take it away and go on
// using it, and the record of every request by this process's one clock.
//
// Trust boundary: it is administrator, owner, agent, thief and network at once. Nothing that the installation says of itself counts, but for
// the number of a secret's versions, which tells what was committed.
//
// Invariants: a lane has one right at a time; the kinds of rights and the faults follow from the seed, what the scheduler does not; one
// fault at a time, which is healed before the next; nothing remains.
//
// Failure: it ends with 1 when something was honoured after the return, a history cannot be put in order, a right that was given was
// refused, a call said more than it could know, or too few rounds were made to say anything.
package main
