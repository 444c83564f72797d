// Package declare is the commands about files that say what is to be: apply and get.
//
// It owns the documents: how one is read, how it is compared with what is there, in which order changes are made, and how what is
// there is written as documents again. See docs/adr/0017-files-that-say-what-is-to-be.md.
//
// Trust boundary: a file is a stranger's as far as its form goes. It is bounded, read whole and refused whole before anything is asked
// of the installation: unknown fields, keys that stand twice, anchors, aliases and tags of YAML. What is printed of it, and of answers,
// is made harmless for a terminal.
//
// Invariants: a document names fields, and only those are compared and changed; a map is one field. What `get` writes, `apply` takes
// and finds nothing to change. No field can hold a key, a token or a secret. A dry run calls nothing that changes.
//
// Failure: the first document that is refused ends the command; what was done before is told, and applying again goes on from there.
package declare
