//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/redoubt-ml/redoubt/test/fault/internal/command"
)

// options of a run.
type options struct {
	command.Options
	rate    float64
	lanes   int
	windows int
	kinds   string
	faults  string
	at      string
	goal    time.Duration
	slack   time.Duration
	broken  string
}

func main() {
	var o options
	o.Flags(1000)
	flag.Float64Var(&o.rate, "rate", 500, "requests a second, of all lanes")
	flag.IntVar(&o.lanes, "lanes", 4, "rights that are given and taken away at a time")
	flag.IntVar(&o.windows, "windows", 0, "windows of each fault; 0 is one, and without seconds one for each hundred rounds")
	flag.StringVar(&o.kinds, "kinds", "", "only kinds of rights whose name holds one of these, with commas between")
	flag.StringVar(&o.faults, "faults", "", "only faults whose name holds one of these; none for no fault")
	flag.StringVar(&o.at, "at", "", "only faults at services whose name holds one of these")
	flag.DurationVar(&o.goal, "goal", time.Second, "how long the call may take without a fault, 99 of 100")
	flag.DurationVar(&o.slack, "slack", 2*time.Second, "how long after the return an answer may come that is of a request from before")
	flag.StringVar(&o.broken, "broken", "", "rules that are off, with commas between, of a program built with -tags redoubt_break_fence")
	o.Main("fence", func(ctx context.Context) error { return run(ctx, o) })
}

func run(ctx context.Context, o options) (err error) {
	begin := time.Now()
	s, err := newSuite(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(o.Logs(err), s.close()) }()
	fmt.Printf("fence: %d processes on %s, ready after %s; %d lanes, %.0f requests a second wanted, seed %d\n", len(s.mesh.Processes)-1, o.Engine(), time.Since(begin).Round(100*time.Millisecond), o.lanes, o.rate, o.Seed)
	err = s.all(ctx)
	return errors.Join(err, s.report())
}
