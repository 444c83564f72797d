// Package openid is the command line as a client of an installation's OpenID provider: the client redoubt-cli, which is public, and
// service principals.
//
// It owns three ways to tokens (a browser on this machine, a device's code, a program's secret), the key that they are bound to, and what
// keeps a session alive: proofs on each call and the use of the refresh token.
//
// Trust boundary: the installation is believed as far as its TLS certificate goes, and only at the address that the user named: an issuer or
// an endpoint elsewhere is refused. What reaches the listener on 127.0.0.1 comes from anybody on this machine and from every page in its
// browsers; nothing of it counts before it has shown the state. What a server says is shown with its control characters taken out.
//
// Invariants: the key is made here and leaves this machine never; tokens that are not bound to it are refused. The listener takes one
// answer and is gone. A refresh token is used by one process at a time, under the settings' lock, and what comes of it is kept before the
// lock is left.
//
// Failure: a sign-in that fails leaves the settings as they were. A session that cannot be renewed now is used while it lasts; one that is
// over is forgotten, and the command says how to sign in.
package openid
