// Package vault is the commands about secrets and keys of a workspace.
//
// Trust boundary: a secret's value comes from a terminal without echo, from standard input or from a file, never from a flag, and is
// written to standard output alone, where it was asked for.
//
// Failure: errors of the installation come as they came.
package vault
