package driver

import (
	"context"
	"sync"
	"time"
)

// Interpreter is where a machine's Python lives: how it is called, and the folders that a sandbox has to show for it.
type Interpreter struct {
	Path  string   `json:"path"`
	Roots []string `json:"roots"`
}

const (
	interpreterFresh   = time.Minute
	interpreterTimeout = 30 * time.Second
)

// pythons remembers where this machine's Python lives, so that not every agent has to ask: a shim of a version manager takes longer to
// answer than all else that a run waits for. An answer is looked for again after a minute, beside the runs.
type pythons struct {
	find func(context.Context) (Interpreter, error) // nil: nothing is known
	now  func() time.Time

	mu      sync.Mutex
	known   Interpreter
	asked   time.Time
	asking  bool
	running sync.WaitGroup
}

// hint is the last answer, nil while there is none. The agent looks whether it still holds.
func (p *pythons) hint() *Interpreter {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.find == nil {
		return nil
	}
	if now := p.now(); !p.asking && (p.asked.IsZero() || now.Sub(p.asked) >= interpreterFresh) {
		p.asking, p.asked = true, now
		p.running.Go(p.ask)
	}
	if p.known.Path == "" {
		return nil
	}
	return &Interpreter{Path: p.known.Path, Roots: p.known.Roots}
}

func (p *pythons) ask() {
	ctx, cancel := context.WithTimeout(context.Background(), interpreterTimeout)
	defer cancel()
	found, err := p.find(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asking = false
	if err != nil {
		found = Interpreter{} // the agent asks, and says what is wrong
	}
	p.known = found
}

// wait returns when nobody is asked any more.
func (p *pythons) wait() { p.running.Wait() }
