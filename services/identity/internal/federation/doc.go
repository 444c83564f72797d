// Package federation signs people in at foreign OpenID issuers: it is the relying party of each issuer that an administrator has entered.
//
// # What it owns
//
// The client that speaks to strangers' servers, what is cached of them, and the checks of an answer and its ID token. It knows no accounts.
//
// # Trust boundary
//
// An issuer is believed about its own people and nothing else. Its document, keys, answers and names are a stranger's: bounded in size and
// time, read strictly, and never shown unread. Its servers must not lead the client into the own network.
//
// # Invariants
//
//   - The issuer in document, answer and token is the pinned one, byte for byte. go-oidc lets Google leave the scheme out; this package does not.
//   - https alone, no redirects, no proxy. The address that is dialled is the one that was looked at.
//   - A private address is dialled only for a host that the issuer's entry allows by its exact name.
//   - Signatures are asymmetric. Every audience of a token is known, and its nonce is the one that was sent.
//
// # How it fails
//
// Closed, with one of two faults: the home cannot be reached or speaks nonsense (UNAVAILABLE), or what it said is not believed (SIGN_IN_FAILED). The
// cause is for our log; the person reads that it did not work.
package federation
