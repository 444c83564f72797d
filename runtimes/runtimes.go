// Package runtimes holds what runs beside user code: the scoring host of a replica, in Python's standard library.
//
// Trust boundary: the files are data here. In a run they are on the side of user code: the sandbox shows them read-only, and nothing
// that the host says is believed but about its own replica.
//
// Invariants, failure: none; a file that is missing does not compile.
package runtimes

import _ "embed"

// host is python/host.py.
//
//go:embed python/host.py
var host []byte

// Host is the scoring host: a program for Python 3.9 or later. The caller may keep and change what it gets.
func Host() []byte { return append([]byte(nil), host...) }
