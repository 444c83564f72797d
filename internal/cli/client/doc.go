// Package client is the Go client of an installation: it reaches the gateway over TLS, calls as one principal, and carries folders
// of code in and outputs out. The CLI, the demo and tests use it.
//
// It owns: which roots are believed for which address, where the token goes, which calls are repeated, and what of a local folder is
// sent or written.
//
// Trust boundary: the gateway is believed because of a certificate for its address under the installation's own root. What it
// answers is not believed further than that: names of outputs are checked before a file is made, and content against its digest. The
// local folder is not believed either: links, devices and names that mean something else on another machine are refused before
// anything is sent.
//
// Invariants: the token leaves only over TLS, and never to another address than the one that was dialled; a call is repeated only if
// the answer was UNAVAILABLE, and it reads or has a request id; a downloaded file is there whole or not at all; nothing is written outside of the chosen
// folder.
//
// Failure: errors of calls come as they came, with their gRPC status; Describe turns any error into words for people.
package client
