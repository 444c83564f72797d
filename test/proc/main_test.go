package proc

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli"
)

// TestMain is also the program's main: started with a command instead of flags, this binary does what the program does.
func TestMain(m *testing.M) {
	cli.Child()
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		_ = syscall.Umask(0o077)
		if err := cli.NoCores(); err != nil {
			os.Exit(70)
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// seconds is how long the long tier runs: PROC_SECONDS, else 0, which leaves it out.
func long(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("PROC_SECONDS")
	if s == "" {
		t.Skip("a long one: make proc")
	}
	d, err := time.ParseDuration(s + "s")
	if err != nil {
		t.Fatalf("PROC_SECONDS: %v", err)
	}
	return d
}

func needSandbox(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
}

// D10: the walk over an installation of eight processes, while every certificate in it rotates.
func TestWalkSeveral(t *testing.T) {
	needSandbox(t)
	walkOn(t, true, long(t))
}

// D10: the same walk over an installation in one process.
func TestWalkWhole(t *testing.T) {
	needSandbox(t)
	walkOn(t, false, long(t))
}

func walkOn(t *testing.T, several bool, least time.Duration) {
	t.Helper()
	least = min(least, time.Minute)
	in := New(t, several)
	calls, certificates := Walk(t, in.Access(), "walk", least)
	t.Logf("%d calls over %s, none failed; the gateway showed %d certificates", calls, least, certificates)
	if want := int(least / LeafLife); certificates < want || calls == 0 {
		t.Errorf("%d certificates in %s of a life of %s, wanted %d; %d calls", certificates, least, LeafLife, want, calls)
	}
	in.WantNothingLeft(t)
}
