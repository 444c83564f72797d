// Package driver places agents where runs are carried.
//
// Trust boundary: a placement holds a join token; it goes to the agent by an inherited descriptor, never by a file, a flag or the
// environment. What an agent leaves in its folder is not read, but for its pid.
//
// Invariants: an agent outlives the process that started it, and is found again by its folder. A pid that was given to another
// process is never taken for the agent.
//
// Failure: what cannot be started leaves no folder; what cannot be removed is tried again.
package driver

import "context"

// Placement is what an agent is started with, as JSON on descriptor 3. The join token in it is good once.
type Placement struct {
	Gateway     string `json:"gateway"`
	PublicURL   string `json:"public_url"`
	CAPEM       string `json:"ca_pem"`
	Run         string `json:"run"`
	RunUID      string `json:"run_uid"`
	JoinToken   string `json:"join_token"`
	Folder      string `json:"folder"`
	HeartbeatMS int64  `json:"heartbeat_ms"`
	// Python is where the target's Python was found last; nil for the agent to look itself.
	Python *Interpreter `json:"python,omitempty"`
}

// Driver places agents on a target. All methods but Start are quick, and may name a run that the driver does not know.
type Driver interface {
	// Start places one agent for one run. It returns when the agent is on its way.
	Start(ctx context.Context, p Placement) error
	// Gone reports whether the run's agent was placed here and is known to have ended.
	Gone(runUID string) bool
	// Kill ends the agent, and with it the user's command.
	Kill(runUID string)
	// Clean removes what is left of a run that has ended. It may be called again and again.
	Clean(runUID string)
	// Left gives the uids of the runs of which something is left here: an agent, or what it had.
	Left() []string
}
