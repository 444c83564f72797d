// Package provider is the OpenID provider: authorization requests and the pages that answer them, codes, tokens of applications, devices,
// sign-out. It is one server of RPCs, each of which is one HTTP route of the gateway.
//
// # What it owns
//
// The protocol: what a request has to say (RFC 6749, 7636, 8252, 8628, 9207, 9449, 9700; OpenID Connect Core 1.0), which client it is,
// where an answer may go, and which changes of state belong together. Who somebody is it asks identity (SignIn, Continue); tokens are
// minted and sessions ended by identity too.
//
// # Trust boundary
//
// Everything in an Exchange comes from strangers, by way of a gateway that may be stolen: nothing in it says who calls. A client is
// believed after it proved itself, a browser by its cookie, a form by the request that is sealed into it together with a digest of that cookie.
//
// # Invariants
//
//   - An answer goes by redirect only to an address that is the client's, byte for byte, and has iss in it.
//   - A parameter that is given twice is refused; query and body are never mixed.
//   - A code, a device code and an assertion count once, in the transaction, with the record, of what they give. A second use of a code, and of a
//     refresh token after its grace, ends what the first one gave, everywhere, before it is answered.
//   - A token of an application opens nothing but userinfo, unless the application was registered for more and asked for it.
//   - All tokens of a grant that began with a key need that key.
//   - A wrong password, an unknown user and a locked name read the same, in the same steps: signIn's.
//
// # How it fails
//
// Closed. A refusal that is for a program is an error with oauth_error; one that is for a person is a page, recorded as a refusal.
package provider
