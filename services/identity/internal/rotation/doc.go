// Package rotation decides which of an installation's keys does what, and what has to be written so that others follow: the keys that
// sign tokens (A3), and the roots of the mesh (D10). docs/adr/0031-keys-that-rotate.md says why.
//
// It owns no key and no row: it is given the times of keys and the phases of roots as they stand in a transaction, and answers with
// what to change there. The clock is an argument. It trusts whoever calls it to be allowed to, and writes nothing.
//
// Invariants: once a plan is written a key signs at every moment from now on; a key is published for Policy.Ahead before it signs,
// unless there is no other; it is kept for Policy.Life after it has signed last. One root signs; one more may stand beside it; a root that
// signs cannot be tainted or revoked.
//
// Failure: an order that cannot be followed is a fault of code FailedPrecondition, and nothing is to be written.
package rotation
