// Package requests keeps what was asked of endpoints, and how it was answered: the request log (G3).
//
// # What it owns
//
// The tables of chunks and of sources. A chunk is up to 256 requests to one endpoint within one minute; only the last one of a minute grows, and
// only at its end, so a place (minute, chunk, index) means the same request for ever.
//
// # Trust boundary
//
// Records come from inference, which is believed about them. What strangers and tenants wrote into them is sealed under the workspace's data key,
// bound to endpoint, minute, number and everything that stands in clear beside it. Clear are: uids of workspace and endpoint, the minute, the number
// of requests, which classes of status are among them, and how far each source is stored. Whoever writes the database can remove requests or
// bring an older whole state back, and cannot read or forge one.
//
// # Invariants
//
//   - A batch and how far its source is stored are one transaction: what is sent again is known by its number, and stored once.
//   - A list is ordered by minute, and within a minute by arrival, the newest first. A page goes on where the one before it ended; what is stored
//     meanwhile stands before it or does not matter to it.
//   - A watch gives each request that is stored after it began once.
//   - A workspace that was purged takes no requests any more.
//
// # How it fails
//
// Where keyvault is away, a batch is refused whole and sent again. Requests of a workspace whose key is disabled cannot be kept: they are left
// out and counted, so that they do not hold up others. A watch that is too far behind is ended.
package requests
