package replicas

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// world is a deployment, what is stored of it, and a compute that may do anything. What a crash forgets stands in seen alone.
type world struct {
	t    *rapid.T
	now  time.Time
	d    *store.Deployment
	rows []*store.Replica
	gone bool

	seen map[string]sight

	runs  map[string]*simulated
	order []string
}

// simulated is a run in compute.
type simulated struct {
	state computev1.Run_State
	ready bool
	// stop says that compute was asked to stop it.
	stop bool
}

func newWorld(t *rapid.T) *world {
	return &world{
		t: t, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), seen: make(map[string]sight), runs: make(map[string]*simulated),
		d: &store.Deployment{
			UID: "dep", Name: "subscriptions/s/resourceGroups/g/workspaces/w/endpoints/e/deployments/d", Generation: 1, Status: store.Status{Held: []int64{1}},
			Spec: &inferencev1.DeploymentSpec{Replicas: int32(rapid.IntRange(1, 4).Draw(t, "replicas")), StartTimeout: durationpb.New(time.Minute)},
		},
	}
}

// start is what the keeper does first: it asks compute for what is written down and has no run. compute may refuse, or the answer may be
// lost.
func (w *world) start(lossy bool) {
	for _, r := range w.rows {
		if r.RunUID != "" || !Active(r) || r.Generation != w.d.Generation || w.d.Deleting {
			continue
		}
		outcome := "ok"
		if lossy {
			outcome = rapid.SampledFrom([]string{"ok", "ok", "lost", "away", "refused"}).Draw(w.t, "start")
		}
		s := w.seen[r.ID]
		switch outcome {
		case "away":
			continue
		case "refused":
			if w.runs[r.ID] == nil {
				s.refused = fault.NotFound("no such compute")
				w.seen[r.ID] = s
				continue
			}
		}
		if w.runs[r.ID] == nil {
			w.runs[r.ID] = &simulated{state: computev1.Run_STATE_QUEUED}
			w.order = append(w.order, r.ID)
		}
		if outcome != "lost" {
			s.status = w.status(r.ID)
			w.seen[r.ID] = s
		}
	}
}

func (w *world) status(id string) *computev1.ReplicaStatus {
	r := w.runs[id]
	if r == nil {
		return &computev1.ReplicaStatus{ReplicaId: id}
	}
	return &computev1.ReplicaStatus{ReplicaId: id, RunUid: "run_" + id, State: r.state, Message: "it ended"}
}

// look is what the watch and the listener tell.
func (w *world) look() {
	for _, r := range w.rows {
		s := w.seen[r.ID]
		if r.RunUID != "" {
			s.status = w.status(r.ID)
			s.ready = 0
			if x := w.runs[r.ID]; x != nil && x.ready && x.state == computev1.Run_STATE_RUNNING {
				s.ready = 1
			}
			switch idle := s.status.GetState() == computev1.Run_STATE_RUNNING && s.ready == 0; {
			case !idle:
				s.idle = time.Time{}
			case s.idle.IsZero():
				s.idle = w.now
			}
		}
		w.seen[r.ID] = s
	}
}

func (w *world) answering(rows []*store.Replica) (n int) {
	for _, r := range rows {
		if Active(r) && w.seen[r.ID].ready > 0 {
			n++
		}
	}
	return n
}

func (w *world) alive(rows []*store.Replica) (n int) {
	for _, r := range rows {
		if Active(r) {
			n++
		}
	}
	return n
}

// turn is one turn of the keeper. With crash, it ends before anything is written down.
func (w *world) turn(lossy, crash bool) {
	if w.gone {
		return
	}
	w.look()
	w.start(lossy)
	w.look()
	before, wasAlive := w.answering(w.rows), w.alive(w.rows)
	p := next(w.d, w.rows, w.seen, timing{time.Second, time.Minute, 30 * time.Second}, w.now)
	if crash {
		return
	}
	rows := after(w.rows, p)
	want := int(w.d.Spec.GetReplicas())
	if now := w.answering(rows); !w.d.Deleting && now < min(want, before) {
		w.t.Fatalf("of %d that answered, %d were left, and %d are wanted", before, now, want)
	}
	if n := w.alive(rows); !w.d.Deleting && n > max(want+1, wasAlive) && n > wasAlive+1 {
		w.t.Fatalf("%d replicas where %d are wanted and %d were", n, want, wasAlive)
	}
	for _, g := range p.release {
		if g == w.d.Generation && !w.d.Deleting || slices.ContainsFunc(rows, func(r *store.Replica) bool {
			return r.Generation == g && r.State != inferencev1.Replica_STATE_ENDED
		}) {
			w.t.Fatalf("the version of generation %d is let go of while it is used", g)
		}
	}
	w.rows, w.d.Status, w.gone = rows, p.status, p.gone
}

// drain has what is draining stopped, as the keeper does beside its turns.
func (w *world) drain() {
	for _, r := range w.rows {
		if r.State != inferencev1.Replica_STATE_DRAINING {
			continue
		}
		if x := w.runs[r.ID]; x != nil {
			x.stop = true
		}
		s := w.seen[r.ID]
		s.stopped = true
		w.seen[r.ID] = s
	}
}

// check is what holds at every moment: nothing runs that nobody knows of.
func (w *world) check() {
	for id, x := range w.runs {
		if x.stop || x.state >= computev1.Run_STATE_COMPLETED {
			continue
		}
		if !slices.ContainsFunc(w.rows, func(r *store.Replica) bool { return r.ID == id && r.State != inferencev1.Replica_STATE_ENDED }) {
			w.t.Fatalf("%s runs, and no row says so", id)
		}
	}
}

// compute lets something happen to a run.
func (w *world) compute(healthy bool) {
	for _, id := range w.order {
		x := w.runs[id]
		switch {
		case x.stop && x.state < computev1.Run_STATE_COMPLETED:
			x.state, x.ready = computev1.Run_STATE_CANCELED, false
		case healthy && x.state == computev1.Run_STATE_QUEUED:
			x.state = computev1.Run_STATE_RUNNING
		case healthy && x.state == computev1.Run_STATE_RUNNING:
			x.ready = true
		}
	}
}

// H3: from wherever it was killed, whatever compute does, a deployment comes to what its spec says, nothing is left over, and what answers
// goes on answering.
func TestPlanProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.t.Repeat(map[string]func(*rapid.T){
			"turn":  func(*rapid.T) { w.turn(true, false) },
			"crash": func(*rapid.T) { w.turn(true, true); w.seen = make(map[string]sight) },
			"drain": func(*rapid.T) { w.drain() },
			"time": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
			},
			"one": func(t *rapid.T) {
				if len(w.order) == 0 {
					t.Skip("nothing runs")
				}
				x := w.runs[rapid.SampledFrom(w.order).Draw(t, "run")]
				if x.state >= computev1.Run_STATE_COMPLETED {
					t.Skip("it has ended")
				}
				switch rapid.SampledFrom([]string{"run", "ready", "busy", "fail"}).Draw(t, "what") {
				case "run":
					x.state = max(x.state, computev1.Run_STATE_RUNNING)
				case "ready":
					x.ready = x.state == computev1.Run_STATE_RUNNING
				case "busy":
					x.ready = false
				case "fail":
					x.state, x.ready = computev1.Run_STATE_FAILED, false
				}
			},
			"compute": func(*rapid.T) { w.compute(true) },
			"update": func(t *rapid.T) {
				if w.d.Deleting {
					t.Skip("it is being deleted")
				}
				w.d.Generation++
				w.d.Status = store.Status{State: inferencev1.Deployment_STATE_UPDATING, Updated: true, Offered: w.d.Status.Offered, Held: append(slices.Clone(w.d.Status.Held), w.d.Generation)}
				w.d.Spec.Replicas = int32(rapid.IntRange(1, 4).Draw(t, "replicas"))
			},
			"scale": func(t *rapid.T) { w.d.Spec.Replicas = int32(rapid.IntRange(1, 4).Draw(t, "replicas")) },
			"delete": func(t *rapid.T) {
				if rapid.IntRange(0, 20).Draw(t, "really") == 0 {
					w.d.Deleting = true
				}
			},
			"": func(*rapid.T) { w.check() },
		})
		// From here on everything works.
		for i := 0; ; i++ {
			w.turn(false, false)
			w.drain()
			w.compute(true)
			w.now = w.now.Add(10 * time.Second)
			w.check()
			if w.done() {
				break
			}
			if i > 200 {
				t.Fatalf("it does not come to rest: %v with %s", w.d.Status, w.describe())
			}
		}
	})
}

// done reports whether the deployment is what its spec says.
func (w *world) done() bool {
	running, fresh := 0, 0
	for _, x := range w.runs {
		if x.state < computev1.Run_STATE_COMPLETED {
			running++
		}
	}
	for _, r := range w.rows {
		if Active(r) && r.Generation == w.d.Generation && w.seen[r.ID].ready > 0 {
			fresh++
		}
	}
	if w.d.Deleting {
		return w.gone && running == 0
	}
	want := int(w.d.Spec.GetReplicas())
	return fresh == want && running == want && w.d.Status.State == inferencev1.Deployment_STATE_READY && w.d.Status.Message == "" &&
		slices.Equal(w.d.Status.Held, []int64{w.d.Generation})
}

func (w *world) describe() (out string) {
	for _, r := range w.rows {
		out += fmt.Sprintf("%s g%d %v run %v; ", r.ID, r.Generation, r.State, w.runs[r.ID])
	}
	return out
}

// A replica that its compute has no place for says so, and stops saying so.
func TestWaitingForAPlaceIsTold(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := &store.Deployment{UID: "dep", Generation: 1, Status: store.Status{Held: []int64{1}}, Spec: &inferencev1.DeploymentSpec{Replicas: 1, StartTimeout: durationpb.New(time.Minute)}}
	rows := []*store.Replica{{ID: "one", Deployment: "dep", Generation: 1, State: inferencev1.Replica_STATE_STARTING, Created: start}}
	for _, step := range []struct {
		after time.Duration
		state computev1.Run_State
		ready int
		want  string
		woken bool
	}{
		{time.Second, computev1.Run_STATE_QUEUED, 0, "", true},
		{4 * time.Second, computev1.Run_STATE_QUEUED, 0, noPlace, false},
		{5 * time.Second, computev1.Run_STATE_QUEUED, 0, noPlace, false},
		{6 * time.Second, computev1.Run_STATE_RUNNING, 0, "", false},
		{7 * time.Second, computev1.Run_STATE_RUNNING, 1, "", true},
	} {
		seen := map[string]sight{"one": {status: &computev1.ReplicaStatus{RunUid: "run", State: step.state}, ready: step.ready}}
		p := next(d, rows, seen, timing{backoff: time.Second, slow: time.Minute, settled: time.Minute}, start.Add(step.after))
		for _, r := range p.change {
			rows = []*store.Replica{r}
		}
		d.Status = p.status
		if p.status.Message != step.want || rows[0].Message != step.want || p.wake.IsZero() == step.woken {
			t.Errorf("after %v: the deployment says %q, its replica %q; it wakes at %v", step.after, p.status.Message, rows[0].Message, p.wake)
		}
	}
}
