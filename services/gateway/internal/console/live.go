package console

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

const (
	tellEvery = 300 * time.Millisecond // how often a page hears of new points, at most
	stayAwake = 15 * time.Second       // between signs of life
	writeTime = 20 * time.Second
)

// news is what a page hears: metrics that have new points, and where the run is in its life.
type news struct {
	Metrics []telling `json:"metrics,omitempty"`
	State   string    `json:"state,omitempty"`
	Ended   bool      `json:"ended,omitempty"`
}

type telling struct {
	Key string `json:"key"`
	// As text: NaN and the infinities are no numbers of JSON.
	Value string `json:"value"`
	Step  int64  `json:"step"`
}

// live tells the page of a run what is new, as server-sent events, until the run has ended.
func (c *Console) live(w http.ResponseWriter, v *visit) {
	name := v.name + "/runs/" + v.r.PathValue("run")
	ctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	points, err := c.metrics.WatchMetrics(ctx, &telemetryv1.WatchMetricsRequest{Run: name})
	if err != nil {
		c.refused(w, v.r, v.base, err)
		return
	}
	states, err := c.runs.WatchRun(ctx, &computev1.WatchRunRequest{Name: name})
	if err != nil {
		c.refused(w, v.r, v.base, err)
		return
	}
	first, err := states.Recv() // a refusal is read here, while it can still be a page
	if err != nil {
		c.refused(w, v.r, v.base, err)
		return
	}
	b := &board{latest: make(map[string]*telemetryv1.Metric), run: first, changed: make(chan struct{}, 1)}
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	var heard sync.WaitGroup // both streams end with the run
	heard.Go(func() {
		for {
			m, err := points.Recv()
			if err != nil {
				return
			}
			b.points(m.GetMetrics())
		}
	})
	heard.Go(func() {
		for {
			r, err := states.Recv()
			if err != nil {
				return
			}
			b.state(r)
		}
	})
	watching.Go(func() {
		heard.Wait()
		b.end()
	})
	b.wake()
	c.tell(ctx, w, b)
}

// tell writes what the board has, and signs of life between.
func (c *Console) tell(ctx context.Context, w http.ResponseWriter, b *board) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(w)
	write := func(text string) bool {
		if err := out.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return false
		}
		if _, err := fmt.Fprint(w, text); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	if out.SetReadDeadline(time.Time{}) != nil { // the browser says no more, and stays
		return
	}
	beat := time.NewTicker(stayAwake)
	defer beat.Stop()
	pace := time.NewTicker(tellEvery)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			if !write(": still here\n\n") {
				return
			}
			continue
		case <-b.changed:
		}
		n := b.take()
		text, err := json.Marshal(n)
		if err != nil || !write("data: "+string(text)+"\n\n") || n.Ended {
			return
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
	}
}

// board holds what a page has not heard yet.
type board struct {
	mu      sync.Mutex
	latest  map[string]*telemetryv1.Metric
	run     *computev1.Run
	over    bool
	changed chan struct{}
}

func (b *board) wake() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

func (b *board) points(list []*telemetryv1.Metric) {
	b.mu.Lock()
	for _, m := range list {
		b.latest[m.GetKey()] = m
	}
	b.mu.Unlock()
	b.wake()
}

func (b *board) state(r *computev1.Run) {
	b.mu.Lock()
	b.run = r
	b.mu.Unlock()
	b.wake()
}

func (b *board) end() {
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.wake()
}

// take gives what is new, once.
func (b *board) take() news {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := news{State: plainly(b.run.GetState()), Ended: b.over}
	for key, m := range b.latest {
		n.Metrics = append(n.Metrics, telling{Key: key, Value: fmt.Sprintf("%.6g", m.GetValue()), Step: m.GetStep()})
	}
	slices.SortFunc(n.Metrics, func(a, b telling) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	clear(b.latest)
	return n
}
