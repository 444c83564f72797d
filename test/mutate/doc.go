// Command mutate takes one check at a time out of the code and looks whether the tests that are about it notice: the test of the tests of
// what refuses forged tokens and proofs (A3, A4), of second factors (A2), of certificates of programs and of exchanged tokens (A1), of tokens that are
// minted from memory (A3), and of what keeps one from taking another's work or time (D10).
//
// Each mutant is one replacement in one file. Nothing in the tree is changed: the changed text is given to the compiler as an overlay (go help
// build, -overlay), so a check that is missing exists in no build that anybody runs. A mutant is caught if a test of the package failed; one that
// does not compile, or whose text stands in the file not exactly once, is an error, since it proves nothing.
//
// Prints each mutant and, at the end, how many were tried and how many caught; ends with 1 if any was missed.
package main
