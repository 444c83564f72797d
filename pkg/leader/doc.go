// Package leader lets one instance of a service act alone in a role, such as relaying the outbox, and refuses what a leader of
// yesterday writes.
//
// # What it owns
//
// The table leader of the service's own database: for each role a term that only rises, and who claimed it. And the running of a
// function while this instance leads.
//
// # How it works
//
// Who leads is decided by an election in etcd (Config.Election; pkg/discovery holds the lease). Whoever is elected claims the role in
// SQL: it reads the term, asks etcd with its quorum whether it is still elected, and raises the term if nobody else did so
// since it was read. Every write that a leader makes checks, first in its own transaction, that the term is still his (Term.Check,
// Term.Write). Writers of one database stand in line (pkg/sqldb), so between the check and the commit nobody can claim.
//
// On SQLite one process has the database, by its lock: it leads in every role, and needs no etcd. It claims terms all the same, so that
// both engines run the same statements.
//
// # Invariants
//
//   - Two instances may believe for a while that they lead; only the last one that claimed the role writes. A leader that was paused,
//     cut off or slow, and comes back, writes nothing, and its leadership ends with the refusal.
//   - A stale winner cannot keep the true leader out: to claim it must be elected at the moment when it asks etcd, and that question
//     comes after it has read the term that it raises. So a claim that was overtaken fails, and one that overtakes is itself
//     overtaken: the true leader's write is refused once, it claims again, and the other one is not elected any more.
//   - An etcd that lost its data, or one that is not the one of before, changes nothing of this: terms are counted in SQL.
//
// # Trust boundary
//
// etcd is trusted with who may try, never with what is written: a forged election costs an instance its leadership and no data its order.
// Whoever can write the database can write this table.
//
// # How it fails
//
// Without etcd nobody new is elected, and a leader goes on until its lease ends; then the role's work waits. Errors of the work are
// logged, and the role is given up and campaigned for again.
package leader
