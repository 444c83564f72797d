package queue

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/services/compute/internal/driver"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// Config of a queue. All of it is required.
type Config struct {
	Store  *store.Store
	Driver driver.Driver
	Outbox *audit.Outbox
	Engine *authz.Engine
	// Decide is as in compute.Config.
	Decide Decide
	// The peers: who gives tokens, who lets agents join, and who knows snapshots.
	Tokens    identityv1.TokenServiceClient
	Agents    identityv1.AgentServiceClient
	Snapshots workspacev1.SnapshotServiceClient
	// Gateway, PublicURL and CA are what agents are told, as in compute.Config.
	Gateway, PublicURL string
	CA                 func() ([]byte, error)
	// NoLocalTargets is as in compute.Config: runs that wait for a local target end, saying why.
	NoLocalTargets bool
	// Instance is this instance's name, and Leader elects one of all; nil where Run is not called.
	Instance string
	Leader   Elector
	// Heartbeat, Silence, StartWait, StartGrace, CancelGrace and LostGrace are as in compute.Config.
	Heartbeat, Silence, StartWait, StartGrace, CancelGrace, LostGrace time.Duration

	Now    func() time.Time
	Logger *slog.Logger
}

// Decide decides something on a view of the fence, and again at each commit in the context that comes back, until release; as rpc.Decide.
type Decide = func(ctx context.Context, check func() error) (decided context.Context, release func(), err error)

// NoLocalTargets is what is said where an installation starts nothing on its own machine.
const NoLocalTargets = "this installation runs nothing on its own machine: make a self-hosted target, on a machine where `redoubt compute serve` runs"

// Elector runs a function while this instance leads in a role, as leader.Leader does.
type Elector interface {
	Lead(ctx context.Context, role string, fn func(ctx context.Context, term *leader.Term) error) error
}

// role is what the instances of the service are elected for: the leader starts runs, watches them, and has tokens revoked.
const role = "queue"

// Queue moves runs from one state to the next. It is safe for concurrent use.
type Queue struct {
	cfg   Config
	waits *waits
}

// New makes a queue.
func New(cfg Config) *Queue { return &Queue{cfg: cfg, waits: &waits{}} }

// By is the same queue, in which all is written by w: what a leader does.
func (q *Queue) By(w store.Writer) *Queue {
	led := *q
	led.cfg.Store = q.cfg.Store.By(w)
	return &led
}

// Run does until ctx ends what goes on beside calls: everywhere it looks after the agents of this machine, and on the instance that leads
// it moves the queue.
func (q *Queue) Run(ctx context.Context) error {
	// Before this instance starts anything: what it took out of the queue and did not start, in a life before.
	q.repeat(ctx, store.QueueTopic, func() (bool, error) {
		err := q.Recover(ctx)
		return err == nil, err
	})
	g, life := errgroup.WithContext(ctx)
	g.Go(func() error {
		q.repeat(life, store.EndedTopic, func() (bool, error) { return false, q.Tend(ctx) })
		return nil
	})
	g.Go(func() error {
		return q.cfg.Leader.Lead(life, role, func(ctx context.Context, term *leader.Term) error {
			q.By(term).lead(ctx)
			return nil
		})
	})
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// repeat calls work now, after each change of a topic, and every quarter of a heartbeat, until it is done or ctx ends.
func (q *Queue) repeat(ctx context.Context, topic string, work func() (done bool, err error)) {
	wake, stop := q.cfg.Store.Signals(topic)
	defer stop()
	tick := time.NewTicker(max(q.cfg.Heartbeat/4, 50*time.Millisecond))
	defer tick.Stop()
	stale := 0 // how often in a row it was not known what is allowed: once is how every start begins
	for ctx.Err() == nil {
		done, err := work()
		if fault.ReasonOf(err) != faultv1.Reason_AUTHZ_STATE_STALE {
			stale = 0
		} else if stale++; stale == 1 {
			err = nil
		}
		if err != nil && ctx.Err() == nil {
			q.cfg.Logger.Warn("runs could not be looked after", "about", topic, "error", err)
		}
		if done {
			return
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-tick.C:
		}
	}
}

// lead is the work of the one instance that leads, until ctx ends. Starting waits for others, and watching must not wait for that.
func (q *Queue) lead(ctx context.Context) {
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		q.repeat(ctx, store.QueueTopic, func() (bool, error) { return false, q.StartQueued(ctx) })
	})
	var looked time.Time
	accounts := uint64(math.MaxUint64) // the epoch of the revocations that runs were last held against
	q.repeat(ctx, store.EndedTopic, func() (bool, error) {
		// Nobody has looked for a while: the leader before has gone, or this process stood still, or the database was away. Silence
		// that nobody could have broken does not count.
		look := q.WatchActive
		if q.cfg.Now().Sub(looked) > q.cfg.Heartbeat {
			look = q.Adopt
		}
		err := look(ctx)
		if err == nil {
			looked = q.cfg.Now()
		}
		if epoch := q.cfg.Engine.Revocations().Epoch(); err == nil && epoch != accounts {
			if err = q.EndOfAccounts(ctx); err == nil {
				accounts = epoch
			}
		}
		return false, errors.Join(err, q.RevokeEnded(ctx))
	})
}

// StartQueued starts what waits for local targets, oldest first, as far as there is room. Each target is worked on by itself: what
// is wrong with the runs of one, or how many wait for it, holds up no other.
func (q *Queue) StartQueued(ctx context.Context) error {
	targets, err := q.cfg.Store.WaitedFor(ctx)
	if err != nil {
		return err
	}
	var failed []error
	for _, uid := range targets {
		failed = append(failed, q.startOn(ctx, uid))
	}
	return errors.Join(failed...)
}

// lookahead is how many runs more than there is room for are looked at, should the first ones not be startable.
const lookahead = 16

func (q *Queue) startOn(ctx context.Context, uid string) error {
	c, err := q.cfg.Store.ComputeByUID(ctx, uid)
	gone := fault.Is(err, codes.NotFound)
	if err != nil && !gone || !gone && c.Kind != computev1.Compute_KIND_LOCAL {
		return err
	}
	queued, err := q.cfg.Store.QueuedOn(ctx, uid, c.MaxRuns+lookahead)
	if err != nil {
		return err
	}
	var failed []error
	for _, r := range queued {
		if gone {
			q.End(ctx, r.UID, computev1.Run_STATE_FAILED, "the compute was deleted", faultv1.Reason_RESOURCE_NOT_FOUND)
			continue
		}
		if q.cfg.NoLocalTargets { // the target is from before
			q.End(ctx, r.UID, computev1.Run_STATE_FAILED, NoLocalTargets, faultv1.Reason_TARGET_KIND_OFF)
			continue
		}
		active, err := q.cfg.Store.ActiveOn(ctx, uid)
		if err != nil {
			return err
		}
		if active >= int64(c.MaxRuns) {
			break
		}
		if err := q.startLocal(ctx, r, c.MaxRuns); err != nil {
			if ctx.Err() != nil {
				return err
			}
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// startLocal hands a run to the driver.
func (q *Queue) startLocal(ctx context.Context, r *store.Run, room int) error {
	started, join, err := q.startable(ctx, r, room, q.cfg.Instance, nil)
	if err != nil || started == nil {
		return err
	}
	ca, err := q.cfg.CA()
	if err != nil {
		return err
	}
	err = q.cfg.Driver.Start(ctx, driver.Placement{
		Gateway: q.cfg.Gateway, PublicURL: q.cfg.PublicURL, CAPEM: string(ca), Run: started.Name(), RunUID: started.UID,
		JoinToken: join.GetJoinToken(), HeartbeatMS: q.cfg.Heartbeat.Milliseconds(),
	})
	if err != nil {
		q.cfg.Logger.Error("an agent could not be started", "run_uid", r.UID, "error", err)
		q.End(ctx, r.UID, computev1.Run_STATE_FAILED, "the agent could not be started on the compute service's machine", fault.ReasonOf(err))
	}
	return nil
}
