// Package queue moves runs from one state to the next: out of the queue, to an agent, and to their end.
//
// Instances of the service share it. One of them is elected to lead: it starts runs of local targets, on its own machine, watches
// those that go, and has the tokens of those that ended revoked. Each instance looks after the agents of its own machine. Claims,
// heartbeats, reports and cancels are taken by any of them.
//
// Trust boundary: it acts in the platform's name for those who submitted runs, whose rights are looked at anew when a run starts.
//
// Invariants: a run is started once: it leaves QUEUED in a committed change before anything is placed, and nothing brings it back
// there. What a leader writes is checked with its term in the same transaction, so a leader of yesterday starts and ends nothing. A run
// ends once; its tokens die with that. A target has no more active runs than it takes, whoever claims.
//
// Failure: an agent that goes silent leaves its run LOST, with the reason; silence while nobody looked does not count. Where a peer is
// away, what waits goes on waiting. An instance that is gone leaves its agents: they go on through the others.
package queue
