// Package hostile runs what a tenant of bad will might run, on a whole installation with the real agent and sandbox, and looks at
// the installation's ports as someone on its machine would (A4, H3, D10; goals 29 and 33).
//
// It owns an installation on a block of ports that it chose, so that every open port has a name. Each attack is tried twice: in a
// run, where it has to fail, and as a plain child process of the same user, where it has to work unless this machine forbids
// it to everyone: an attack that works nowhere would show nothing.
//
// Needs python3 and a machine that can isolate a run; what needs them is skipped elsewhere, by name.
package hostile

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

var (
	mesh *testmesh.Mesh
	// ports are what the installation says it listens on.
	ports []node.Port
)

func TestMain(m *testing.M) {
	testmesh.Child()
	if os.Getenv(composeProject) != "" {
		os.Exit(m.Run()) // the installation that is attacked runs in containers
	}
	if err := start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

func start() (err error) {
	if mesh, err = testmesh.StartOnPorts(); err == nil {
		ports, err = node.Ports(strings.TrimPrefix(mesh.URL, "https://"))
	}
	return err
}

// lab is a workspace with a local target.
type lab struct {
	*client.Client
	workspace, compute string
}

func newLab(t *testing.T, id string) *lab {
	t.Helper()
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	if _, _, err := sandbox.Interpreter(t.Context(), "python3"); err != nil {
		t.Skipf("there is no Python for runs: %v", err)
	}
	c, err := client.Dial(client.Context{Name: id, Server: mesh.URL, CAPEM: mesh.CA}, redact.FromString(mesh.Admin(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ws, err := c.Resources().CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: id})
	if err != nil {
		t.Fatal(err)
	}
	var target *computev1.Compute
	eventually(t, "a target in the new workspace", func() (err error) { // the workspace reaches compute within milliseconds
		target, err = c.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: ws.GetName(), ComputeId: "here", Kind: computev1.Compute_KIND_LOCAL, MaxRuns: 4})
		return err
	})
	return &lab{c, ws.GetName(), target.GetName()}
}

// submit uploads the files and has one of them run.
func (l *lab) submit(t *testing.T, limits *computev1.RunLimits, files map[string]string, command ...string) *computev1.Run {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := l.UploadSnapshot(t.Context(), l.workspace, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Runs().SubmitRun(t.Context(), &computev1.SubmitRunRequest{Parent: l.workspace, Compute: l.compute, Snapshot: s.GetName(), Command: command, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// end cancels a run and waits until it has ended: its agent would outlive the test.
func (l *lab) end(t *testing.T, r *computev1.Run) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if _, err := l.Runs().CancelRun(ctx, &computev1.CancelRunRequest{Name: r.GetName()}); err != nil {
		t.Error(err)
	}
	if _, err := l.WaitRun(ctx, r.GetName(), nil); err != nil {
		t.Error(err)
	}
}

// eventually repeats what becomes true soon.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// answering calls the installation again and again until the test ends, and fails the test when it does not answer at once.
func answering(t *testing.T) (stop func()) {
	t.Helper()
	who := identityv1.NewSignInServiceClient(mesh.Dial(t, mesh.Admin(t)))
	runs := computev1.NewComputeServiceClient(mesh.Dial(t, mesh.Admin(t)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		calls, slowest := 0, time.Duration(0)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				t.Logf("%d calls were answered meanwhile, the slowest in %s", calls, slowest.Round(time.Millisecond))
				if calls == 0 {
					t.Error("nothing was asked meanwhile")
				}
				return
			case <-tick.C:
			}
			began := time.Now()
			call, end := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			_, err := who.WhoAmI(call, &identityv1.WhoAmIRequest{})
			if err == nil {
				_, err = runs.ListComputes(call, &computev1.ListComputesRequest{Parent: "subscriptions/default/resourceGroups/default/workspaces/attacked"})
			}
			end()
			if err != nil {
				t.Errorf("the installation does not answer: %v", err)
			}
			calls, slowest = calls+1, max(slowest, time.Since(began))
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
