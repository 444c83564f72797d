// Package cli is the command `redoubt`: nouns and verbs on top of package client, and the commands that run an installation on top of
// package node.
//
// It owns the tree of commands alone. What one invocation is stands in package app, and each noun in a package beside it: installation,
// account, tenancy, vault, jobs, models, endpoints, activity. It decides nothing about access: the services do.
//
// Trust boundary: the terminal and the user's own files on one side, the installation on the other; package app and the packages of
// the nouns say what that means for them.
//
// Invariants: exit codes are 0 ok, 1 wrong use or a local problem, 2 the installation refused or failed, or a run that was waited for
// did not complete, 3 denied, 4 out of time. No flag takes a secret. The tree, as testdata/help.txt has it, is what people have in
// their scripts.
//
// Failure: one message on standard error that says what is wrong and what to do next, with the code, the reason and the request id
// where the installation gave them.
package cli
