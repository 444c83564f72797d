// Package identity is the service that knows who is who: the directory of an installation, the issuer of its tokens, and the
// certificate authority of its mesh.
//
// What it owns: users with their passwords, service principals with their secrets, managed identities, groups (A1, B4); the
// key that access tokens are signed with, and every rule by which one is issued, exchanged, renewed or revoked (A3, A4); the root
// of the mesh, the join tokens with which services and agents come in, and the keys that they proved (D10); the stream by which all
// services learn of revocations and memberships.
//
// Trust boundary: passwords, client secrets, join tokens, certificate requests and tokens to be exchanged come from strangers or from
// services that may be stolen. A service gets tokens only for callers who brought it one, with itself in act and one other service as
// audience; compute besides gets them for principals whose runs it starts (ActAs), each with a record. The gateway gets none.
// What is stored is under a seal of identity's own, so it starts and serves without keyvault.
//
// Invariants:
//   - A token never lives longer, and never may more, than the one that it descends from; revoking any ancestor revokes it.
//   - Identity applies a revocation to itself before the call that made it returns, and tells the others in the order of the
//     commits, without a gap.
//   - A wrong password, an unknown user and a locked name cannot be told apart by the answer; one argon2id hash is computed for each
//     try that is let through.
//   - A join token lets in one key. A certificate is issued only for a key that its holder has just proved.
//   - A token that is minted from memory is given only if what is remembered is so in the transaction of its record.
//   - No secret is stored that could be shown again: passwords as argon2id, client secrets and join tokens as digests.
//
// Failure: closed. Without its database nothing is issued. Without its seal key or with a damaged one it does not start, and
// says which.
package identity
