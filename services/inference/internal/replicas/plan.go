package replicas

import (
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

const (
	// givenUp is after how many failures in a row a deployment counts as failed, and is tried slowly.
	givenUp = 5
	// endedKept is how many replicas that have ended are kept of a deployment, for their logs.
	endedKept = 5
	// connectGrace is how much longer than its start_timeout a replica may be without a worker while its run goes.
	connectGrace = time.Minute
	// placeGrace is how long a replica stands in the queue of its compute before that is told.
	placeGrace = 3 * time.Second
	// noPlace is said while a replica stands in the queue of its compute.
	noPlace = "a replica waits for a place on its compute: raise the compute's max_runs, or end what runs there"
)

// timing are the durations of Config that a plan needs.
type timing struct{ backoff, slow, settled time.Duration }

// sight is what is known of one replica beside its row.
type sight struct {
	// status is the last that compute has said, nil for nothing yet.
	status *computev1.ReplicaStatus
	// idle is since when its run goes without a worker that is connected, as far as this process has seen; zero if that is not so.
	idle time.Time
	// ready is how many of its workers are connected.
	ready int
	// refused is why compute does not start it, for good.
	refused error
	// stopped says that it was drained and compute was told to stop it.
	stopped bool
}

// what is an entry of the activity log that goes with a plan.
type what struct {
	action  string
	replica *store.Replica
	message string
}

// plan is what one turn of a deployment's loop writes down. Everything else follows from what is written.
type plan struct {
	// add and change are rows, drop those that are forgotten.
	add, change []*store.Replica
	drop        []string
	status      store.Status
	// release are the generations whose model version is let go of.
	release []int64
	// offer says that the endpoint's traffic goes here if it goes nowhere.
	offer bool
	// gone says that nothing of the deployment is left.
	gone   bool
	events []what
	// wake is when to look again though nothing has happened; zero for no such time.
	wake time.Time
}

func (p *plan) at(t time.Time) {
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

// Active reports whether a replica takes requests, or is to.
func Active(r *store.Replica) bool {
	return r.State == inferencev1.Replica_STATE_STARTING || r.State == inferencev1.Replica_STATE_READY
}

// next decides what is to be done about a deployment: a function of what is stored, what is seen, and the time. Rows in it are copies.
func next(d *store.Deployment, rows []*store.Replica, seen map[string]sight, t timing, now time.Time) *plan {
	w := &work{plan: plan{status: d.Status}, d: d, seen: seen, t: t, now: now, touched: make(map[string]bool)}
	w.status.Held = slices.Clone(d.Status.Held)
	for _, r := range rows {
		c := *r
		w.rows = append(w.rows, &c)
	}
	w.observe()
	if d.Deleting {
		w.remove()
	} else {
		w.place()
		w.judge()
	}
	w.letGo()
	w.forget()
	for _, r := range w.rows {
		if w.touched[r.ID] {
			w.change = append(w.change, r)
		}
	}
	return &w.plan
}

// work is a plan that is being made.
type work struct {
	plan
	d       *store.Deployment
	rows    []*store.Replica
	seen    map[string]sight
	t       timing
	now     time.Time
	touched map[string]bool
}

func (w *work) set(r *store.Replica, state inferencev1.Replica_State, message string) {
	r.State, r.Message = state, message
	if state == inferencev1.Replica_STATE_ENDED {
		r.Ended = w.now
	}
	w.touched[r.ID] = true
}

// observe brings the rows to what was seen.
func (w *work) observe() {
	for _, r := range w.rows {
		s := w.seen[r.ID]
		if r.State == inferencev1.Replica_STATE_ENDED {
			continue
		}
		if r.RunUID == "" && s.status.GetRunUid() != "" {
			r.RunUID = s.status.GetRunUid()
			w.touched[r.ID] = true
			w.events = append(w.events, what{"start", r, ""})
		}
		switch {
		case r.State == inferencev1.Replica_STATE_DRAINING:
			if s.stopped || ended(s) {
				w.set(r, inferencev1.Replica_STATE_ENDED, r.Message)
				w.events = append(w.events, what{"stop", r, ""})
			}
		case s.refused != nil:
			w.lost(r, "compute does not start it: "+fault.Describe(s.refused).Message())
		case r.RunUID != "" && ended(s):
			w.lost(r, reason(s.status))
		case s.ready > 0 && r.State == inferencev1.Replica_STATE_STARTING:
			r.Ready = w.now
			w.set(r, inferencev1.Replica_STATE_READY, "")
		case r.State == inferencev1.Replica_STATE_STARTING && r.Message != w.queued(r, s):
			w.set(r, r.State, w.queued(r, s))
		case !s.idle.IsZero():
			limit := s.idle.Add(w.d.Spec.GetStartTimeout().AsDuration() + connectGrace)
			if w.now.Before(limit) {
				w.at(limit)
				continue
			}
			w.set(r, inferencev1.Replica_STATE_DRAINING, "no worker of it has connected in time; see its log")
			w.fail(r)
		}
	}
}

// queued says of a replica that starts that it has no place, once that lasts.
func (w *work) queued(r *store.Replica, s sight) string {
	if s.status.GetState() != computev1.Run_STATE_QUEUED {
		return ""
	}
	if late := r.Created.Add(placeGrace); w.now.Before(late) {
		w.at(late)
		return ""
	}
	return noPlace
}

// ended reports whether a run has ended, or is not known any more.
func ended(s sight) bool {
	return s.status != nil && (s.status.GetState() >= computev1.Run_STATE_COMPLETED || s.status.GetState() == computev1.Run_STATE_UNSPECIFIED)
}

func reason(m *computev1.ReplicaStatus) string {
	switch {
	case m.GetState() == computev1.Run_STATE_UNSPECIFIED:
		return "compute does not know its run any more"
	case m.GetMessage() != "":
		return m.GetMessage()
	}
	return "its run ended by itself; see its log"
}

// lost ends a replica that nobody has stopped.
func (w *work) lost(r *store.Replica, message string) {
	w.set(r, inferencev1.Replica_STATE_ENDED, message)
	w.events = append(w.events, what{"lost", r, message})
	if fault.Code(w.seen[r.ID].refused) == codes.AlreadyExists {
		return // it was asked for in other words, by a process before this one; the next one is another
	}
	w.fail(r)
}

// fail counts a failure of the present generation, and says when the next try is.
func (w *work) fail(r *store.Replica) {
	if r.Generation != w.d.Generation || w.d.Deleting {
		return
	}
	if !r.Ready.IsZero() && w.now.Sub(r.Ready) >= w.t.settled {
		w.status.Failures = 0
	}
	w.status.Failures++
	w.status.Message = r.Message
	wait := w.t.slow
	if n := w.status.Failures; n < givenUp {
		wait = min(w.t.backoff<<(n-1), w.t.slow)
	}
	w.status.RetryAt = w.now.Add(wait)
}

// counts of the replicas that take requests or are to.
type counts struct{ fresh, freshReady, old, oldReady, settled int }

func (w *work) count() (c counts) {
	for _, r := range w.rows {
		if !Active(r) {
			continue
		}
		ready := 0
		if w.seen[r.ID].ready > 0 {
			ready = 1
		}
		if r.Generation == w.d.Generation {
			c.fresh++
			c.freshReady += ready
			if ready == 1 && w.now.Sub(r.Ready) >= w.t.settled {
				c.settled++
			} else if ready == 1 {
				w.at(r.Ready.Add(w.t.settled))
			}
		} else {
			c.old++
			c.oldReady += ready
		}
	}
	return c
}

// place starts and drains replicas: a new one answers before an old one is taken away, and there is at most one more than wanted.
func (w *work) place() {
	want := int(w.d.Spec.GetReplicas())
	w.drain(func(r *store.Replica, c counts) bool { // what is of an earlier generation and never answered is of no use
		return r.Generation != w.d.Generation && w.seen[r.ID].ready == 0 && (r.RunUID == "" || c.freshReady > 0 || r.Ready.IsZero())
	})
	w.drain(func(r *store.Replica, c counts) bool {
		return r.Generation != w.d.Generation && c.freshReady > 0 && c.freshReady+c.oldReady > want
	})
	w.drain(func(r *store.Replica, c counts) bool { // fewer are wanted: first those that do not answer
		return r.Generation == w.d.Generation && c.fresh > want && w.seen[r.ID].ready == 0
	})
	w.drain(func(r *store.Replica, c counts) bool { return r.Generation == w.d.Generation && c.fresh > want })
	c := w.count()
	if w.now.Before(w.status.RetryAt) {
		w.at(w.status.RetryAt)
		return
	}
	most := want
	if c.old > 0 {
		most = want + 1
	}
	room := min(want-c.fresh, most-c.fresh-c.old)
	if c.old > want && c.fresh == 0 { // more old ones than wanted: one new one first
		room = 1
	}
	if w.status.Failures > 0 {
		room = min(room, 1-(c.fresh-c.freshReady)) // one at a time until it is known whether they start
	}
	for range room {
		r := &store.Replica{
			ID: "replica-" + resource.NewUID("r")[2:], Deployment: w.d.UID, Generation: w.d.Generation, State: inferencev1.Replica_STATE_STARTING, Created: w.now,
		}
		w.add = append(w.add, r)
	}
}

// drain takes replicas out of service for which the condition holds, the youngest first.
func (w *work) drain(cond func(r *store.Replica, c counts) bool) {
	for _, r := range slices.Backward(w.rows) {
		if !Active(r) || !cond(r, w.count()) {
			continue
		}
		w.set(r, inferencev1.Replica_STATE_DRAINING, "")
	}
}

// judge says in which state the deployment is.
func (w *work) judge() {
	want, c := int(w.d.Spec.GetReplicas()), w.count()
	s := &w.status
	if c.freshReady >= want {
		s.Complete, s.Message = true, ""
		if c.settled >= want {
			s.Failures, s.RetryAt = 0, time.Time{}
		}
	}
	waits := slices.ContainsFunc(w.rows, func(r *store.Replica) bool { return Active(r) && r.Message == noPlace })
	if waits && s.Message == "" {
		s.Message = noPlace
	} else if !waits && s.Message == noPlace {
		s.Message = ""
	}
	lost := s.Failures >= givenUp
	switch answering := c.freshReady + c.oldReady; {
	case answering == 0 && lost:
		s.State = inferencev1.Deployment_STATE_FAILED
	case c.old > 0 && lost:
		s.State = inferencev1.Deployment_STATE_DEGRADED
	case c.old > 0:
		s.State = inferencev1.Deployment_STATE_UPDATING
	case c.freshReady >= want:
		s.State = inferencev1.Deployment_STATE_READY
	case s.Complete || lost:
		s.State = inferencev1.Deployment_STATE_DEGRADED
	case s.Updated:
		s.State = inferencev1.Deployment_STATE_UPDATING
	default:
		s.State = inferencev1.Deployment_STATE_CREATING
	}
	if !s.Offered && c.freshReady > 0 {
		s.Offered, w.offer = true, true
	}
}

// remove takes all replicas of a deployment away that is being deleted.
func (w *work) remove() {
	w.status.State = inferencev1.Deployment_STATE_DELETING
	w.gone = true
	for _, r := range w.rows {
		if Active(r) {
			w.set(r, inferencev1.Replica_STATE_DRAINING, "")
		}
		if r.State != inferencev1.Replica_STATE_ENDED {
			w.gone = false
		}
	}
}

// letGo finds the generations of which nothing is left.
func (w *work) letGo() {
	w.status.Held = slices.DeleteFunc(w.status.Held, func(g int64) bool {
		used := g == w.d.Generation && !w.d.Deleting || slices.ContainsFunc(w.rows, func(r *store.Replica) bool {
			return r.Generation == g && r.State != inferencev1.Replica_STATE_ENDED
		})
		if !used {
			w.release = append(w.release, g)
		}
		return !used
	})
}

// forget drops all but the last replicas that have ended.
func (w *work) forget() {
	kept := 0
	for _, r := range slices.Backward(w.rows) {
		if r.State != inferencev1.Replica_STATE_ENDED {
			continue
		}
		if kept++; kept > endedKept && !w.touched[r.ID] {
			w.drop = append(w.drop, r.ID)
		}
	}
}
