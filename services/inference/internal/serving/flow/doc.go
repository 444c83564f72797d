// Package flow owns the way of a scoring request, whatever its protocol: the credential, the body, the choice of a deployment, the worker, and
// the record.
//
// Trust boundary: a Call has what a stranger sent. What the protocols' handlers get from here has passed: the caller is one of the
// endpoint's, the body is whole and within its bounds.
//
// Invariants: nothing asks SQL or another service. When Set has returned, no request that begins later is judged by what was before, and
// none is forwarded on a credential that is no longer one. A request is sent once at most. The record is handed over before the last
// byte of the answer; requests to what is no endpoint are counted.
//
// Failure: closed, by a Refusal: a fault with the status that it reads as over HTTP.
package flow
