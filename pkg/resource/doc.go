// Package resource owns the names of resources (AIP-122), the grammar of their segments, the uids that rows and
// assignments are keyed by, and the page sizes of lists.
//
// A name is either "/", the installation, or pairs of collection and id from the root:
//
//	subscriptions/{subscription}/resourceGroups/{group}/workspaces/{workspace}/runs/{run}
//
// Trust boundary: Parse takes what a stranger sent. It looks at the length before anything else, reads each byte at most
// twice, allocates nothing for a good name and never repeats a bad one in its answer.
//
// Invariants:
//   - A Name that is not zero came from Parse or from a parsed Name, so it is in the one spelling that its resource has:
//     ASCII, case-sensitive, no empty segment, no ".", no trailing slash, nothing percent-encoded, nothing to normalise.
//     Two names are the same resource exactly when their bytes are the same, so == compares them.
//   - The zero Name is invalid and has KindUnknown, and no function here makes it from input without an error.
//   - A uid has 128 bits of crypto/rand. A name can be used again after its resource is gone; a uid cannot.
//
// Failure: every refusal is a fault of code InvalidArgument that says what is allowed and names a field of the request. A
// system without randomness ends the process, as crypto/rand does.
//
// Everything here is a value or a function of its arguments, safe for concurrent use.
package resource
