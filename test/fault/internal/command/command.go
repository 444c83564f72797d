//go:build linux

// Package command is what the commands have in common that hurt an installation of many processes: their flags, what they need of the
// machine, how they are stopped, how they end, and where they leave the logs of the processes.
//
// It owns no process and no file but the folder of Keep. Trust boundary: none, it is for tests. Invariants: a run has a seed, which is printed
// by who uses it; a machine that lacks something skips the run, and says what. Failure: a run that fails ends the program with 1.
package command

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

// Options of a run.
type Options struct {
	// Binary is the program, built with -tags redoubt_fault_clock.
	Binary string
	// Seconds is how long; 0 is by rounds.
	Seconds int
	// Rounds are how many, where Seconds says nothing.
	Rounds   int
	Seed     uint64
	Postgres bool
	// First ends the run at the first violation.
	First bool
	// Keep is a folder for the logs of all processes when something was found; empty keeps none.
	Keep string
}

// Flags are those of every command; rounds is the default of -rounds.
func (o *Options) Flags(rounds int) {
	flag.StringVar(&o.Binary, "binary", "", "the program, built with -tags redoubt_fault_clock")
	flag.IntVar(&o.Seconds, "seconds", 0, "how long, everything at least once; 0 is until there were so many rounds")
	flag.IntVar(&o.Rounds, "rounds", rounds, "rounds, where seconds says nothing: of each case, or without a fault")
	flag.Uint64Var(&o.Seed, "seed", 0, "of the order; 0 is a new one")
	flag.BoolVar(&o.Postgres, "postgres", false, "stores in PostgreSQL")
	flag.BoolVar(&o.First, "first", false, "end at the first violation")
	flag.StringVar(&o.Keep, "keep", "", "a folder to copy the logs of all processes to when something was found")
}

// Main parses the flags and runs, under a name for what is printed. It returns when that went well, or the machine lacks something.
func (o *Options) Main(name string, run func(ctx context.Context) error) {
	flag.Parse()
	if why := o.missing(); why != "" {
		fmt.Printf("%s: skipped: %s\n", name, why)
		return
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := o.there()
	if err == nil {
		err = run(ctx)
	}
	if err != nil {
		fmt.Printf("%s: FAILED: %v\n", name, err)
		os.Exit(1) //nolint:gocritic // nothing is left that stop would do
	}
}

// missing says what this machine lacks, or "".
func (o *Options) missing() string {
	why := netns.Check()
	if why == "" && o.Postgres {
		why = mesh.CheckPostgres()
	}
	return why
}

// there finds the program.
func (o *Options) there() (err error) {
	if o.Binary, err = filepath.Abs(o.Binary); err == nil {
		_, err = os.Stat(o.Binary)
	}
	return err
}

// Engine is where the stores are, for people.
func (o *Options) Engine() string {
	if o.Postgres {
		return "PostgreSQL"
	}
	return "SQLite"
}

// Logs keeps those of a run that has failed with err, which comes back. The processes still have to be there.
func (o *Options) Logs(err error) error {
	if err == nil || o.Keep == "" {
		return err
	}
	return errors.Join(err, os.CopyFS(filepath.Join(o.Keep, fmt.Sprintf("seed-%d", o.Seed)), os.DirFS(filepath.Join(netns.Root, "logs"))))
}

// Chosen reports whether a name is asked for by a list of parts of names, with commas between. An empty list asks for all.
func Chosen(list, name string) bool {
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
