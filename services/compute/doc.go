// Package compute owns compute targets and runs: what is queued, started, watched, cancelled and kept of a training job. This
// package wires its parts below internal/: queue moves runs on, driver places agents, agents answers them; targets, runs, replicas and
// tracking answer everyone else; outputs, view and news serve these. Tests of the whole, behind the chain, are here.
//
// Trust boundary: users ask for runs; agents carry them. An agent is believed only about the one run that its token names, and
// only the first key that asks for a run's assignment carries it. What user code prints or leaves behind is data.
//
// Invariants: a run is started once: it leaves QUEUED in a committed change before anything is placed, and nothing brings it
// back there. It ends once, when logs, outputs and the report are committed; its tokens die with that. The submitter's rights
// are looked at anew when it starts. Killing this service loses no run: what its agents carry goes on, and is adopted.
// A run that is only tracked is never looked after: its state is its client's word. A search shows of what telemetry keeps only what
// its caller may read there, and nothing that was opened for it outlives the call.
//
// A replica of a deployment is a run that inference starts and stops. It is in no list, and serves until it is stopped.
//
// Failure: an agent that goes silent leaves its run LOST, with the reason; what cannot be isolated is not run.
package compute
