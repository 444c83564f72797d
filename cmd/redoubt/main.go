// Command redoubt is the one binary: it runs an installation, one of its services, an agent, and the client of all of them. It owns
// what a process has once: the umask, the signals, the exit code. Everything else is in internal/cli.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/redoubt-ml/redoubt/internal/cli"
)

func main() {
	cli.Child()               // does not return in a process that sets a sandbox up, or computes password hashes
	_ = syscall.Umask(0o077)  // whatever is made is its owner's alone
	os.Exit(run(os.Args[1:])) // the one place that ends the process
}

func run(args []string) int {
	if err := cli.NoCores(); err != nil { // what lies in memory stays there: tokens, keys, data
		fmt.Fprintln(os.Stderr, "redoubt: core dumps cannot be switched off:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	go func() { // a second signal ends the process at once
		<-ctx.Done()
		stop()
	}()
	return cli.Main(ctx, args, os.Stdin, os.Stdout, os.Stderr)
}
