// Package clients runs the examples of clients in other languages against an installation, and compares what each of them prints: all have to
// say the same. Behind `make clients`, which generates and builds them; REDOUBT_SERVER and its companions name an installation
// that runs already, without them the test starts one of its own.
//
// Trust boundary and invariants: none of its own; what the clients may is what their tokens allow.
//
// Failure: a client that cannot be built fails its build, not this test; a language that is not there is skipped, with the reason.
package clients
