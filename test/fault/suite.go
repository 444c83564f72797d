//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/test/fault/internal/ledger"
	"github.com/redoubt-ml/redoubt/test/fault/internal/load"
	"github.com/redoubt-ml/redoubt/test/fault/internal/mesh"
	"github.com/redoubt-ml/redoubt/test/fault/internal/netns"
	"github.com/redoubt-ml/redoubt/test/fault/internal/oracle"
)

const (
	startLimit = 90 * time.Second
	// backLimit is how long everything may take to answer again after a fault was healed.
	backLimit = 40 * time.Second
	// batch is how long rounds go on before the book is judged; quiet is how long after the last fault calls may still end in services.
	batch, quiet = 40 * time.Second, 5 * time.Second
	checkLimit   = 4 * time.Minute
)

// suite is one installation and everything around it.
type suite struct {
	o        options
	mesh     *mesh.Mesh
	cluster  *mesh.Cluster
	stranger *netns.Host
	load     *load.Load
	book     *oracle.Book
	ledger   *ledger.Ledger
	rand     *rand.Rand
	cases    []*faultCase

	since      []*faultCase // rounds whose effects were not judged yet
	violations []string
	ended      map[string]int
	started    bool
}

func newSuite(ctx context.Context, o options) (_ *suite, err error) {
	s := &suite{o: o, book: oracle.NewBook(fmt.Sprintf("f%x", o.Seed)), rand: rand.New(rand.NewPCG(o.Seed, 0)), ended: make(map[string]int)}
	if s.ledger, err = ledger.Open(load.Marker(s.tag())); err != nil {
		return nil, err
	}
	if s.mesh, err = mesh.Open(ctx, mesh.Config{Binary: o.Binary, Postgres: o.Postgres, S3: o.s3}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, s.outputs(1500))
			err = errors.Join(err, s.close())
		}
	}()
	if s.stranger, err = s.mesh.Network().AddHost("stranger"); err != nil {
		return nil, err
	}
	if s.cluster, err = s.mesh.Cluster(); err != nil {
		return nil, err
	}
	starting, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.prepare(starting); err != nil {
		return nil, err
	}
	s.makeCases()
	s.load.Start()
	s.started = true
	return s, nil
}

// prepare makes the clients, as soon as every service answers.
func (s *suite) prepare(ctx context.Context) error {
	cfg := load.Config{Gateway: s.mesh.Address, TLS: s.mesh.TLS(), Dial: s.mesh.Dial, Admin: s.mesh.Admin, Password: s.mesh.Password, Book: s.book, Tag: s.tag(), Runs: true}
	if _, err := mesh.Poll(ctx, func(ctx context.Context) error { return load.Ready(ctx, cfg) }); err != nil {
		return fmt.Errorf("the installation does not answer: %w", err)
	}
	var err error
	if s.load, err = load.New(ctx, cfg); err != nil {
		return fmt.Errorf("the clients cannot be set up: %w", err)
	}
	return s.mesh.StartWorker(s.load.Workspace(), s.load.Admin.Token)
}

// tag is a word for this run of the suite.
func (s *suite) tag() string { return fmt.Sprintf("f%x", s.o.Seed) }

func (s *suite) close() error {
	if s.started {
		s.load.Close()
	}
	s.ledger.Close()
	return s.mesh.Close()
}

// rounds hurts the installation until it has been hurt enough.
func (s *suite) rounds(ctx context.Context) error {
	begin := time.Now()
	if err := s.back(ctx, nil); err != nil {
		return err
	}
	if err := s.judge(ctx, false); err != nil { // a run without a fault
		return err
	}
	last := time.Now()
	for n := 0; ctx.Err() == nil; n++ {
		order := s.order(n, begin)
		if len(order) == 0 {
			break
		}
		for _, c := range order {
			if s.over(n, begin) || ctx.Err() != nil {
				break
			}
			s.round(ctx, c)
			if time.Since(last) > batch {
				if err := s.judge(ctx, false); err != nil {
					return err
				}
				last = time.Now()
			}
		}
	}
	if ctx.Err() != nil {
		return errors.New("stopped")
	}
	return s.judge(ctx, true)
}

// order is the n-th turn: every case that wants more rounds.
func (s *suite) order(n int, begin time.Time) []*faultCase {
	var out []*faultCase
	for _, c := range s.cases {
		if s.o.Seconds > 0 && !s.over(n, begin) || s.o.Seconds == 0 && n < max(s.o.Rounds, len(c.targets)) {
			out = append(out, c)
		}
	}
	s.rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// over reports whether time is up. The first turn is always done.
func (s *suite) over(n int, begin time.Time) bool {
	return s.o.Seconds > 0 && n > 0 && time.Since(begin) > time.Duration(s.o.Seconds)*time.Second
}

// round is one fault, from its begin until everything answers again.
func (s *suite) round(ctx context.Context, c *faultCase) {
	target := c.next()
	r := &round{suite: s, hold: func(from, to time.Duration) { s.hold(ctx, from, to) }}
	c.tried++
	s.since = append(s.since, c)
	begin := time.Now()
	err := c.do(ctx, r, target)
	if err == nil {
		err = s.back(ctx, r)
	}
	name := c.name
	if target != nil {
		name += " " + target.Name
	}
	if r.measured {
		c.took = append(c.took, r.took)
	}
	switch {
	case err != nil && ctx.Err() == nil:
		c.failed++
		c.why = append(c.why, fmt.Sprintf("%s: %v", name, err))
		fmt.Printf("fault: %s FAILED: %v\n", name, err)
		if target != nil {
			fmt.Println(target.Output(3000))
		}
		_ = s.mesh.Network().Heal()
	default:
		fmt.Printf("fault: %-34s %6.1f s, again after %s\n", name, time.Since(begin).Seconds(), r.took.Round(time.Millisecond))
	}
	if c.goal > 0 && r.took > c.goal && err == nil {
		c.late++
		fmt.Printf("fault: %s answered again after %s, goal %s\n", name, r.took.Round(time.Millisecond), c.goal)
	}
}

// hold lets a fault last.
func (s *suite) hold(ctx context.Context, from, to time.Duration) {
	d := from + time.Duration(s.rand.Int64N(int64(to-from)+1))
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// back waits until every process runs and every service answers. The time of a round is taken, unless it was already.
func (s *suite) back(ctx context.Context, r *round) error {
	ctx, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	for _, p := range s.mesh.Processes {
		if err := p.Start(); err != nil { // does nothing where it runs
			return err
		}
	}
	took, err := mesh.Poll(ctx, func(ctx context.Context) error { return s.load.Answers(ctx) })
	if err != nil {
		return fmt.Errorf("does not answer again within %s: %w", backLimit, err)
	}
	if r != nil && !r.measured {
		r.measure(took)
	}
	return nil
}

// judge has the book compared with what is there, with the load paused.
func (s *suite) judge(ctx context.Context, all bool) error {
	s.load.Pause()
	defer s.load.Resume()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(quiet):
	}
	begin := time.Now()
	limit := checkLimit
	if all {
		limit *= 3
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ended, err := s.load.Check(limited, all, s.rand, s.ledger)
	for k, n := range ended {
		s.ended[k] += n
	}
	if e := s.ledger.Err(); e != nil {
		err = errors.Join(err, e)
	}
	found := s.book.Violations()
	var names []string
	for _, c := range s.since {
		names = append(names, c.name)
	}
	n := s.book.Counts()
	fmt.Printf("fault: judged %d calls, %d objects, %d events in %s after %d rounds: %d violations\n", n.Calls, n.Objects, n.Events, time.Since(begin).Round(100*time.Millisecond), len(names), len(found))
	if len(found) > 0 || err != nil {
		for _, c := range s.since {
			c.suspect++
		}
		for _, v := range found {
			fmt.Println("fault: VIOLATION:", v)
		}
		slices.Sort(names)
		fmt.Println("fault: rounds since the last look:", strings.Join(slices.Compact(names), ", "))
		s.violations = append(s.violations, found...)
	}
	s.since = nil
	if err != nil {
		return fmt.Errorf("what is there cannot be compared: %w\n%s", err, s.outputs(1500))
	}
	if len(found) > 0 && s.o.First {
		return fmt.Errorf("%d violations", len(found))
	}
	return nil
}

// outputs are the ends of what all processes have printed.
func (s *suite) outputs(most int) string {
	var b strings.Builder
	for _, p := range s.mesh.Processes {
		fmt.Fprintf(&b, "--- %s\n%s\n", p.Name, p.Output(most))
	}
	return b.String()
}
