package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// lateFence is the service's fence, which is joined later than what uses it is made.
type lateFence struct {
	ready chan struct{} // closed when f is there
	mu    sync.Mutex
	f     *fence.Fence
	state map[string]uint64 // what was applied before that; guarded by mu
}

func newLateFence() *lateFence {
	return &lateFence{ready: make(chan struct{}), state: make(map[string]uint64)}
}

// applied tells the fence what decisions are made with.
func (l *lateFence) applied(owner string, seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state[owner] = seq
	if l.f != nil {
		l.f.Delivered(owner, seq)
	}
}

func (l *lateFence) set(f *fence.Fence) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.f = f
	for owner, seq := range l.state {
		f.Delivered(owner, seq)
	}
	close(l.ready)
}

func (l *lateFence) get(ctx context.Context) (*fence.Fence, error) {
	select {
	case <-l.ready:
		return l.f, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// decide is rpc.Decide by this fence.
func (l *lateFence) decide(ctx context.Context, check func() error) (context.Context, func(), error) {
	f, err := l.get(ctx)
	if err != nil {
		return nil, nil, err
	}
	return rpc.Decide(ctx, f, check)
}

// Change implements fence.Changer.
func (l *lateFence) Change(ctx context.Context, owner string, seq uint64) (fence.Result, error) {
	f, err := l.get(ctx)
	if err != nil {
		return fence.Result{}, err
	}
	return f.Change(ctx, owner, seq)
}

// Record implements fence.Changer.
func (l *lateFence) Record(ctx context.Context, owner string, seq uint64) error {
	f, err := l.get(ctx)
	if err != nil {
		return err
	}
	return f.Record(ctx, owner, seq)
}

// Recorded implements fence.Changer.
func (l *lateFence) Recorded(ctx context.Context, owner string) (uint64, error) {
	f, err := l.get(ctx)
	if err != nil {
		return 0, err
	}
	return f.Recorded(ctx, owner)
}

// joinFence makes this process a member of the fence. It joins in the background: the service's own state has to come first.
func (n *Node) joinFence(st *state, m *mesh) (*fence.Fence, error) {
	lost, err := n.counter("redoubt_fence_lost_total", "How often the fence was lost, and nothing decided until it was joined again.")
	if err != nil {
		return nil, err
	}
	waits := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "redoubt_fence_wait_seconds", Help: "How long a change of security state waited until it was in force everywhere.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 30},
	}, []string{"owner", "outcome"})
	if err := n.metrics.Registerer().Register(waits); err != nil {
		return nil, err
	}
	cfg := fence.Config{
		Client: m.registry.Client(), Service: n.name, Instance: n.cfg.Service.Instance, Owners: []string{authz.Identity, authz.Workspace},
		Times: fence.Times{Idle: sqldb.IdleInTransaction}, Logger: n.log, OnLost: func(error) { lost.Inc() },
		OnWait: func(owner string, took time.Duration, _ fence.Result, err error) {
			outcome := "in_force"
			if errors.Is(err, fence.ErrPending) {
				outcome = "pending"
			} else if err != nil {
				outcome = "unknown"
			}
			waits.WithLabelValues(owner, outcome).Observe(took.Seconds())
		},
	}
	if err := n.class(st.db, &cfg); err != nil {
		return nil, err
	}
	f, err := fence.New(cfg)
	if err != nil {
		return nil, err
	}
	n.background("fence", f.Run)
	st.fence.set(f)
	return f, nil
}

// class says what the fence can expect of the service's store.
func (n *Node) class(db *sqldb.DB, cfg *fence.Config) error {
	if db.Dialect() == sqldb.SQLite {
		o, err := n.owner()
		if err != nil {
			return err
		}
		cfg.Class, cfg.Place = fence.Embedded, o.Place
		return nil
	}
	lives, wanted := db.Lives(), fence.Class(n.cfg.Service.Fence)
	switch {
	case lives != nil && wanted != fence.SQL:
		cfg.Class, cfg.Rows = fence.SQLFence, lives
	case wanted == fence.SQLFence:
		return fault.FailedPrecondition("service.fence is sqlfence, and the role of %s may not use the schema %s of its database: have its administrator run postgres.sql again", n.name, sqldb.LivesSchema)
	default:
		cfg.Class = fence.SQL
		if wanted == "" {
			n.log.Warn("the database has no rows of lives for this role, so a transaction of a process that stands still is ended by the clock alone: have its administrator run postgres.sql again, or set service.fence to sql")
		}
	}
	return nil
}
