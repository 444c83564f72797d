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

// options of a run of the suite.
type options struct {
	command.Options
	cases string
	s3    string
}

func main() {
	var o options
	o.Flags(20)
	flag.StringVar(&o.cases, "cases", "", "only cases whose name holds one of these, with commas between")
	flag.StringVar(&o.s3, "s3", "", "the program of an S3 server, versitygw: blobs in a bucket, and with -postgres two instances of each service that may have them")
	o.Main("fault", func(ctx context.Context) error { return run(ctx, o) })
}

func run(ctx context.Context, o options) (err error) {
	begin := time.Now()
	s, err := newSuite(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(o.Logs(err), s.close()) }()
	fmt.Printf("fault: %d processes on %s, ready after %s; seed %d\n", len(s.mesh.Processes), o.Engine(), time.Since(begin).Round(100*time.Millisecond), o.Seed)
	if err := s.rounds(ctx); err != nil {
		return errors.Join(err, s.report())
	}
	return s.report()
}
