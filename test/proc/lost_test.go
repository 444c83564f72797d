package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

// H3, A4: an agent is cut off for so long that its run is given up as lost. compute and identity are killed while it may deliver; it comes back to
// them, ends its command in good order, and what it had is there, once. The run stays LOST, and says how it ended.
func TestLostDelivers(t *testing.T) {
	needSandbox(t)
	in := New(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	l, err := NewLab(ctx, in.Access(), "lost")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	r, err := l.Runs().SubmitRun(ctx, &computev1.SubmitRunRequest{Parent: l.Workspace, Compute: l.Compute, Snapshot: l.Snapshot, Command: []string{
		"sh", "-c", "trap 'echo bye; echo kept >/outputs/kept; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
	}})
	if err != nil {
		t.Fatal(err)
	}
	run := func(is func(r *computev1.Run) error) {
		t.Helper()
		if err := poll(ctx, func() error {
			r, err := l.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: r.GetName()})
			if err != nil {
				return err
			}
			return is(r)
		}); err != nil {
			t.Fatal(err)
		}
	}
	run(func(r *computev1.Run) error {
		if r.GetLogBytes() < int64(len("ready\n")) {
			return errors.New("the command has said nothing")
		}
		return nil
	})
	b, err := os.ReadFile(filepath.Join(in.Data, "compute", "runs", r.GetUid(), "agent.pid"))
	if err != nil {
		t.Fatal(err)
	}
	number, _, _ := strings.Cut(string(b), " ")
	pid, err := strconv.Atoi(number)
	if err != nil || pid <= 1 {
		t.Fatalf("the agent's process is %q", b)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	run(func(r *computev1.Run) error {
		if r.GetState() != computev1.Run_STATE_LOST || r.GetDeliverUntil() == nil {
			return fmt.Errorf("it is not given up: %v", r)
		}
		return nil
	})
	for _, name := range []string{"compute", "identity"} {
		for _, p := range in.Processes {
			if p.Name != name {
				continue
			}
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			back(t, in, l, p)
		}
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	run(func(r *computev1.Run) error {
		if r.GetReportTime() == nil {
			return fmt.Errorf("nothing was reported: %v", r)
		}
		if r.GetState() != computev1.Run_STATE_LOST || r.GetReportedState() != computev1.Run_STATE_CANCELED || r.GetDeliverUntil() != nil || r.GetLogBytes() != int64(len("ready\nbye\n")) {
			t.Errorf("it came back, and the run is %v", r)
		}
		return nil
	})
	list, err := l.Runs().ListOutputs(ctx, &computev1.ListOutputsRequest{Name: r.GetName()})
	if err != nil || len(list.GetOutputs()) != 1 || list.GetOutputs()[0].GetPath() != "kept" {
		t.Errorf("outputs: %v, %v", list, err)
	}
	if t.Failed() {
		for _, p := range in.Processes {
			t.Logf("%s:\n%s", p.Name, p.Output())
		}
	}
}
