package replicas

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// turnLimit bounds the reading and the writing of one turn.
const turnLimit = 10 * time.Second

// keeper looks after one deployment: nobody else changes its replicas. What it has in memory is only what can be seen again.
type keeper struct {
	s              *Keepers
	workspace, uid string
	poked          chan struct{}
	cancel         context.CancelFunc
	done           chan struct{}

	mu       sync.Mutex
	seen     map[string]sight
	draining map[string]bool
	watched  []string // what the watch that goes asks for; nil without one
	unwatch  context.CancelFunc
	again    time.Time // when what failed is tried again
	jobs     sync.WaitGroup
	last     string // how it looked when it was told of last
}

func (k *keeper) poke() {
	select {
	case k.poked <- struct{}{}:
	default:
	}
}

// see changes what is known of a replica.
func (k *keeper) see(id string, change func(s *sight)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.seen[id]
	change(&s)
	k.seen[id] = s
}

// run turns until the deployment is gone or ctx ends.
func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	defer k.jobs.Wait()
	defer k.stopWatch()
	for {
		wake, gone, err := k.turn(ctx)
		if gone || ctx.Err() != nil {
			break
		}
		wait := time.Minute
		if err != nil {
			if !errors.Is(err, errMoved) {
				k.s.cfg.Logger.WarnContext(ctx, "a deployment could not be looked after; it is tried again", "deployment_uid", k.uid, "error", err)
			}
			wait = againAfter
		} else if !wake.IsZero() {
			wait = min(wait, max(wake.Sub(k.s.cfg.Now()), 0))
		}
		t := time.NewTimer(wait)
		select {
		case <-k.poked:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	k.cancel()
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.keepers[k.uid] == k {
		delete(k.s.keepers, k.uid)
	}
}

// errMoved says that a deployment was changed between reading and writing.
var errMoved = errors.New("changed meanwhile")

// turn looks once, writes down what is to be, and does what is written.
func (k *keeper) turn(ctx context.Context) (wake time.Time, gone bool, err error) {
	d, rows, err := k.read(ctx)
	if fault.Is(err, codes.NotFound) || fault.ReasonOf(err) == faultv1.Reason_KEY_DISABLED {
		return wake, true, nil
	}
	if err != nil {
		return wake, false, err
	}
	k.start(ctx, d, rows)
	seen := k.sights(rows)
	p := next(d, rows, seen, timing{k.s.cfg.Backoff, k.s.cfg.Slow, k.s.cfg.Settled}, k.s.cfg.Now())
	if err := k.write(ctx, d, p); err != nil {
		return wake, false, err
	}
	for _, r := range p.change {
		if r.State == inferencev1.Replica_STATE_ENDED {
			k.s.cfg.Listener.Forget(r.RunUID)
		}
	}
	if p.gone {
		k.s.cfg.Changed(k.uid)
		return wake, true, nil
	}
	rows = after(rows, p)
	k.expect(rows)
	k.drain(ctx, d, rows)
	k.watch(ctx, rows)
	k.tell(p, rows)
	if len(p.add) > 0 {
		k.poke() // to ask compute for them
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p.at(k.again)
	return p.wake, false, nil
}

func (k *keeper) read(ctx context.Context) (d *store.Deployment, rows []*store.Replica, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnLimit)
	defer cancel()
	key, err := k.s.cfg.Store.Key(ctx, k.workspace)
	if err != nil {
		return nil, nil, err
	}
	err = k.s.cfg.Store.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		x := k.s.cfg.Store.Endpoints(tx, key)
		if d, err = x.Deployment(ctx, k.uid); err == nil {
			rows, err = x.Replicas(ctx, k.uid)
		}
		return err
	})
	return d, rows, err
}

// sights are what is known of replicas now, and forgets those that are gone.
func (k *keeper) sights(rows []*store.Replica) map[string]sight {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[string]sight, len(rows))
	for _, r := range rows {
		s := k.seen[r.ID]
		if r.RunUID != "" && r.State != inferencev1.Replica_STATE_ENDED {
			s.ready = k.s.cfg.Listener.Ready(r.RunUID)
		}
		switch idle := s.status.GetState() == computev1.Run_STATE_RUNNING && s.ready == 0; {
		case !idle:
			s.idle = time.Time{}
		case s.idle.IsZero():
			s.idle = k.s.cfg.Now()
		}
		out[r.ID], k.seen[r.ID] = s, s
	}
	for id := range k.seen {
		if _, ok := out[id]; !ok {
			delete(k.seen, id)
		}
	}
	return out
}

// write stores a plan in one transaction, with its records, unless the deployment was changed since it was read.
func (k *keeper) write(ctx context.Context, d *store.Deployment, p *plan) error {
	same := statusEqual(d.Status, p.status)
	if same && len(p.add)+len(p.change)+len(p.drop)+len(p.release) == 0 && !p.gone {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, turnLimit)
	defer cancel()
	return k.s.cfg.Change(ctx, k.workspace, d.Endpoint, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints) error {
		now, err := x.Deployment(ctx, k.uid)
		if err != nil {
			return err
		}
		if now.Revision != d.Revision {
			return errMoved
		}
		for _, r := range p.change {
			if err := x.UpdateReplica(ctx, r); err != nil {
				return err
			}
		}
		for _, r := range p.add {
			if err := x.InsertReplica(ctx, r); err != nil {
				return err
			}
		}
		for _, id := range p.drop {
			if err := x.DeleteReplica(ctx, id); err != nil {
				return err
			}
		}
		for _, g := range p.release {
			if err := k.s.cfg.Release(ctx, tx, Holder(k.uid, g)); err != nil {
				return err
			}
		}
		for _, e := range p.events {
			if err := k.s.cfg.Record(ctx, tx, now, "inference/replicas/"+e.action, map[string]string{"replica": e.replica.RunUID, "reason": e.message}); err != nil {
				return err
			}
		}
		if p.gone {
			return k.remove(ctx, x, now)
		}
		if p.offer {
			if err := k.offer(ctx, tx, x, now); err != nil {
				return err
			}
		}
		if same {
			return nil
		}
		now.Status = p.status
		return x.UpdateDeployment(ctx, now, k.s.cfg.Now())
	})
}

func statusEqual(a, b store.Status) bool {
	held := slices.Equal(a.Held, b.Held)
	retry := a.RetryAt.Equal(b.RetryAt)
	return held && retry && a.State == b.State && a.Message == b.Message && a.Failures == b.Failures && a.Complete == b.Complete && a.Updated == b.Updated && a.Offered == b.Offered
}

// remove forgets a deployment of which nothing runs any more, and its endpoint if that only waited for it.
func (k *keeper) remove(ctx context.Context, x store.Endpoints, d *store.Deployment) error {
	if err := x.DeleteDeployment(ctx, d.UID); err != nil {
		return err
	}
	e, err := x.Get(ctx, d.Endpoint)
	if err != nil || !e.Deleting {
		return err
	}
	left, err := x.DeploymentsOf(ctx, e.UID)
	if err != nil || len(left) > 0 {
		return err
	}
	return x.Delete(ctx, e.UID)
}

// offer gives the endpoint's traffic to its first deployment that answers.
func (k *keeper) offer(ctx context.Context, tx *sqldb.Tx, x store.Endpoints, d *store.Deployment) error {
	e, err := x.Get(ctx, d.Endpoint)
	if err != nil || len(e.Body.GetTraffic()) > 0 {
		return err
	}
	e.Body.Traffic = map[string]int32{d.ID(): 100}
	if err := x.Update(ctx, e, k.s.cfg.Now()); err != nil {
		return err
	}
	return k.s.cfg.Record(ctx, tx, d, "inference/endpoints/traffic", map[string]string{"percent": "100"})
}

// after are the rows as a plan has made them.
func after(rows []*store.Replica, p *plan) []*store.Replica {
	out := make([]*store.Replica, 0, len(rows)+len(p.add))
	for _, r := range rows {
		if i := slices.IndexFunc(p.change, func(c *store.Replica) bool { return c.ID == r.ID }); i >= 0 {
			r = p.change[i]
		}
		if !slices.Contains(p.drop, r.ID) {
			out = append(out, r)
		}
	}
	return append(out, p.add...)
}

// expect tells the listener whose connections to take.
func (k *keeper) expect(rows []*store.Replica) {
	for _, r := range rows {
		if r.RunUID != "" && r.State != inferencev1.Replica_STATE_ENDED {
			k.s.cfg.Listener.Expect(r.RunUID, k.workspace, k.uid)
		}
	}
}

// tell tells of the deployment, if it looks different.
func (k *keeper) tell(p *plan, rows []*store.Replica) {
	var b strings.Builder
	_, _ = fmt.Fprintln(&b, p.status.State, p.status.Message)
	for _, r := range rows {
		ready := 0
		if r.RunUID != "" && r.State != inferencev1.Replica_STATE_ENDED {
			ready = k.s.cfg.Listener.Ready(r.RunUID)
		}
		_, _ = fmt.Fprintln(&b, r.RunUID, r.State, r.Message, ready)
	}
	if now := b.String(); now != k.last {
		k.last = now
		k.s.cfg.Changed(k.uid)
	}
}
