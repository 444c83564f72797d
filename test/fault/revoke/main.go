//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/redoubt-ml/redoubt/test/fault/internal/mesh"
	"github.com/redoubt-ml/redoubt/test/fault/internal/netns"
)

// options of a run.
type options struct {
	binary   string
	rounds   int
	seconds  int
	rate     float64
	lanes    int
	windows  int
	kinds    string
	faults   string
	seed     uint64
	postgres bool
	goal     time.Duration
	slack    time.Duration
	first    bool
	keep     string
	broken   string
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "", "the program, built with -tags redoubt_fault_clock")
	flag.IntVar(&o.rounds, "rounds", 1000, "rounds without a fault, where seconds says nothing")
	flag.IntVar(&o.seconds, "seconds", 0, "how long rounds are made, faults included; each kind and each fault at least once")
	flag.Float64Var(&o.rate, "rate", 500, "requests a second, of all lanes")
	flag.IntVar(&o.lanes, "lanes", 4, "rights that are given and taken away at a time")
	flag.IntVar(&o.windows, "windows", 0, "windows of each fault; 0 is one, and without seconds one for each hundred rounds")
	flag.StringVar(&o.kinds, "kinds", "", "only kinds of rights whose name holds one of these, with commas between")
	flag.StringVar(&o.faults, "faults", "", "only faults whose name holds one of these; none for no fault")
	flag.Uint64Var(&o.seed, "seed", 0, "of the order; 0 is a new one")
	flag.BoolVar(&o.postgres, "postgres", false, "stores in PostgreSQL")
	flag.DurationVar(&o.goal, "goal", time.Second, "how long the call may take without a fault, 99 of 100")
	flag.DurationVar(&o.slack, "slack", 2*time.Second, "how long after the return an answer may come that is of a request from before")
	flag.BoolVar(&o.first, "first", false, "end at the first violation")
	flag.StringVar(&o.broken, "broken", "", "rules that are off, with commas between, of a program built with -tags redoubt_break_fence")
	flag.StringVar(&o.keep, "keep", "", "a folder to copy the logs of all processes to when something was found")
	flag.Parse()
	why := netns.Check()
	if why == "" && o.postgres {
		why = mesh.CheckPostgres()
	}
	if why != "" {
		fmt.Println("fence: skipped:", why)
		return
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Println("fence: FAILED:", err)
		os.Exit(1) //nolint:gocritic // nothing is left that stop would do
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	begin := time.Now()
	s, err := newSuite(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && o.keep != "" {
			err = errors.Join(err, os.CopyFS(filepath.Join(o.keep, fmt.Sprintf("seed-%d", o.seed)), os.DirFS(filepath.Join(netns.Root, "logs"))))
		}
		err = errors.Join(err, s.close())
	}()
	how := "SQLite"
	if o.postgres {
		how = "PostgreSQL"
	}
	fmt.Printf("fence: %d processes on %s, ready after %s; %d lanes, %.0f requests a second wanted, seed %d\n", len(s.mesh.Processes)-1, how, time.Since(begin).Round(100*time.Millisecond), o.lanes, o.rate, o.seed)
	err = s.all(ctx)
	return errors.Join(err, s.report())
}

// chosen reports whether a name is asked for by a list of parts of names.
func chosen(list, name string) bool {
	if list == "" {
		return true
	}
	for part := range strings.SplitSeq(list, ",") {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
