// Package agent carries one run on a compute target: from its enrolment to the report of how it ended (A4, H3, H5).
//
// A replica of a deployment is a run whose command is the scoring host (package runtimes): the agent brings it the models, and joins
// its workers with inference (package relay).
//
// It owns the run's key and token, both in memory only; the connection to the gateway; what goes into the sandbox and what
// comes out of it. How a command is confined is package sandbox's affair; what a run is, compute's.
//
// # Trust boundary
//
// On one side is the gateway, which the agent believes because of the roots it was given. On the other is user code, which is
// hostile: it reaches the agent by its output, by its output folder, and by one HTTP endpoint inside its own network, and none
// of the three can ask for anything but to be recorded for this run. It never sees the token, the key, or anything that is
// read from the gateway but its own snapshot.
//
// # Invariants
//
// The join token is used once, with a key that was made for this run. Every call carries the run token and a fresh proof of
// that key (RFC 9449). Nothing of the run is written to the machine's disk: files are on the sandbox's volume, which lies in
// memory, and the log waits in memory too. So there is nothing to wipe but memory, also after kill -9 (D8).
//
// What user code was told to be stored is stored: the endpoint answers when telemetry has. The log is sent in order from the
// offset that is stored, metrics in batches with ids: a connection that breaks loses nothing and doubles nothing. A run is
// reported as ended only after all of its log, metrics and outputs.
//
// # Bounds
//
// At most Config.LogBuffer bytes of log wait for the gateway; when it is away for longer, the command's writes block until it
// is back, as they would on a full pipe. At most 64 batches of metrics wait; further ones are answered with 503.
//
// # Failure
//
// Without the gateway a run goes on for as long as its token is good, minutes; after that, and as soon as the platform says
// that the run has ended, the command is killed. A run that was cancelled, or that the platform has given up as lost meanwhile, hears so by a
// heartbeat: its command is asked to end, and what it has is delivered, by the token that there is, which opens nothing else then. Whatever keeps a run from starting is reported as its failure, with a reason.
// When the agent dies, the sandbox ends with it and compute gives the run up as lost.
package agent
