// Package history keeps what runs measure: metrics, parameters and tags.
//
// # What it owns
//
// The run history databases. A database is asked for by workspace (Stores.Store), so that a workspace can have one of its own; today
// all share one. One goroutine a Store commits: batches that arrive while a commit is under way share the next one.
//
// # Invariants
//
//   - A batch is stored whole or not at all, and once: one with an id that is known is answered and not stored again. Log returns after
//     the commit.
//   - Points of one metric stand in chunks of at most 1,024 points that began at most a second before their last commit. Only the
//     last chunk of a metric grows, and only at its end, so a place (chunk, index) means the same point for ever: a watch and a
//     page can be taken up there, and miss nothing and double nothing.
//   - The latest point of a metric is a row of its own, written in the same transaction. Of two points the later is the one with the
//     greater (step, time, value), in that order; NaN stands below every number. Values keep their bits: NaN and the infinities too.
//   - A parameter keeps its first value.
//   - A workspace that was purged takes no data any more: its uid is remembered.
//
// # Trust boundary
//
// Everything a tenant wrote is sealed under the workspace's data key and bound to workspace, kind and place; the ranges and counts
// that stand in clear beside a chunk, because queries select by them, are bound to it too. Names are found by MAC. Clear are: uids of
// run and workspace, the number of points and their range of steps and times for each chunk, and times of writing. Whoever writes
// the database can remove data or bring an older whole state back, and cannot read or forge it.
//
// # How it fails
//
// Nothing is acknowledged that is not durable. A batch that breaks a rule fails alone; an error of the database fails every batch of
// its transaction, and they can all be sent again under their ids.
package history
