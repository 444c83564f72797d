package apart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Config of a Pool. Zero fields take the defaults.
type Config struct {
	// Lanes is how many threads one hash computes on, at most. 1 when 0.
	Lanes uint8
	// Idle is how long a worker without work stays. 1 min when 0.
	Idle time.Duration
	// Patience is how long a worker may take to start, and for one hash: then it is killed. 1 min when 0.
	Patience time.Duration
	// Logger is silent when nil.
	Logger *slog.Logger
}

// Stats counts what a Pool did.
type Stats struct{ Started, Failed int64 }

// Pool has as many workers as there are jobs at once: the caller bounds those.
type Pool struct {
	cfg             Config
	started, failed atomic.Int64

	mu     sync.Mutex
	idle   []*worker // the last one put back at the end
	all    map[*worker]struct{}
	broken bool // the last one failed: said once, not at each try
	closed bool
}

// New makes a Pool. It starts nothing.
func New(cfg Config) (*Pool, error) {
	if err := possible(); err != nil {
		return nil, err
	}
	if cfg.Lanes == 0 {
		cfg.Lanes = 1
	}
	if cfg.Idle == 0 {
		cfg.Idle = time.Minute
	}
	if cfg.Patience == 0 {
		cfg.Patience = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Lanes > MaxLanes || cfg.Idle < 0 || cfg.Patience < 0 {
		return nil, errors.New("apart: the configuration is out of bounds")
	}
	return &Pool{cfg: cfg, all: make(map[*worker]struct{})}, nil
}

// Stats gives the counts until now.
func (p *Pool) Stats() Stats { return Stats{Started: p.started.Load(), Failed: p.failed.Load()} }

// Close kills all workers. Jobs under way fail, and later ones do.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	all := p.all
	p.all, p.idle = make(map[*worker]struct{}), nil
	p.mu.Unlock()
	for w := range all {
		w.end()
	}
}

// Compute has a worker compute the hash. It does not look at ctx once the worker has begun: argon2 cannot be stopped, and to kill the worker and
// start another costs more than to wait. The error is UNAVAILABLE, or ctx's.
func (p *Pool) Compute(ctx context.Context, j Job) ([]byte, error) {
	if !j.ok() {
		return nil, fault.Internal(errJob, "the password cannot be hashed")
	}
	w, err := p.take()
	if err != nil {
		return nil, p.unavailable(err)
	}
	if err := ctx.Err(); err != nil {
		p.put(w)
		return nil, err
	}
	key, err := w.do(j, p.cfg.Patience)
	if err != nil {
		p.drop(w)
		return nil, p.unavailable(err)
	}
	p.put(w)
	p.mu.Lock()
	p.broken = false
	p.mu.Unlock()
	return key, nil
}

func (p *Pool) unavailable(cause error) error {
	p.failed.Add(1)
	p.mu.Lock()
	first := !p.broken && !p.closed
	p.broken = true
	p.mu.Unlock()
	if first {
		p.cfg.Logger.Error("the process that computes password hashes failed; nobody who signs in by password gets in while it does", "error", cause)
	}
	return fault.Wrap(cause, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "passwords cannot be checked right now; try again in a moment").Retry(time.Second)
}

var errClosed = errors.New("apart: the pool is closed")

// take gives the worker that was busy last, or a new one.
func (p *Pool) take() (*worker, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosed
	}
	for n := len(p.idle); n > 0; n-- {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		w.timer.Stop()
		if w.gone() { // killed while it had nothing to do
			delete(p.all, w)
			go w.end()
			continue
		}
		p.mu.Unlock()
		return w, nil
	}
	p.mu.Unlock()
	w, err := start(p.cfg.Lanes, p.cfg.Patience)
	if err != nil {
		return nil, fmt.Errorf("start it: %w", err)
	}
	p.started.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		go w.end()
		return nil, errClosed
	}
	p.all[w] = struct{}{}
	return w, nil
}

// put keeps a worker for the next job, for as long as an idle one stays.
func (p *Pool) put(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return // Close has ended it
	}
	p.idle = append(p.idle, w)
	w.timer = time.AfterFunc(p.cfg.Idle, func() { p.expire(w) })
}

// expire ends a worker that is idle still.
func (p *Pool) expire(w *worker) {
	p.mu.Lock()
	at := -1
	for i, other := range p.idle {
		if other == w {
			at = i
		}
	}
	if at < 0 { // a job took it as the timer fired
		p.mu.Unlock()
		return
	}
	p.idle = append(p.idle[:at], p.idle[at+1:]...)
	delete(p.all, w)
	p.mu.Unlock()
	w.end()
}

func (p *Pool) drop(w *worker) {
	p.mu.Lock()
	delete(p.all, w)
	p.mu.Unlock()
	w.end()
}
