// Package app is one invocation of the command line: what every command shares.
//
// It owns the flags that every command has, over the environment, over the settings; which installation and which resources are meant;
// how an answer is written, what is asked at the terminal, and the exit code that says how the command ended. Packages beside it hold
// the commands themselves.
//
// Trust boundary: the terminal and the user's own files on one side, the installation on the other. Passwords and secrets come from a
// terminal without echo, from standard input or from a file, never from a flag. The stored token goes only to the address that it was
// made for.
//
// Invariants: one message on standard error for one failure; `--debug` shows methods, codes and times, never metadata or messages.
//
// Failure: wrong use names the command's help; errors of the installation keep their code, which decides the exit code.
package app
