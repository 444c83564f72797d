// Package demo owns the walk that shows what an installation does: `redoubt demo` starts one, signs in, trains a model on real data as a
// run, lets a Reader and a thief try what they may not, and takes everything down again. Where it is given an installation that runs
// already, it goes the same walk there, in a workspace of its own, which it removes with all that it made.
//
// Trust boundary: it is a client like any other. It hosts an agent for a self-hosted target of its own, as anyone may, and plays the
// thief with the run token which that agent holds.
//
// Invariants: each step checks what it shows; a step that does not hold ends the demo with an error. Nothing is left behind, unless
// the user asked to keep it.
//
// Failure: the first thing that is not as it should be is printed, and the exit code is not 0.
package demo
