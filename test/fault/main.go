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

// options of a run of the suite.
type options struct {
	binary   string
	seconds  int
	rounds   int
	seed     uint64
	cases    string
	postgres bool
	s3       string
	first    bool
	keep     string
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "", "the program, built with -tags redoubt_fault_clock")
	flag.IntVar(&o.seconds, "seconds", 0, "how long, each case at least once; 0 is until every case has had its rounds")
	flag.IntVar(&o.rounds, "rounds", 20, "rounds of each case, where seconds says nothing")
	flag.Uint64Var(&o.seed, "seed", 0, "the order of rounds; 0 is a new one")
	flag.StringVar(&o.cases, "cases", "", "only cases whose name holds one of these, with commas between")
	flag.BoolVar(&o.postgres, "postgres", false, "stores in PostgreSQL")
	flag.StringVar(&o.s3, "s3", "", "the program of an S3 server, versitygw: blobs in a bucket, and with -postgres two instances of each service that may have them")
	flag.BoolVar(&o.first, "first", false, "end at the first violation")
	flag.StringVar(&o.keep, "keep", "", "a folder to copy the logs of all processes to when something was found")
	flag.Parse()
	if why := missing(o); why != "" {
		fmt.Println("fault: skipped:", why)
		return
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Println("fault: FAILED:", err)
		os.Exit(1) //nolint:gocritic // nothing is left that stop would do
	}
}

// missing says what this machine lacks, or "".
func missing(o options) string {
	if why := netns.Check(); why != "" {
		return why
	}
	if o.postgres {
		return mesh.CheckPostgres()
	}
	return ""
}

func run(ctx context.Context, o options) (err error) {
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if _, err := os.Stat(o.binary); err != nil {
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
	fmt.Printf("fault: %d processes on %s, ready after %s; seed %d\n", len(s.mesh.Processes), how, time.Since(begin).Round(100*time.Millisecond), o.seed)
	if err := s.rounds(ctx); err != nil {
		return errors.Join(err, s.report())
	}
	return s.report()
}

// chosen reports whether a case is asked for.
func (o options) chosen(name string) bool {
	if o.cases == "" {
		return true
	}
	for part := range strings.SplitSeq(o.cases, ",") {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
