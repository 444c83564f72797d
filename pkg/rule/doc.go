// Package rule owns the meaning of the rules that methods declare in their contracts (proto/redoubt/rule/v1): which rule a
// method has, whether the rule is borne out by its messages, and what of a request it points at.
//
// Trust boundary: descriptors are part of the binary and trusted, but not believed: a rule that contradicts itself, or that
// leaves out a resource which the request refers to, keeps the server from starting. Requests are a stranger's; what comes
// out of Scope and Uses is text to be parsed.
//
// Invariants:
//   - A Table holds every method of the services that it was loaded for, or there is no Table. A method that is not in it is
//     to be refused.
//   - A method says exactly one of: which action it takes, which services may call it, that it is public, that it is for
//     oneself. What cannot be enforced with that choice (a scope without an action, a run token without a permission) may
//     not stand beside it.
//   - Every field of a request that is marked as a reference is the rule's scope or among its uses.
//   - Contracts that are not ours (health, reflection, channelz, the SPIFFE Workload API) have their rules in one overlay of
//     the same type, and a method that a new version adds to them has none.
//
// Failure: Load and Lint name the method, the field and what to change. Scope and its kin refuse as InvalidArgument; a message
// of another type than the method's is an Internal fault.
//
// A Table and its Methods are immutable and safe for concurrent use.
package rule
