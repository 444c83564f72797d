package scale

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

var mesh *testmesh.Mesh

func TestMain(m *testing.M) {
	testmesh.Child()
	var err error
	if mesh, err = testmesh.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

// full reports whether everything is done at full size.
func full() bool { return os.Getenv("REDOUBT_SCALE") == "full" }

// sized is quick, or what it is in full.
func sized(quick, whole int) int {
	if full() {
		return whole
	}
	return quick
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// figure prints what was measured, where that is at full size: a small size says nothing.
func figure(name string, value any, unit string) {
	if full() {
		fmt.Printf("figure %s %v %s\n", name, value, unit)
	}
}

// took measures what fn takes.
func took(t *testing.T, name string, fn func()) time.Duration {
	t.Helper()
	begin := time.Now()
	fn()
	d := time.Since(begin)
	figure(name, fmt.Sprintf("%.2f", d.Seconds()), "s")
	t.Logf("%s: %v", name, d)
	return d
}

// lab is a workspace with a local target.
type lab struct {
	*client.Client
	workspace, compute string
}

func newLab(t *testing.T, id string) *lab {
	t.Helper()
	c, err := client.Dial(client.Context{Name: "scale", Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t)))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	res := workspacev1.NewResourceServiceClient(mesh.Dial(t, mesh.Admin(t)))
	sub, err := res.CreateSubscription(t.Context(), &workspacev1.CreateSubscriptionRequest{SubscriptionId: id, Region: "here"})
	must(t, err)
	group, err := res.CreateResourceGroup(t.Context(), &workspacev1.CreateResourceGroupRequest{Parent: sub.GetName(), ResourceGroupId: "group"})
	must(t, err)
	ws, err := res.CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group.GetName(), WorkspaceId: "lab"})
	must(t, err)
	target, err := c.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: ws.GetName(), ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 1})
	must(t, err)
	return &lab{Client: c, workspace: ws.GetName(), compute: target.GetName()}
}

// run runs a command over a folder to its end, and gives its log.
func (l *lab) run(t *testing.T, snapshot string, scratch int64, command ...string) (*computev1.Run, string) {
	t.Helper()
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	r, err := l.Runs().SubmitRun(t.Context(), &computev1.SubmitRunRequest{
		Parent: l.workspace, Compute: l.compute, Snapshot: snapshot, Command: command, Limits: &computev1.RunLimits{ScratchBytes: scratch},
	})
	must(t, err)
	logs, err := l.Runs().StreamLogs(t.Context(), &computev1.StreamLogsRequest{Name: r.GetName(), Follow: true})
	must(t, err)
	var text strings.Builder
	for {
		m, err := logs.Recv()
		if err != nil {
			break
		}
		text.Write(m.GetData())
	}
	r, err = l.Runs().GetRun(t.Context(), &computev1.GetRunRequest{Name: r.GetName()})
	must(t, err)
	if r.GetState() != computev1.Run_STATE_COMPLETED {
		t.Fatalf("%v: %s\n%s", r.GetState(), r.GetMessage(), text.String())
	}
	return r, text.String()
}

// memory watches the most that this process, which has all services in it, and its agents have in memory. The kernel says of each process
// what its peak was; of ours, only what is added counts.
func memory(t *testing.T, name string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	before := status("self", "VmRSS")
	services, agents := int64(0), int64(0)
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			services = max(services, status("self", "VmRSS"))
			pids, _ := filepath.Glob(filepath.Join(mesh.Dir, "compute", "runs", "*", "agent.pid"))
			for _, p := range pids {
				if text, err := os.ReadFile(p); err == nil {
					pid, _, _ := strings.Cut(string(text), " ")
					agents = max(agents, status(pid, "VmHWM"))
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
		figure(name+"-memory-services", (services-before)>>10, "MiB more, all services and this client in one process")
		if agents > 0 {
			figure(name+"-memory-agent", agents>>10, "MiB")
		}
	}
}

// status reads a line in KiB of a process.
func status(pid, line string) int64 {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), line+":")
	n, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
	return n
}
