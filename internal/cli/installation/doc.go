// Package installation is the commands that run an installation, and those that look at one from its own machine: up, serve, etcd,
// bootstrap, agent, health, doctor, demo, version.
//
// It owns how a process of an installation begins and ends, the first password's way to whoever started it, and the context that is
// made for him.
//
// Trust boundary: the data folder of this machine. The first password goes to a terminal, or to a file of 0600, and to nothing else.
// Ports of the mesh are believed by the SPIFFE ID of the service.
//
// Failure: a part that fails stops the process with its error; a stop that takes too long ends it anyway, and says so.
package installation
