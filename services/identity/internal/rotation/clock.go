package rotation

import (
	"slices"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// shortestAhead is how long a root stands prepared at least, so that those who ask for the roots from time to time know it.
const shortestAhead = 10 * time.Second

// Clock rotates roots by themselves. The zero value never does.
type Clock struct {
	// Period is how long a root signs.
	Period time.Duration
	// Leaf is the longest life of a certificate that is written down: of services and of operators.
	Leaf time.Duration
	Waits
}

// Do is a step of a rotation.
type Do string

// The steps. The zero value is none.
const (
	Prepare  Do = "prepare"
	Activate Do = "activate"
	Taint    Do = "taint"
	Revoke   Do = "revoke"
)

// Step is what the clock does next. The zero value is nothing.
type Step struct {
	Do Do
	// Pin is the root that it is about; empty for a new one.
	Pin string
	// At is when it is due.
	At time.Time
	// Waits is what it waits for although it is due; empty for nothing.
	Waits string
	// Manual says that an operator goes on with this rotation, and that the clock waits until one root stands alone.
	Manual bool
	// Late says that it waits for longer than it can while all is well.
	Late bool
}

// Due reports whether the step is to be taken at now.
func (s Step) Due(now time.Time) bool {
	return s.Do != "" && !s.Manual && s.Waits == "" && !now.Before(s.At)
}

// least is the shortest time in which a rotation fits where all that can delay it does.
func (c Clock) least() time.Duration {
	return shortestAhead + max(c.Run, c.Leaf) + c.Connection + Leeway
}

// quarter is what each phase has besides, so that a human can look and go back.
func (c Clock) quarter() time.Duration { return max(0, c.Period-c.least()) / 4 }

// Ahead is how long before its time a root is prepared.
func (c Clock) Ahead() time.Duration { return shortestAhead + c.quarter() }

// Check refuses a period in which a rotation does not fit.
func (c Clock) Check() error {
	if c.Period != 0 && c.Period < c.least() {
		return fault.InvalidArgument("a root that signs for %v cannot be left in time: with certificates that live for %v, connections that stand for %v and run tokens that live for %v it takes %v: make root_period longer, or leaf_life, connection_age or run_life shorter",
			c.Period, c.Leaf, c.Connection, c.Run, c.least())
	}
	return nil
}

// Next is the step that follows, for roots and leaves as they stand. It never skips a wait: what Activated and Revocable refuse is waited for.
func (c Clock) Next(now time.Time, roots []Root, leaves []Leaf) Step {
	if c.Period <= 0 {
		return Step{}
	}
	var active, beside *Root
	for i := range roots {
		switch {
		case roots[i].Phase == Active && active == nil:
			active = &roots[i]
		case roots[i].Phase != Active && beside == nil:
			beside = &roots[i]
		default:
			return Step{} // not a state that orders lead to: nobody but a human knows better
		}
	}
	if active == nil {
		return Step{}
	}
	if beside == nil {
		at := since(*active).Add(c.Period - c.Ahead())
		return c.late(now, Step{Do: Prepare, At: at})
	}
	s := Step{Pin: beside.Pin, Manual: beside.Manual}
	var refused error
	switch beside.Phase {
	case Prepared:
		s.Do, s.At = Activate, later(since(*active).Add(c.Period), beside.Made.Add(c.Ahead()))
		_, refused = Activated(now, roots, leaves, beside.Pin, false)
	case Old:
		s.Do, s.At = Taint, beside.Signed.Add(c.quarter())
	case Tainted:
		s.Do, s.At = Revoke, beside.Signed.Add(2*c.quarter())
		refused = Revocable(now, roots, leaves, beside.Pin, c.Waits, false)
	default:
		return Step{}
	}
	if refused != nil && !now.Before(s.At) {
		s.Waits = refused.Error()
	}
	return c.late(now, s)
}

func (c Clock) late(now time.Time, s Step) Step {
	s.Late = now.After(s.At.Add(c.least()))
	return s
}

// since is when the clock began to count the period of a root.
func since(r Root) time.Time { return later(r.Since, r.Made) }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// ByHand marks what stands beside the root that signs: an operator has ordered something, and goes on.
func ByHand(roots []Root) []Root {
	out := slices.Clone(roots)
	for i := range out {
		out[i].Manual = out[i].Phase != Active
	}
	return out
}

// Anew gives roots with the period of the one that signs begun at now: what an operator has dropped is not made again at once.
func Anew(now time.Time, roots []Root) []Root {
	out := slices.Clone(roots)
	for i := range out {
		if out[i].Phase == Active {
			out[i].Since = now
		}
	}
	return out
}
