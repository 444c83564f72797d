package endpoints

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

const (
	// callLimit bounds one call to compute. After it, a call that was sent cannot take effect any more.
	callLimit = 15 * time.Second
	// againAfter is when something is tried again that compute could not do.
	againAfter = time.Second
	// drainGrace is how much longer than a request may take a replica is waited for that is drained.
	drainGrace = 5 * time.Second
)

// keeper looks after one deployment: nobody else changes its replicas. What it has in memory is only what can be seen again.
type keeper struct {
	s              *Service
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
	last     *inferencev1.Deployment // as streams were told last
}

// look makes sure that somebody looks after a deployment, and now.
func (s *Service) look(workspace, uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || s.run.Err() != nil {
		return // whoever runs next looks after all
	}
	k := s.keepers[uid]
	if k == nil {
		ctx, cancel := context.WithCancel(s.run)
		k = &keeper{
			s: s, workspace: workspace, uid: uid, poked: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
			seen: make(map[string]sight), draining: make(map[string]bool),
		}
		s.keepers[uid] = k
		s.jobs.Go(func() {
			defer cancel()
			k.run(ctx)
		})
	}
	k.poke()
}

// lookAll pokes everybody: workers came or went.
func (s *Service) lookAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keepers {
		k.poke()
	}
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
	if fault.Is(err, codes.NotFound) || fault.ReasonOf(err) == reasonKeyGone {
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
		k.s.news.changed(k.uid)
		return wake, true, nil
	}
	rows = after(rows, p)
	k.expect(rows)
	k.drain(ctx, d, rows)
	k.watch(ctx, rows)
	k.tell(d, p, rows)
	if len(p.add) > 0 {
		k.poke() // to ask compute for them
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p.at(k.again)
	return p.wake, false, nil
}

func (k *keeper) read(ctx context.Context) (d *store.Deployment, rows []*store.Replica, err error) {
	ctx, cancel := context.WithTimeout(ctx, reloadLimit)
	defer cancel()
	key, err := k.s.store.Key(ctx, k.workspace)
	if err != nil {
		return nil, nil, err
	}
	err = k.s.store.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		x := k.s.store.Endpoints(tx, key)
		if d, err = x.Deployment(ctx, k.uid); err == nil {
			rows, err = x.Replicas(ctx, k.uid)
		}
		return err
	})
	return d, rows, err
}

// start asks compute for the replicas that are wanted and that it has not answered about yet. Asking twice is harmless.
func (k *keeper) start(ctx context.Context, d *store.Deployment, rows []*store.Replica) {
	k.mu.Lock()
	k.again = time.Time{}
	k.mu.Unlock()
	for _, r := range rows {
		if r.RunUID != "" || !active(r) || r.Generation != d.Generation || d.Deleting {
			continue
		}
		short, cancel := context.WithTimeout(ctx, callLimit)
		m, err := k.s.cfg.Replicas.StartReplica(short, k.s.request(d, r))
		cancel()
		err = fault.FromStatus(err)
		switch {
		case err == nil:
			k.see(r.ID, func(s *sight) { s.status = m })
		case passing(err):
			k.s.cfg.Logger.WarnContext(ctx, "compute was asked for a replica in vain; it is asked again", "deployment_uid", k.uid, "error", err)
			k.later()
			return
		default:
			if fault.Is(err, codes.AlreadyExists) {
				k.stopOther(ctx, r)
			}
			k.see(r.ID, func(s *sight) { s.refused = err })
		}
	}
}

// stopOther stops what runs under the id of a replica though it was asked for in other words.
func (k *keeper) stopOther(ctx context.Context, r *store.Replica) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if _, err := k.s.cfg.Replicas.StopReplica(ctx, &computev1.StopReplicaRequest{WorkspaceUid: k.workspace, ReplicaId: r.ID}); err != nil {
		k.s.cfg.Logger.WarnContext(ctx, "a replica that is not wanted could not be stopped", "deployment_uid", k.uid, "replica_id", r.ID, "error", err)
	}
}

func (k *keeper) later() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again = k.s.cfg.Now().Add(againAfter)
}

// passing reports whether an error says nothing about the request.
func passing(err error) bool {
	switch fault.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.ResourceExhausted, codes.Internal, codes.Unknown, codes.Unauthenticated:
		return true
	}
	return false
}

// request is what compute is asked for. It is the same whenever it is asked again.
func (s *Service) request(d *store.Deployment, r *store.Replica) *computev1.StartReplicaRequest {
	workspace := ""
	if n, err := resource.Parse(d.Name); err == nil {
		if ws, ok := n.Workspace(); ok {
			workspace = ws.String()
		}
	}
	out := &computev1.StartReplicaRequest{
		Workspace: workspace, WorkspaceUid: d.Workspace, Principal: d.DeployedBy, ReplicaId: r.ID, Compute: d.Spec.GetCompute(), Snapshot: d.Spec.GetSnapshot(),
		Environment: d.Spec.GetEnvironment(), Deployment: d.Name, Serve: &computev1.ServeSpec{
			Models: []string{d.Spec.GetModel()}, EntryScript: d.Spec.GetEntryScript(), Workers: d.Spec.GetWorkers(), RequestTimeout: d.Spec.GetRequestTimeout(),
			StartTimeout: d.Spec.GetStartTimeout(), Address: s.cfg.ReplicaAddress, MaxBodyBytes: d.Spec.GetMaxBodyBytes(),
		},
	}
	if m := d.Spec.GetMemoryBytes(); m > 0 {
		out.Limits = &computev1.RunLimits{MemoryBytes: m}
	}
	return out
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
		if s.status.GetState() == computev1.Run_STATE_RUNNING && s.running.IsZero() {
			s.running = k.s.cfg.Now()
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
	ctx, cancel := context.WithTimeout(ctx, reloadLimit)
	defer cancel()
	return k.s.change(ctx, k.workspace, d.Endpoint, func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints) error {
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
			if err := k.s.cfg.Models.Release(ctx, tx, holder(k.uid, g)); err != nil {
				return err
			}
		}
		for _, e := range p.events {
			if err := k.s.record(ctx, tx, now, "inference/replicas/"+e.action, map[string]string{"replica": e.replica.RunUID, "reason": e.message}); err != nil {
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
	return k.s.record(ctx, tx, d, "inference/endpoints/traffic", map[string]string{"percent": "100"})
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

// drain sees to it that replicas which take no new requests finish those that they have, and are stopped then.
func (k *keeper) drain(ctx context.Context, d *store.Deployment, rows []*store.Replica) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range rows {
		if r.State != inferencev1.Replica_STATE_DRAINING || k.draining[r.ID] {
			continue
		}
		k.draining[r.ID] = true
		limit := d.Spec.GetRequestTimeout().AsDuration() + drainGrace
		id, run := r.ID, r.RunUID
		k.jobs.Go(func() { k.end(ctx, id, run, limit) })
	}
}

// end drains one replica and has it stopped.
func (k *keeper) end(ctx context.Context, id, run string, limit time.Duration) {
	if run != "" {
		short, cancel := context.WithTimeout(ctx, limit)
		if err := k.s.cfg.Listener.Drain(short, run); err != nil && ctx.Err() == nil {
			k.s.cfg.Logger.WarnContext(ctx, "a replica is stopped with requests on it that took longer than they may", "deployment_uid", k.uid, "run_uid", run, "error", err)
		}
		cancel()
	}
	if !k.stop(ctx, id) {
		return
	}
	if run == "" {
		// It may have been asked for and not have arrived; when that cannot happen any more, it is stopped for good.
		if !wait(ctx, callLimit) || !k.stop(ctx, id) {
			return
		}
	}
	k.see(id, func(s *sight) { s.stopped = true })
	k.poke()
}

// stop asks compute until it has said yes; false when ctx has ended before.
func (k *keeper) stop(ctx context.Context, id string) bool {
	for {
		short, cancel := context.WithTimeout(ctx, callLimit)
		_, err := k.s.cfg.Replicas.StopReplica(short, &computev1.StopReplicaRequest{WorkspaceUid: k.workspace, ReplicaId: id})
		cancel()
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			k.s.cfg.Logger.WarnContext(ctx, "a replica could not be stopped; it is tried again", "deployment_uid", k.uid, "replica_id", id, "error", fault.FromStatus(err))
		}
		if !wait(ctx, againAfter) {
			return false
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch hears of the replicas that compute has.
func (k *keeper) watch(ctx context.Context, rows []*store.Replica) {
	var ids []string
	for _, r := range rows {
		if r.RunUID != "" && r.State != inferencev1.Replica_STATE_ENDED {
			ids = append(ids, r.ID)
		}
	}
	slices.Sort(ids)
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Equal(ids, k.watched) {
		return
	}
	if k.unwatch != nil {
		k.unwatch()
		k.unwatch = nil
	}
	k.watched = ids
	if len(ids) == 0 {
		return
	}
	ctx, k.unwatch = context.WithCancel(ctx)
	k.jobs.Go(func() { k.hear(ctx, ids) })
}

func (k *keeper) stopWatch() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unwatch != nil {
		k.unwatch()
	}
}

// hear takes what compute says, and asks again when it says no more.
func (k *keeper) hear(ctx context.Context, ids []string) {
	for ctx.Err() == nil {
		stream, err := k.s.cfg.Replicas.WatchReplicas(ctx, &computev1.WatchReplicasRequest{WorkspaceUid: k.workspace, ReplicaIds: ids})
		for err == nil {
			var m *computev1.ReplicaStatus
			if m, err = stream.Recv(); err == nil {
				k.see(m.GetReplicaId(), func(s *sight) { s.status = m })
				k.poke()
			}
		}
		if !wait(ctx, againAfter) {
			return
		}
	}
}

// tell tells streams of the deployment, if it looks different.
func (k *keeper) tell(d *store.Deployment, p *plan, rows []*store.Replica) {
	d.Status = p.status
	m := k.s.deploymentMessage(d, rows)
	if !proto.Equal(m, k.last) {
		k.last = m
		k.s.news.changed(k.uid)
	}
}
