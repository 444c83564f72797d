// Package requestlog keeps the record of each scoring request until telemetry has it (G3).
//
// # What it owns
//
// A spool: one folder with segments, files to which sealed records are only ever appended, and a file that names the source that telemetry
// counts them under. One process has it, by a lock. Append writes, Relay delivers and removes.
//
// # Trust boundary
//
// The address, the path and the user agent of a record come from strangers: they are cut to a bound, and sealed under the service's own
// key, each record bound to its segment and number, before they reach the disk. Whoever writes to the folder can remove or damage records, which
// is counted; he cannot read, change, move or repeat one. Which endpoint a request was for is the listener's word.
//
// # Invariants
//
//   - When Append returns, the record was given to the kernel in one write: kill -9 of the process loses nothing that was appended. There is
//     no fsync; a power failure may lose the last seconds.
//   - Numbers rise by one and are given in the order of the file. A restart goes on with the same source and the next number.
//   - A segment is removed when telemetry has all of it. Telemetry takes every number once, so a batch may be sent again.
//   - Append never fails and asks nobody. What cannot be written (spool full, disk full, the disk stuck in another's write) is dropped and
//     counted, and the count survives as far as the disk lets it.
//
// # How it fails
//
// Telemetry away: the spool grows to its bound, then new records are dropped. A record that does not open is counted and left out; the others
// are delivered. A spool that is older than what telemetry has of it (put back from a copy, or cut by a power failure) goes on under a new source.
package requestlog
