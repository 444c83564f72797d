package proc

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
)

// seed of what chance decides: PROC_SEED, else a new one.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("PROC_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PROC_SEED: %v", err)
		}
	}
	t.Logf("PROC_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// killing kills processes with SIGKILL at random moments, at least so often and at least so long, each in turn; and starts each again at
// once, some to be killed again on their way up. It returns when every service answers after the last kill.
func killing(t *testing.T, in *Installation, l *Lab, least int, long time.Duration) {
	t.Helper()
	r := seed(t)
	begin := time.Now()
	var order []*Process
	var longest time.Duration
	kills := 0
	for kills < least || time.Since(begin) < long {
		if len(order) == 0 {
			order = append(order, in.Processes...)
			r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		p := order[0]
		order = order[1:]
		time.Sleep(time.Duration(300+r.IntN(1200)) * time.Millisecond) // the moment is the point
		again := 0
		if r.IntN(4) == 0 {
			again = 1
		}
		for i := 0; i <= again; i++ {
			if i > 0 {
				time.Sleep(time.Duration(r.IntN(600)) * time.Millisecond)
			}
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			kills++
			if r.IntN(4) == 0 {
				time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond) // away for longer than a moment
			}
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
		}
		took := back(t, in, l, p)
		if took > longest {
			longest = took
		}
	}
	t.Logf("%d kills in %s; back after %s at most", kills, time.Since(begin).Round(time.Second), longest.Round(time.Millisecond))
}

// back waits until every service answers again.
func back(t *testing.T, in *Installation, l *Lab, killed *Process) time.Duration {
	t.Helper()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := poll(ctx, func() error {
		select {
		case <-killed.Ended():
			return killed.Err()
		default:
		}
		c, err := l.Access.plain(l.Token)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return l.each(ctx, c, "")
	})
	if err != nil {
		for _, p := range in.Processes {
			t.Logf("%s:\n%s", p.Name, p.Output())
		}
		t.Fatalf("%s was killed and does not come back: %v", killed.Name, err)
	}
	return time.Since(begin)
}

func killsOn(t *testing.T, in *Installation, id string, least int, long time.Duration) {
	t.Helper()
	l, err := NewLab(t.Context(), in.Access(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	w := startLoad(t, l)
	killing(t, in, l, least, long)
	w.end(t)
	if t.Failed() {
		for _, p := range in.Processes {
			t.Logf("%s:\n%s", p.Name, p.Output())
		}
	}
}

// H3, G2: each of the processes is killed in turn under load. What was acknowledged is there once, runs go on, nothing remains.
func TestKillSeveral(t *testing.T) {
	needSandbox(t)
	d := long(t)
	in := New(t, true)
	killsOn(t, in, "kills", 3*len(in.Processes), d)
	in.WantNothingLeft(t)
}

// H3, G2: the same with the one process of a small installation.
func TestKillWhole(t *testing.T) {
	needSandbox(t)
	d := long(t)
	in := New(t, false)
	killsOn(t, in, "kills", 10, d)
	in.WantNothingLeft(t)
}

// agentKilled kills a run's agent: the user's process ends with it, and the run is given up.
func agentKilled(t *testing.T, in *Installation) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := NewLab(ctx, in.Access(), "agent")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	const marker = "1000.0625" // seconds; nobody else sleeps so long
	r, err := l.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: l.Workspace, Compute: l.Compute, Snapshot: l.Snapshot, Command: []string{"sleep", marker}})
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, func() error {
		if len(marked(marker)) == 0 {
			return errors.New("the command does not run")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(in.Data, "compute", "runs", r.GetUid(), "agent.pid"))
	if err != nil {
		t.Fatal(err)
	}
	number, _, _ := strings.Cut(string(b), " ")
	pid, err := strconv.Atoi(number)
	if err != nil || pid <= 1 {
		t.Fatalf("the agent's process is %q", b)
	}
	begin := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, func() error {
		if len(marked(marker)) > 0 {
			return errors.New("the command runs on without its agent")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	gone := time.Since(begin)
	end, err := l.WaitRun(ctx, r.GetName(), nil)
	if err != nil || end.GetState() != computev1.Run_STATE_LOST || end.GetMessage() == "" || !client.Ended(end) {
		t.Fatalf("the run ended as %s: %s %v", end.GetState(), end.GetMessage(), err)
	}
	t.Logf("the command ended %s after its agent; the run was lost after %s: %s", gone.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond), end.GetMessage())
	if gone > 2*time.Second {
		t.Errorf("the command went on for %s", gone)
	}
}
