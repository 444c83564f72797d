//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// count is what all rounds came to.
type count struct {
	slack time.Duration

	mu         sync.Mutex
	rounds     map[string]*tally // by kind, without a fault; "fault: …" by fault
	violations []string
	histories  int
	operations int
	undecided  int
	requests   int64
	missed     int64
	busy       time.Duration
	byService  map[string]*answers
	lateBy     time.Duration
}

// answers of a service after the return.
type answers struct{ refused, honoured, unknown int }

// tally of rounds of one sort.
type tally struct {
	rounds                                       int
	before, after, unknown, shed, late, messages int
	streams, commits                             int
	took                                         []time.Duration
}

func newCount(slack time.Duration) *count {
	return &count{slack: slack, rounds: make(map[string]*tally), byService: make(map[string]*answers)}
}

// take judges a round.
func (c *count) take(r *round) {
	found := r.violations(c.slack)
	services := make(map[string]bool)
	operations := 0
	for _, q := range r.requests {
		services[q.service] = true
		if q.outcome != unknown {
			operations++
		}
	}
	undecided := 0
	for s := range services {
		ok, known := r.ordered(s)
		switch {
		case !known:
			undecided++
		case !ok:
			found = append(found, "the answers of "+s+" cannot be put in an order in which each saw the right as it was")
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.histories, c.operations, c.undecided = c.histories+len(services), c.operations+operations, c.undecided+undecided
	name := r.kind
	if r.fault != "" {
		name = "fault: " + strings.Fields(r.fault)[0]
	}
	t := c.rounds[name]
	if t == nil {
		t = &tally{}
		c.rounds[name] = t
	}
	t.rounds++
	t.shed += r.shed
	if r.outcome == "returned" {
		t.took = append(t.took, r.first)
	}
	for _, q := range r.requests {
		by := c.byService[q.service]
		if by == nil {
			by = &answers{}
			c.byService[q.service] = by
		}
		back := !r.taken.got.IsZero() && q.sent.After(r.taken.got)
		switch {
		case q.outcome == unknown:
			t.unknown++
			if back {
				by.unknown++
			}
		case !back:
			t.before++
			if late := q.got.Sub(r.taken.got); !r.taken.got.IsZero() && late > 0 && q.outcome == honoured {
				t.late++
				c.lateBy = max(c.lateBy, late)
			}
		case q.outcome == honoured:
			t.after++
			by.honoured++
		default:
			t.after++
			by.refused++
		}
	}
	t.messages += len(r.heard)
	if len(r.heard) > 0 {
		t.streams++
	}
	if r.committed[1] > 0 && r.committed[0] >= 0 {
		t.commits++
	}
	for _, v := range found {
		c.add(r, v)
	}
}

func (c *count) violate(r *round, what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(r, what)
}

// add notes a violation; the caller holds mu.
func (c *count) add(r *round, what string) {
	said := fmt.Sprintf("%s, round %d, lane %d: %s", r.kind, r.number, r.lane, what)
	if r.fault != "" {
		said = fmt.Sprintf("%s, round %d, lane %d, %s: %s", r.kind, r.number, r.lane, r.fault, what)
	}
	if len(c.violations) < 20 {
		fmt.Println("fence: VIOLATION:", said)
	}
	c.violations = append(c.violations, said)
}

func (c *count) violated() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.violations) > 0
}

// clean is how many rounds without a fault there were.
func (c *count) clean() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, t := range c.rounds {
		if !strings.HasPrefix(name, "fault: ") {
			n += t.rounds
		}
	}
	return n
}

// load adds requests of a stretch of time, and those that were to be made in it and were not.
func (c *count) load(requests, missed int64, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests, c.missed, c.busy = c.requests+requests, c.missed+missed, c.busy+took
}

// violations of one round, but for the histories.
func (r *round) violations(slack time.Duration) (out []string) {
	if r.taken.got.IsZero() {
		return nil
	}
	type key struct{ service, what string }
	found := make(map[key]int)
	worst := make(map[key]time.Duration)
	note := func(service, what string, by time.Duration) {
		k := key{service, what}
		found[k]++
		worst[k] = max(worst[k], by)
	}
	for _, q := range r.requests {
		switch after := q.sent.Sub(r.taken.got); {
		case after > 0 && q.outcome == honoured:
			note(q.service, "honoured after the call had returned", after)
		case after <= 0 && q.outcome == honoured && q.got.Sub(r.taken.got) > slack:
			note(q.service, "answered late, though asked before the call had returned", q.got.Sub(r.taken.got))
		case r.fault == "" && q.outcome == refused && q.sent.After(r.given.got) && q.got.Before(r.taken.sent):
			note(q.service, "refused, though given ("+q.why+")", r.taken.sent.Sub(q.got))
		}
	}
	for _, m := range r.heard {
		if after := m.begun.Sub(r.taken.got); after > 0 {
			note("telemetry", "told on the open stream of what was begun after the call had returned", after)
		}
	}
	for k, n := range found {
		out = append(out, fmt.Sprintf("%s: %s: %d times, by %s at most", k.service, k.what, n, worst[k].Round(time.Millisecond)))
	}
	slices.Sort(out)
	if a, b := r.committed[0], r.committed[1]; a >= 0 && b >= 0 && a != b {
		out = append(out, fmt.Sprintf("keyvault: committed after the call had returned: version %d, then %d", a, b))
	}
	return out
}

// report prints what was tried and what came of it.
func (s *suite) report() error {
	c := s.count
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Printf("\nfence: %-18s %6s %8s %8s %8s %6s %8s %6s %9s %9s %9s\n", "kind", "rounds", "before", "after", "unknown", "late", "streams", "commits", "p50", "p99", "max")
	var all []time.Duration
	rounds := 0
	for _, name := range slices.Sorted(maps.Keys(c.rounds)) {
		t := c.rounds[name]
		fmt.Printf("fence: %-18s %6d %8d %8d %8d %6d %8d %6d %9s %9s %9s\n", name, t.rounds, t.before, t.after, t.unknown, t.late, t.streams, t.commits, share(t.took, .5), share(t.took, .99), share(t.took, 1))
		if !strings.HasPrefix(name, "fault: ") {
			all = append(all, t.took...)
			rounds += t.rounds
		}
	}
	good, bad := 0, 0
	for _, name := range slices.Sorted(maps.Keys(c.byService)) {
		a := c.byService[name]
		good, bad = good+a.refused, bad+a.honoured
		fmt.Printf("fence: after the return, %-10s %7d refused, %d honoured, %d without an answer that says\n", name, a.refused, a.honoured, a.unknown)
	}
	rate := 0.0
	if c.busy > 0 {
		rate = float64(c.requests) / c.busy.Seconds()
	}
	average, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("fence: %d rounds without a fault, %.0f requests a second then of the %.0f wanted, %d never made; the machine's load %s\n", rounds, rate, s.o.rate, c.missed, strings.Join(strings.Fields(string(average))[:3], " "))
	fmt.Printf("fence: the call without a fault: p50 %s, p99 %s, longest %s, goal %s for p99; the latest answer to what was asked before the return came %s after it\n",
		share(all, .5), share(all, .99), share(all, 1), s.o.goal, c.lateBy.Round(time.Millisecond))
	fmt.Printf("fence: %d histories of %d answers put in order by porcupine, %d not decided in time\n", c.histories, c.operations, c.undecided)
	for _, b := range s.broken {
		fmt.Println("fence:   not made:", b)
	}
	for _, p := range s.mesh.Processes {
		if n, how := p.Fallen(); n > 0 {
			fmt.Printf("fence:   %s ended by itself %d times and was started again, last: %v\n", p.Name, n, how)
		}
	}
	fmt.Printf("fence: %d requests after the return: %d refused, %d honoured; %d violations; seed %d\n", good+bad, good, bad, len(c.violations), s.o.Seed)
	switch {
	case len(c.violations) > 0:
		return fmt.Errorf("%d violations", len(c.violations))
	case rounds == 0 || good == 0:
		return errors.New("nothing was tried")
	case len(s.broken)*10 > rounds:
		return fmt.Errorf("%d rounds could not be made", len(s.broken))
	case c.undecided > 0:
		return fmt.Errorf("%d histories were not decided in time", c.undecided)
	case s.o.goal > 0 && quantile(all, .99) > s.o.goal:
		return fmt.Errorf("the call took %s, 99 of 100, and the goal is %s", share(all, .99), s.o.goal)
	}
	return nil
}

// share is a quantile, for people.
func share(took []time.Duration, of float64) string {
	if len(took) == 0 {
		return "-"
	}
	return quantile(took, of).Round(time.Millisecond).String()
}

func quantile(took []time.Duration, of float64) time.Duration {
	if len(took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(took))
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*of))]
}
