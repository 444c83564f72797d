//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/test/fault/internal/command"
	"github.com/redoubt-ml/redoubt/test/fault/internal/mesh"
	"github.com/redoubt-ml/redoubt/test/fault/internal/netns"
)

// faultCase is one kind of fault, on its targets in turn.
type faultCase struct {
	name string
	// targets take turns; none where the case finds its own.
	targets []*mesh.Process
	// goal is how soon everything, or what the case measures, answers again; 0 is only within backLimit.
	goal time.Duration
	// do hurts, holds and heals.
	do func(ctx context.Context, r *round, target *mesh.Process) error

	tried, failed, late, suspect, turn int
	took                               []time.Duration
	why                                []string
}

func (c *faultCase) next() *mesh.Process {
	if len(c.targets) == 0 {
		return nil
	}
	c.turn++
	return c.targets[(c.turn-1)%len(c.targets)]
}

func (c *faultCase) used() bool { return c.tried > 0 }

// round is one fault.
type round struct {
	*suite
	hold     func(from, to time.Duration)
	took     time.Duration
	measured bool
}

// measure keeps how long it took until it answered again.
func (r *round) measure(d time.Duration) { r.took, r.measured = d, true }

const (
	replicaGoal = 2 * time.Second
	leaderGoal  = 10 * time.Second
	jump        = 10 * time.Minute
)

// makeCases lists what this installation can be hurt by.
func (s *suite) makeCases() {
	m := s.mesh
	services := m.Of(node.Services...)
	behind := slices.DeleteFunc(m.Of(node.Services...), func(p *mesh.Process) bool { return p.Service == "gateway" })
	not := func(name string) []*mesh.Process {
		return slices.DeleteFunc(m.Of(node.Services...), func(p *mesh.Process) bool { return p.Service == name })
	}
	clocks := slices.DeleteFunc(slices.Clone(m.Processes), func(p *mesh.Process) bool { return !p.Jumps() })
	all := []*faultCase{
		{name: "kill", targets: alone(m, m.Processes), do: kill},
		{name: "freeze", targets: alone(m, m.Processes), do: freeze},
		{name: "stop", targets: alone(m, m.Processes), do: stop},
		{name: "kill-replica", targets: twice(m), goal: replicaGoal, do: killReplica},
		{name: "freeze-replica", targets: twice(m), do: freeze},
		{name: "stop-replica", targets: twice(m), goal: replicaGoal, do: stopReplica},
		{name: "etcd-member", do: etcdMember},
		{name: "etcd-leader", goal: leaderGoal, do: etcdLeader},
		{name: "etcd-quorum", do: etcdQuorum},
		{name: "etcd-wiped", do: etcdWiped},
		{name: "cut-from-etcd", targets: slices.Clone(services), do: cut(mesh.Etcd)},
		{name: "cut-from-keyvault", targets: not("keyvault"), do: cut("keyvault")},
		{name: "cut-from-telemetry", targets: not("telemetry"), do: cut("telemetry")},
		{name: "disk-full", targets: append(slices.Clone(behind), m.Of(mesh.Etcd, "postgres", "s3")...), do: diskFull},
		{name: "clock-jump", targets: clocks, do: clockJump},
		{name: "half-open", do: halfOpen},
		{name: "slow-reader", do: slowReader},
	}
	if s.o.Postgres {
		all = append(all,
			&faultCase{name: "s3-kill", targets: m.Of("s3"), do: kill},
			&faultCase{name: "postgres-stop", targets: m.Of("postgres"), do: stop},
			&faultCase{name: "postgres-kill", targets: m.Of("postgres"), do: kill},
			&faultCase{name: "cut-from-postgres", targets: m.Of(mesh.Replicated...), do: cut("postgres")})
	}
	for _, c := range all {
		if command.Chosen(s.o.cases, c.name) && !(c.targets != nil && len(c.targets) == 0) {
			s.rand.Shuffle(len(c.targets), func(i, j int) { c.targets[i], c.targets[j] = c.targets[j], c.targets[i] })
			s.cases = append(s.cases, c)
		}
	}
}

// twice are the processes whose service has another instance, alone those without, but for PostgreSQL, which has cases of its own.
func twice(m *mesh.Mesh) []*mesh.Process {
	return slices.DeleteFunc(m.Of(node.Services...), func(p *mesh.Process) bool { return len(m.Of(p.Service)) < 2 })
}

func alone(m *mesh.Mesh, of []*mesh.Process) []*mesh.Process {
	return slices.DeleteFunc(slices.Clone(of), func(p *mesh.Process) bool {
		return p.Service == "postgres" || p.Service == "s3" || p.Service != mesh.Etcd && len(m.Of(p.Service)) > 1
	})
}

// kill ends a process with SIGKILL and starts it again, at once or a little later.
func kill(_ context.Context, r *round, p *mesh.Process) error {
	if err := p.Kill(); err != nil {
		return err
	}
	if r.rand.IntN(2) == 0 {
		r.hold(100*time.Millisecond, 1500*time.Millisecond)
	}
	return p.Start()
}

func freeze(_ context.Context, r *round, p *mesh.Process) error {
	if err := p.Freeze(); err != nil {
		return err
	}
	r.hold(time.Second, 8*time.Second)
	return p.Thaw()
}

func stop(_ context.Context, r *round, p *mesh.Process) error {
	if err := p.Stop(); err != nil {
		return err
	}
	if r.rand.IntN(2) == 0 {
		r.hold(100*time.Millisecond, 1500*time.Millisecond)
	}
	return p.Start()
}

// killReplica ends one of two, which stays away until the other one answers alone.
func killReplica(ctx context.Context, r *round, p *mesh.Process) error {
	if err := p.Kill(); err != nil {
		return err
	}
	return r.alone(ctx)
}

func stopReplica(ctx context.Context, r *round, p *mesh.Process) error {
	if err := p.Stop(); err != nil {
		return err
	}
	return r.alone(ctx)
}

// alone measures how long the rest takes to answer steadily.
func (r *round) alone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	begin := time.Now()
	for good := 0; good < 5; {
		if err := r.load.Answers(ctx); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("the other instance does not answer: %w", err)
			}
			good = 0
			continue
		}
		if good++; good == 1 {
			r.measure(time.Since(begin))
		}
	}
	return nil
}

// etcdMember takes a member away that does not lead.
func etcdMember(ctx context.Context, r *round, _ *mesh.Process) error {
	leader, err := r.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(r.mesh.Of(mesh.Etcd), func(p *mesh.Process) bool { return p == leader })
	p := others[r.rand.IntN(len(others))]
	if err := p.Kill(); err != nil {
		return err
	}
	took, err := r.cluster.Writes(ctx)
	if err != nil {
		return err
	}
	r.measure(took)
	r.hold(time.Second, 3*time.Second)
	return p.Start()
}

// etcdLeader takes the leader away, and measures until the others take a write and every service answers.
func etcdLeader(ctx context.Context, r *round, _ *mesh.Process) error {
	p, err := r.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := p.Kill(); err != nil {
		return err
	}
	if err := r.whole(ctx, begin); err != nil {
		return err
	}
	r.hold(0, 2*time.Second)
	return p.Start()
}

// etcdQuorum takes two of three away.
func etcdQuorum(ctx context.Context, r *round, _ *mesh.Process) error {
	members := r.mesh.Of(mesh.Etcd)
	r.rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	for _, p := range members[:2] {
		if err := p.Kill(); err != nil {
			return err
		}
	}
	r.hold(time.Second, 6*time.Second)
	begin := time.Now()
	for _, p := range members[:2] {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return r.whole(ctx, begin)
}

// whole measures from begin until etcd takes a write and every service answers.
func (r *round) whole(ctx context.Context, begin time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	if _, err := r.cluster.Writes(ctx); err != nil {
		return err
	}
	if _, err := mesh.Poll(ctx, r.load.Answers); err != nil {
		return fmt.Errorf("not every service answers again: %w", err)
	}
	r.measure(time.Since(begin))
	return nil
}

// etcdWiped takes everything away that etcd has stored.
func etcdWiped(ctx context.Context, r *round, _ *mesh.Process) error {
	members := r.mesh.Of(mesh.Etcd)
	for _, p := range members {
		if err := p.Kill(); err != nil {
			return err
		}
	}
	begin := time.Now()
	for _, p := range members {
		if err := errors.Join(p.Wipe(), p.Start()); err != nil {
			return err
		}
	}
	return r.whole(ctx, begin)
}

// cut takes the way to all instances of a service away.
func cut(service string) func(context.Context, *round, *mesh.Process) error {
	return func(_ context.Context, r *round, p *mesh.Process) error {
		for _, other := range r.mesh.Of(service) {
			if err := r.mesh.Network().Cut(p.Host, other.Host); err != nil {
				return err
			}
		}
		r.hold(time.Second, 4*time.Second)
		return r.mesh.Network().Heal()
	}
}

// diskFull leaves a process no space, and gives it back.
func diskFull(_ context.Context, r *round, p *mesh.Process) error {
	if err := netns.Fill(p.Dir); err != nil {
		return err
	}
	r.hold(time.Second, 4*time.Second)
	return netns.Free(p.Dir)
}

// clockJump sets a process's clock off, and right again.
func clockJump(_ context.Context, r *round, p *mesh.Process) error {
	off := jump
	if r.rand.IntN(2) == 0 {
		off = -jump
	}
	if err := p.Clock(off); err != nil {
		return err
	}
	r.hold(time.Second, 4*time.Second)
	return p.Clock(0)
}
