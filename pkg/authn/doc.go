// Package authn owns the proofs of who is calling: the access tokens of RFC 9068 that identity mints and every service
// verifies itself (A3), the run tokens among them (A4), and the proofs of possession of RFC 9449 (DPoP) that make a
// stolen token useless. Passwords are in the package password below it (A1).
//
// Trust boundary: a token and a proof come from a stranger until the last check has passed. They are bounded in size
// before anything is parsed, and only one shape is understood: a compact JWS, ES256, with the members listed in this
// package and no others in its header. The key set and the revocation state are trusted; they arrive over mTLS. What a
// token says about its bearer is not permission: authorization is decided elsewhere.
//
// Invariants:
//   - The algorithm is a constant of the code and never read from the token; a key is found by a map lookup of its id
//     and never from a URL or a certificate that the token carries.
//   - A Verifier has an issuer, keys and a revocation state, or it cannot be made. A call names one audience, which
//     must equal the token's one audience byte for byte; the empty audience matches nothing.
//   - Expiry is exact: at the second in exp the token is over, whatever the leeway. The leeway of at most 30 s is for
//     iat and nbf only, where it makes up for a verifier whose clock is slow. A clock that is behind by more than that
//     refuses new tokens with a clear cause, and a clock that jumps back refuses those issued before the jump.
//   - Revocation is asked on every call. A cached verification is used only while the revocation epoch and the
//     generation of the keys are those under which it was last checked; the epoch is read before the check, so a
//     revocation that arrives in between causes one more check and never one too few.
//   - The token of a run that has ended is revoked. Where the caller asks for it (VerifyDelivery) it is taken for as long as the run's mark says
//     that its agent may deliver; a run without a mark, or with one that is over or too long, delivers nothing.
//   - A proof is accepted once, for one key, within its window. A full replay cache refuses, it does not forget.
//   - A token that is bound to a key (Verified.Bound) counts only together with a proof by that key. Verify does not
//     see the proof: the caller of Verify must go on to ProofChecker.Check.
//
// Failure: every refusal is a fault of code Unauthenticated with one of the TOKEN_ reasons, its exact cause in the log
// and not in the answer, except where the token could not be judged: no fresh revocation state and no keys are
// Unavailable, a full replay cache is ResourceExhausted.
//
// Everything here is safe for concurrent use. A *Verified is shared between calls and must not be changed.
//
// The build tag redoubt_break_audience removes the audience check, to show that the tests notice. It is for tests only.
package authn
