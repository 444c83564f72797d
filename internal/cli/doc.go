// Package cli is the command `redoubt`: nouns and verbs on top of package client, and the commands that run an installation on top of
// package node.
//
// It owns what is typed and what is printed: flags over environment over the file of contexts, tables or JSON, and the exit code that
// says how it ended. It decides nothing about access: the services do.
//
// Trust boundary: the terminal and the user's own files on one side, the installation on the other. Passwords and secrets come from a
// terminal without echo, from standard input or from a file, never from a flag, which other users of the machine can read. What other
// users wrote is printed without what steers a terminal. The stored token goes only to the address that it was made for.
//
// Invariants: exit codes are 0 ok, 1 wrong use or a local problem, 2 the installation refused or failed, or a run that was waited for
// did not complete, 3 denied, 4 out of time; `--debug` shows methods, codes and times, never metadata or messages.
//
// Failure: one message on standard error that says what is wrong and what to do next, with the code, the reason and the request id
// where the installation gave them.
package cli
