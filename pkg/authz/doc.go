// Package authz decides, inside each service and without a network, whether a principal may do something: the engine behind
// every rule that asks for an action (B1, B2, B4). It also knows what was revoked (A3).
//
// Its state comes by two streams: from workspace the tree of scopes, role definitions and assignments, from identity group
// memberships and revocations. Follow keeps both up; the service that owns a stream applies its own changes in the process.
//
// Trust boundary: the two senders are trusted with what they say and not with the form of it. A record that cannot be right,
// a missing message and an unknown order are refused, and then nothing new is taken until a full state comes. What a Query
// carries is a stranger's, but for the Scope, which comes from Resolve and is looked up again.
//
// How it decides:
//   - Assignments bind the uid of a principal to the uid of a scope, and reach everything below it: installation,
//     subscription, resource group, workspace. A name that is used again inherits nothing. Groups are resolved at the
//     decision, through other groups, to a depth of MaxGroupDepth; cycles do no harm.
//   - A role gives its actions less its notActions, and its dataActions less its notDataActions; assignments add up, and the
//     not-lists of one role take nothing from another. "*" matches any characters, "/" too. Letters of ASCII match without
//     regard to case; all else, and every id, byte for byte. A role with a pattern that is malformed gives nothing.
//   - A run token reaches what its action list names, "<action> <path below the workspace>", in its own workspace, exactly;
//     the roles of the submitter neither add to that nor are asked again. It reaches no workspace as a whole.
//   - While a scope or one above it is being made or removed it is as if it were not there, except that it can be read and
//     deleted itself, by the actions workspace/<collection>/read and delete, by those who hold them: so that a creation can be
//     watched and a removal repeated. Services that call in their own name are not asked about here.
//   - Decision.MayKnow says whether a refusal may show that the resource exists: whether the principal holds, at the scope
//     or above it, the read action of the type that was asked for or of the scope itself. Holding something further below is
//     not enough: the parents of what one may read stay NOT_FOUND. The installation is known to everybody. A run may know of
//     the resources in its action list.
//
// Invariants: zero values are refused: no principal, no action, no scope, no state. A reader sees one whole state, never half
// of a message. When Apply has returned, every later Decide, Revoked and Epoch answers from the new state. Deciding allocates
// nothing, but for the first decision on a principal after a change.
//
// Failure: without a full state everything is refused. With a state that is older than MaxStale, Fresh refuses as
// Unavailable, AUTHZ_STATE_STALE; the caller asks it before it acts on a decision. A malformed message leaves the state as
// it was, to go stale.
//
// An Engine is safe for concurrent use. The build tag redoubt_break_authorize makes every decision an allowance, to show that
// tests notice; it is for tests only.
package authz
