// Package layering holds the house's own rules about its source tree: which package may import which, where SQL drivers,
// the etcd client and cryptographic primitives may be used, that every package says what it is, and that links in the docs
// lead somewhere. It has tests only.
//
// The rules are data, in rules_test.go: a new package gets a line there, or the test names it as one that stands nowhere.
// What is judged comes from `go list`, so the test knows what the compiler knows, and nothing of build tags that are off.
package layering
