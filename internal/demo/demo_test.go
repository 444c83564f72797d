package demo

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/authn/password/apart"
)

// TestMain is also the sandbox's stage, the local target's agent, and what computes password hashes: the demo starts this binary again as each.
func TestMain(m *testing.M) {
	sandbox.MaybeStage()
	apart.Maybe()
	if len(os.Args) == 2 && os.Args[1] == "agent" {
		os.Exit(agent.Main(context.Background(), os.NewFile(3, "bootstrap"), os.Stderr))
	}
	os.Exit(m.Run())
}

// A1 A3 A4 B1 D1 G2 H1 H2 H3 H5: the whole walk, and nothing left of it.
func TestWalk(t *testing.T) {
	t.Parallel()
	if _, _, err := sandbox.Interpreter(t.Context(), "python3"); err != nil {
		t.Skipf("no python3 to train with: %v", err)
	}
	if err := sandbox.Check(t.Context()); err != nil {
		t.Skipf("this machine cannot isolate a run: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "demo")
	var out bytes.Buffer
	if err := Run(t.Context(), Config{Data: dir, Out: &out}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is still there: %v", err)
	}
	for _, want := range []string{"metric  epoch  40", "compute/runs/submit is missing", "TOKEN_REVOKED", "no process and no port is left", "the whole walk"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not say %q:\n%s", want, out.String())
		}
	}
}

// The same walk in an installation that was there before and goes on, which is left as it was found.
func TestWalkElsewhere(t *testing.T) {
	t.Parallel()
	if err := canCarry(t.Context()); err != nil {
		t.Skip(err)
	}
	in, err := node.Up(t.Context(), node.UpConfig{Data: filepath.Join(t.TempDir(), "state"), Listen: "127.0.0.1:0", Options: node.Options{LogWriter: io.Discard}})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Stop()
	cfg := Config{Server: in.URL, CAPEM: in.CA, User: "admin", Password: in.FirstPassword, Carry: true, Target: "elsewhere", Workspace: "visit"}
	cfg.Data = filepath.Join(t.TempDir(), "demo")
	var out bytes.Buffer
	cfg.Out = &out
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"workspaces/visit with its vault", "the whole walk", "TOKEN_REVOKED", "run train-1: has ended", "remove what was made"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not say %q:\n%s", want, out.String())
		}
	}

	// A walk that breaks off takes its things along too, and finds nothing of the first in its way.
	ctx, cancel := context.WithCancel(t.Context())
	w := &walk{cfg: cfg}
	defer cancel()
	for _, do := range []func(context.Context) (string, error){w.find, w.signIn, w.createWorkspace, w.newRobot} {
		if _, err := do(ctx); err != nil {
			t.Fatal(err)
		}
	}
	w.giveUp()
	if _, err := w.admin.Resources().GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: w.workspace}); status.Code(err) != codes.NotFound {
		t.Errorf("the workspace: %v", err)
	}
	if l, err := w.admin.Directory().ListServicePrincipals(ctx, &identityv1.ListServicePrincipalsRequest{}); err != nil || len(l.GetServicePrincipals()) != 0 {
		t.Errorf("left are %v: %v", l, err)
	}
	_ = w.admin.Close()
}

// Without python3 nothing is started, and it says so.
func TestNoPython(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir := filepath.Join(t.TempDir(), "demo")
	err := Run(t.Context(), Config{Data: dir, Out: &bytes.Buffer{}})
	if err == nil || !strings.Contains(err.Error(), "no python3") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error("a folder was made")
	}
}

// A model that is wrong is seen to be.
func TestHeldOutCanFail(t *testing.T) {
	n := 30
	m := model{Weights: make([]float64, n), Mean: make([]float64, n), Std: make([]float64, n), HeldOut: []int{0, 1, 2, 19, 20}}
	for i := range n {
		m.Std[i] = 1
	}
	if a, rows, err := heldOut(m); err != nil || rows != 5 || a > 0.5 {
		t.Errorf("a model that always says benign: %v %v %v", a, rows, err)
	}
	m.HeldOut = []int{100000}
	if _, _, err := heldOut(m); err == nil {
		t.Error("a row that is not there was taken")
	}
}
