//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/test/fault/internal/command"
	"github.com/redoubt-ml/redoubt/test/fault/internal/load"
	"github.com/redoubt-ml/redoubt/test/fault/internal/mesh"
	"github.com/redoubt-ml/redoubt/test/fault/internal/oracle"
)

// The bounds of calls in a window: what FENCE.md and ADR 28 promise where one member is dead, stopped or cut off, and how long a call is waited for.
const (
	memberGone = 11 * time.Second // the lease, and a second
	stuck      = 16 * time.Second // that, and the watchdog
	pendingAt  = 6 * time.Second  // the deadline of a call that has to be pending
	waitAtMost = 35 * time.Second
	healTime   = 60 * time.Second
	jump       = 10 * time.Minute
)

// trouble is a kind of fault at one process.
type trouble struct {
	name string
	hurt func(s *suite, p *mesh.Process) error
	heal func(s *suite, p *mesh.Process) error
	// silent says that the process can publish nothing while it lasts.
	silent bool
}

// troubles are those that are asked for.
func (s *suite) troubles() []trouble {
	all := []trouble{
		{name: "stop", silent: true, hurt: func(_ *suite, p *mesh.Process) error { return p.Freeze() }, heal: func(_ *suite, p *mesh.Process) error { return p.Thaw() }},
		{name: "cut", silent: true, hurt: func(s *suite, p *mesh.Process) error {
			for _, e := range s.mesh.Of(mesh.Etcd) {
				if err := s.mesh.Network().Cut(p.Host, e.Host); err != nil {
					return err
				}
			}
			return nil
		}, heal: func(s *suite, _ *mesh.Process) error { return s.mesh.Network().Heal() }},
		{name: "clock+10m", hurt: func(_ *suite, p *mesh.Process) error { return p.Clock(jump) }, heal: func(_ *suite, p *mesh.Process) error { return p.Clock(0) }},
		{name: "clock-10m", hurt: func(_ *suite, p *mesh.Process) error { return p.Clock(-jump) }, heal: func(_ *suite, p *mesh.Process) error { return p.Clock(0) }},
	}
	return slices.DeleteFunc(all, func(t trouble) bool { return !command.Chosen(s.o.faults, t.name) })
}

// at is a fault at a process.
type at struct {
	trouble
	target *mesh.Process
}

// orderOf are so many windows of each fault, on the services that decide in turn.
func (s *suite) orderOf(windows int) (out []at) {
	deciding := slices.DeleteFunc(s.mesh.Of(node.Services...), func(p *mesh.Process) bool { return p.Service == "gateway" || !command.Chosen(s.o.at, p.Service) })
	for _, t := range s.faults {
		s.rand.Shuffle(len(deciding), func(i, j int) { deciding[i], deciding[j] = deciding[j], deciding[i] })
		for i := range windows {
			out = append(out, at{t, deciding[i%len(deciding)]})
		}
	}
	s.rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// window makes one round in each lane while one process is in trouble, from before it until everything answers again.
func (s *suite) window(ctx context.Context, f at) error {
	begin := time.Now()
	var warm, tried, done sync.WaitGroup
	w := &window{name: f.name, warm: &warm, tried: &tried, hurt: make(chan struct{}), healed: make(chan struct{}), within: waitAtMost, repeats: healTime, parked: true}
	if f.silent && !s.o.Postgres {
		w.within, w.again = pendingAt, true
	}
	warm.Add(len(s.lanes))
	tried.Add(len(s.lanes))
	order := s.rand.Perm(len(s.kinds))
	var mu sync.Mutex
	var made []*round
	for i, l := range s.lanes {
		k := s.kinds[order[i%len(order)]]
		rnd := rand.New(rand.NewPCG(s.o.Seed, s.rand.Uint64()))
		done.Go(func() {
			r, err := l.round(ctx, k, int(s.number.Add(1)), rnd, w)
			r.fault = f.name + " " + f.target.Service
			if err != nil {
				s.failed(r, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			made = append(made, r)
		})
	}
	warm.Wait()
	err := f.hurt(s, f.target)
	close(w.hurt)
	tried.Wait()
	before, e := s.versions(ctx)
	err = errors.Join(err, e, f.heal(s, f.target))
	close(w.healed)
	done.Wait()
	after, e := s.versions(ctx)
	if err = errors.Join(err, e); err != nil {
		return err
	}
	if len(made) == len(s.lanes) && !slices.ContainsFunc(made, func(r *round) bool { return r.writes && r.outcome != "returned" }) && after != before {
		s.count.violate(made[0], fmt.Sprintf("keyvault: committed after the calls of all lanes had returned: %d versions of secrets, then %d", before, after))
	}
	for _, r := range made {
		s.count.take(r)
		if why := s.promised(r, f); why != "" {
			s.count.violate(r, why)
		}
	}
	fmt.Printf("fence: %-10s at %-10s %5.1f s:", f.name, f.target.Service, time.Since(begin).Seconds())
	for _, r := range made {
		fmt.Printf(" %s %s after %s;", r.kind, r.outcome, r.first.Round(time.Millisecond))
	}
	fmt.Println()
	return s.back(ctx)
}

// versions are how many versions of secrets PostgreSQL has, which tells also of a keyvault that does not answer; 0 on SQLite.
func (s *suite) versions(ctx context.Context) (int, error) {
	if !s.o.Postgres {
		return 0, nil
	}
	text, err := s.mesh.Query(ctx, "SELECT count(*) FROM keyvault.item_versions;")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// promised says in what a call in a window differs from what it may say.
func (s *suite) promised(r *round, f at) string {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == r.kind })
	owner := kinds[i].owner
	if owner == "" || owner == f.target.Service || r.kind == "run" && f.target.Service == "compute" {
		return "" // the one that has to say it is in trouble itself, or the fence has no part in it
	}
	switch {
	case f.silent && !s.o.Postgres && r.outcome == "returned":
		return fmt.Sprintf("the call returned while %s could have been heard of by nobody, and may go on with its store", f.target.Name)
	case f.silent && !s.o.Postgres && (r.outcome != "pending" || !slices.Contains(r.pending, f.target.Service+"/a")):
		return fmt.Sprintf("the call did not name the instance that stands still: %s %v", r.outcome, r.pending)
	case r.repeated == "returned" || r.repeated == "done" && r.kind != "run": // the agent of a run is refused by then, which is no promise
		return fmt.Sprintf("the repetition returned while %s could have been heard of by nobody", f.target.Name)
	case f.silent && s.o.Postgres && r.outcome == "pending" && strings.Contains(s.o.broken, "noidle") && slices.Contains(r.pending, f.target.Service+"/a"):
		return "" // it holds a transaction open for as long as it stands still
	case f.silent && s.o.Postgres && r.outcome == "returned" && r.first > stuck:
		return fmt.Sprintf("the call returned after %s, and the bound is %s", r.first.Round(time.Millisecond), stuck)
	case (!f.silent || s.o.Postgres) && r.outcome != "returned":
		return fmt.Sprintf("the call did not return: %s %v after %s", r.outcome, r.pending, r.first.Round(time.Millisecond))
	}
	return ""
}

// back waits until every service answers, and takes part in the fence.
func (s *suite) back(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	cfg := load.Config{Gateway: s.mesh.Address, TLS: s.mesh.TLS(), Dial: s.mesh.Dial, Admin: s.mesh.Admin, Password: s.mesh.Password, Book: oracle.NewBook("revoke")}
	if _, err := mesh.Poll(ctx, func(ctx context.Context) error { return load.Ready(ctx, cfg) }); err != nil {
		return fmt.Errorf("does not answer again: %w", err)
	}
	for _, l := range s.lanes {
		with := l.ofWorkspace(s.admin.Load().token, "back").andIdentity(l, s.admin.Load().token)
		for _, p := range with.probes {
			if _, err := mesh.Poll(ctx, func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, requestTime)
				defer cancel()
				return p.ask(ctx)
			}); err != nil {
				return fmt.Errorf("%s does not answer again: %w", p.service, err)
			}
		}
	}
	return nil
}
