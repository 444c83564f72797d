// Package audit keeps the record of what a service did and refused until the telemetry service has stored it.
//
// # What it owns
//
// The tables outbox, outbox_head and outbox_bursts in the service's own database, and the counts of anonymous refusals that wait in memory.
//
// # Invariants
//
//   - The event of a change is written in the transaction of the change (Append): both become durable, or neither does. The record
//     of a refusal or of a read that must not go unrecorded has a transaction beside it, shared by those that are recorded at the same
//     time (Record), and is durable when it returns.
//   - A record may rest on a state in the same database (RecordOn): it is written only if what it tells is still so in its own transaction, so
//     that it stands before or after every change of that state, and never beside one.
//   - Events of a service are numbered 1, 2, 3 … without a gap, in the order in which they were committed: the number is taken from
//     one locked row. The order of the log is this number, never a clock.
//   - An event leaves the outbox only after its receiver said that everything up to its number is stored. So it is delivered at
//     least once and in order; the receiver removes doubles by service and number.
//   - Of instances that share a database one relays (pkg/leader), and what was delivered is removed under its term: one that was
//     replaced and does not know it may deliver again, and removes nothing.
//   - What is stored is sealed under the service's own key and bound to service, number and uid: a row that was changed, moved
//     or taken from another service's database does not open, and is not delivered.
//
// Refusals of callers that nobody knows are counted by method, code and reason, so that strangers cannot fill the log; the counts are
// written as one event each when they are flushed. A process that is killed loses at most the counts since the last flush.
//
// Calls that come a thousand times a second and each time say the same share an event (RecordBurst), with their number. It is counted ahead, in
// a row that is durable before the calls that it counts are answered: most of them write nothing, and one that is killed loses none. What it leaves
// becomes an event that says how many there were at most, and at least.
//
// # How it fails
//
// Closed. If an event cannot be stored, Append and Record say AUDIT_UNAVAILABLE and the call must not take effect; a storage that hangs
// is given Deadline. A record whose transaction was already under way may become durable after Record gave up: the log may then
// hold a call that was refused, and never the other way round. If the receiver is away, events wait; Depth says how many. If a
// stored event is damaged, or the receiver says that it has lost earlier ones, nothing after it is delivered, and the log of the
// process says so at every attempt: the proof that a record was lost must not be overtaken by later records.
//
// # Trust boundary
//
// Whoever writes the service's database can delete the newest events that were not delivered yet, or all of it; what telemetry has
// confirmed is out of his reach, and numbers that begin anew are refused there.
package audit
