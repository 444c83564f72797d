// Package proc drives installations whose services are processes of their own, and installations in one process that is killed: what
// an operator starts, as he starts it (D10, H3, G2). It also has the walk, which other suites go over their own installations.
//
// It owns the processes that it starts, each installation's state folder and its folder for temporary files.
//
// Trust boundary: the same as everywhere. An installation is reached through its gateway, and through signals to its processes.
//
// Invariants: every process ends with its test; an installation's ports lie below those that the system hands out, so that they are
// still free at the next start.
//
// Failure: what does not start or end in time fails the test, with the end of the process's own output.
package proc
