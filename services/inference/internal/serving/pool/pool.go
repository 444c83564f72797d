package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// Why a request got no worker.
var (
	// ErrFull says that as many wait as may.
	ErrFull = errors.New("pool: the queue is full")
	// ErrNoWorker says that no replica of the deployment has a worker.
	ErrNoWorker = errors.New("pool: no worker is connected")
	// ErrRetired says that the deployment is not, or no longer, known.
	ErrRetired = errors.New("pool: the deployment is gone")
	// ErrLate says that no worker came free before the deadline.
	ErrLate = errors.New("pool: no worker came free in time")
)

const (
	// maxConns bounds the connections of one replica: its 16 workers, and those that are being replaced.
	maxConns = 24
	// sweepEvery is how often idle connections are looked at.
	sweepEvery = 250 * time.Millisecond
)

// Config of a Pool. TLS, TrustDomain and Logger are required.
type Config struct {
	// TLS makes the server side of the mesh's mutual TLS.
	TLS func(svid.Authorize) *tls.Config
	// TrustDomain is that of the replicas' identities.
	TrustDomain string
	// Grace is how long requests wait for a deployment that has just lost its last worker. Default 2 s.
	Grace time.Duration
	// HandshakeTimeout bounds all that comes before a connection is a worker's. Default 10 s.
	HandshakeTimeout time.Duration
	// Age is after how long, give or take a tenth, a connection is closed when it has no request: its worker makes another one, by the certificates
	// of then. Default 20 min.
	Age    time.Duration
	Now    func() time.Time // time.Now when nil
	Logger *slog.Logger
}

// Pool has the connections of all replicas.
type Pool struct {
	cfg     Config
	changed chan struct{}

	mu       sync.Mutex
	replicas map[string]*replica // by the run's uid
	groups   map[string]*group   // by the deployment's uid
	closed   bool
}

// replica is one run whose workers may connect.
type replica struct {
	run, workspace, deployment string
	conns                      map[*Conn]struct{}
	idle                       []*Conn // the last one was used last
	busy                       int
	emptied                    []chan struct{} // of those who wait until busy is 0
}

// group is the replicas of one deployment that take requests, and who waits for them.
type group struct {
	wanted  []string   // run uids
	active  []*replica // of wanted, those that are expected
	limit   int
	waiting queue
	down    bool        // without a worker for longer than the grace
	lost    *time.Timer // runs while there is no worker and the grace goes on
}

// New makes a Pool.
func New(cfg Config) (*Pool, error) {
	if cfg.TLS == nil || cfg.TrustDomain == "" || cfg.Logger == nil {
		return nil, errors.New("pool: TLS, TrustDomain and Logger are required")
	}
	if cfg.Grace == 0 {
		cfg.Grace = 2 * time.Second
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.Age == 0 {
		cfg.Age = 20 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Pool{cfg: cfg, changed: make(chan struct{}, 1), replicas: make(map[string]*replica), groups: make(map[string]*group)}, nil
}

// Expect lets the run's workers connect from now on.
func (p *Pool) Expect(run, workspace, deployment string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.replicas[run]; ok && old.workspace == workspace && old.deployment == deployment {
		return
	} else if ok {
		p.forget(old)
	}
	p.replicas[run] = &replica{run: run, workspace: workspace, deployment: deployment, conns: make(map[*Conn]struct{})}
	if g, ok := p.groups[deployment]; ok {
		p.regroup(deployment, g)
	}
}

// Forget closes the run's connections, those that are in use as well, and takes no more of them.
func (p *Pool) Forget(run string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r, ok := p.replicas[run]; ok {
		p.forget(r)
	}
}

func (p *Pool) forget(r *replica) {
	delete(p.replicas, r.run)
	for c := range r.conns {
		c.closeNow()
		delete(r.conns, c)
	}
	r.idle = nil
	if g, ok := p.groups[r.deployment]; ok {
		p.regroup(r.deployment, g)
	}
	p.notify()
}

// Ready is how many workers of the run are connected.
func (p *Pool) Ready(run string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r, ok := p.replicas[run]; ok {
		return len(r.conns)
	}
	return 0
}

// Workers is how many workers are connected of the replicas of a deployment that take requests.
func (p *Pool) Workers(deployment string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g, ok := p.groups[deployment]; ok {
		return g.workers()
	}
	return 0
}

// Waiting is how many requests wait for a worker of a deployment.
func (p *Pool) Waiting(deployment string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g, ok := p.groups[deployment]; ok {
		return g.waiting.len
	}
	return 0
}

// Changed has a token after workers came or went.
func (p *Pool) Changed() <-chan struct{} { return p.changed }

func (p *Pool) notify() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Configure says which runs take the requests of a deployment from now on, and how many requests may wait.
func (p *Pool) Configure(deployment string, runs []string, queueLength int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	g, ok := p.groups[deployment]
	if !ok {
		g = &group{down: true}
		p.groups[deployment] = g
	}
	g.wanted, g.limit = slices.Clone(runs), queueLength
	p.regroup(deployment, g)
}

// Retire forgets a deployment. Who waits for it reads ErrRetired; what is being answered goes on.
func (p *Pool) Retire(deployment string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g, ok := p.groups[deployment]
	if !ok {
		return
	}
	delete(p.groups, deployment)
	if g.lost != nil {
		g.lost.Stop()
	}
	g.waiting.fail(ErrRetired)
}

// Drain returns when no request is on the run's connections any more. New ones come as long as the deployment lists the run.
func (p *Pool) Drain(ctx context.Context, run string) error {
	p.mu.Lock()
	r, ok := p.replicas[run]
	if !ok || r.busy == 0 {
		p.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	r.emptied = append(r.emptied, done)
	p.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// regroup finds the replicas of a deployment that take requests, and hands what is free of them to who waits.
func (p *Pool) regroup(deployment string, g *group) {
	g.active = g.active[:0:0]
	for _, run := range g.wanted {
		if r, ok := p.replicas[run]; ok && r.deployment == deployment {
			g.active = append(g.active, r)
		}
	}
	p.judge(deployment, g)
	for g.waiting.len > 0 {
		c := g.pick()
		if c == nil {
			return
		}
		g.waiting.pop().ready <- given{conn: c}
	}
}

// judge notes whether a deployment has workers, and begins or ends its grace.
func (p *Pool) judge(deployment string, g *group) {
	switch has := g.workers() > 0; {
	case has:
		g.down = false
		if g.lost != nil {
			g.lost.Stop()
			g.lost = nil
		}
	case !g.down && g.lost == nil:
		var t *time.Timer
		t = time.AfterFunc(p.cfg.Grace, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if g.lost != t || p.groups[deployment] != g {
				return
			}
			g.down, g.lost = true, nil
			g.waiting.fail(ErrNoWorker)
		})
		g.lost = t
	}
}

func (g *group) workers() int {
	n := 0
	for _, r := range g.active {
		n += len(r.conns)
	}
	return n
}

// pick takes a free connection of the replica that has the least to do: the one that was used last, whose worker is warm.
func (g *group) pick() *Conn {
	var best *replica
	for _, r := range g.active {
		if len(r.idle) > 0 && (best == nil || r.busy < best.busy) {
			best = r
		}
	}
	if best == nil {
		return nil
	}
	last := len(best.idle) - 1
	c := best.idle[last]
	best.idle[last] = nil
	best.idle = best.idle[:last]
	best.busy++
	return c
}

// Acquire gives a worker of the deployment that is free and, as far as can be seen, alive. It waits for one until the deadline, or until
// ctx ends. The Conn has to be released.
func (p *Pool) Acquire(ctx context.Context, deployment string, deadline time.Time) (*Conn, error) {
	for {
		c, err := p.acquire(ctx, deployment, deadline)
		if err != nil {
			return nil, err
		}
		if c.alive() {
			return c, nil
		}
		c.Close()
		c.Release()
	}
}

func (p *Pool) acquire(ctx context.Context, deployment string, deadline time.Time) (*Conn, error) {
	p.mu.Lock()
	g, ok := p.groups[deployment]
	if !ok {
		p.mu.Unlock()
		return nil, ErrRetired
	}
	if g.waiting.len == 0 { // nobody passes those who wait
		if c := g.pick(); c != nil {
			p.mu.Unlock()
			return c, nil
		}
	}
	switch {
	case g.down:
		p.mu.Unlock()
		return nil, ErrNoWorker
	case g.waiting.len >= g.limit:
		p.mu.Unlock()
		return nil, ErrFull
	}
	w := &waiter{ready: make(chan given, 1)}
	g.waiting.push(w)
	p.mu.Unlock()

	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	var err error
	select {
	case got := <-w.ready:
		return got.conn, got.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = ErrLate
	}
	p.mu.Lock()
	if w.in { // of g, which may have been retired; then it was failed
		g.waiting.remove(w)
		p.mu.Unlock()
		return nil, err
	}
	p.mu.Unlock()
	if got := <-w.ready; got.conn != nil { // it was promised in the meantime
		got.conn.Release()
	}
	return nil, err
}

// release takes a connection back.
func (p *Pool) release(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := c.replica
	r.busy--
	if r.busy == 0 {
		for _, done := range r.emptied {
			close(done)
		}
		r.emptied = nil
	}
	if _, known := r.conns[c]; !known { // forgotten while it was in use
		c.closeNow()
		return
	}
	if !c.reusable() || c.old() {
		c.closeNow()
		p.remove(c)
		return
	}
	p.offer(c)
}

// offer gives a free connection to who waits for one, or keeps it.
func (p *Pool) offer(c *Conn) {
	r := c.replica
	if g, ok := p.groups[r.deployment]; ok && g.waiting.len > 0 && slices.Contains(g.active, r) {
		r.busy++
		g.waiting.pop().ready <- given{conn: c}
		return
	}
	r.idle = append(r.idle, c)
}

// remove takes a connection out that is closed and of no list of free ones.
func (p *Pool) remove(c *Conn) {
	r := c.replica
	delete(r.conns, c)
	if g, ok := p.groups[r.deployment]; ok && p.replicas[r.run] == r {
		p.judge(r.deployment, g)
	}
	p.notify()
}

// add takes a connection that has proved to be a worker's.
func (p *Pool) add(c *Conn, run, workspace string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.replicas[run]
	switch {
	case p.closed || !ok || r.workspace != workspace:
		return errNotExpected
	case len(r.conns) >= maxConns:
		return errTooMany
	}
	c.replica, c.until = r, p.cfg.Now().Add(p.cfg.Age-p.cfg.Age/10+rand.N(p.cfg.Age/5+1))
	r.conns[c] = struct{}{}
	if g, ok := p.groups[r.deployment]; ok {
		p.judge(r.deployment, g)
	}
	p.offer(c)
	p.notify()
	return nil
}

// expected tells whether the run may connect.
func (p *Pool) expected(run, workspace string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.replicas[run]
	return ok && r.workspace == workspace && !p.closed
}

// sweep closes idle connections whose other end is gone, and of each replica one that is old.
func (p *Pool) sweep(found []*Conn) []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	found = found[:0]
	for _, r := range p.replicas {
		retired := false
		gone := func(c *Conn) bool {
			if c.alive() && (retired || !c.old()) {
				return false
			}
			retired = retired || c.alive()
			found = append(found, c)
			return true
		}
		r.idle = slices.DeleteFunc(r.idle, gone)
	}
	for _, c := range found {
		c.closeNow()
		p.remove(c)
	}
	return found
}

// close forgets everything.
func (p *Pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, r := range p.replicas {
		p.forget(r)
	}
	for uid, g := range p.groups {
		if g.lost != nil {
			g.lost.Stop()
		}
		g.waiting.fail(ErrRetired)
		delete(p.groups, uid)
	}
}
