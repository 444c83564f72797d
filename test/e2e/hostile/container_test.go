//go:build linux

package hostile

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// composeProject names the project whose installation in containers is attacked; without it the tests attack one of their own.
const composeProject = "REDOUBT_COMPOSE_PROJECT"

// container is the agent's, as `docker` knows it.
type container struct{ project, id string }

// run executes something in the container, as the agent's user, beside its sandbox.
func (c container) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", append([]string{"exec", c.id}, args...)...).Output()
	if err != nil {
		t.Fatalf("%q in the agent's container: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// address is that of a container of the project, in the network that it has with the agent.
func (c container) address(t *testing.T, service string) string {
	t.Helper()
	id := docker(t, "ps", "-q", "--filter", "label=com.docker.compose.project="+c.project, "--filter", "label=com.docker.compose.service="+service)
	return docker(t, "inspect", "--format", `{{(index .NetworkSettings.Networks "`+c.project+`_agents").IPAddress}}`, id)
}

// D10, H3, A4: a run in the agent's container reaches as little as one in the sandbox of a machine.
func TestContainerIsNoWeaker(t *testing.T) {
	project := os.Getenv(composeProject)
	if project == "" {
		t.Skipf("%s is not set: `make compose-hostile` attacks an installation in containers", composeProject)
	}
	c := container{project, docker(t, "ps", "-q", "--filter", "label=com.docker.compose.project="+project, "--filter", "label=com.docker.compose.service=agent")}
	l := composeLab(t)
	// Numbers of processes in the container that none in a sandbox has.
	c.run(t, "python3", "-c", "import os\nfor _ in range(1200):\n    p = os.fork()\n    if p == 0: os._exit(0)\n    os.waitpid(p, 0)")
	other := l.submit(t, nil, map[string]string{"wait.py": "import time\nprint('here', flush=True)\ntime.sleep(600)\n"}, "python3", "wait.py")
	defer l.end(t, other)
	aim := &targets{
		State: "/var/lib/agent", Out: "/tmp/free",
		Folders: map[string]string{"the agent's folder": "/var/lib/agent", "its folder for temporary files": "/tmp/free", "the view of its processes": "/mnt/proc"},
		Files: map[string]string{
			"the seal's key": "/var/lib/agent/client.secret", // what the script calls so: the agent's credential
			"the client id":  "/var/lib/agent/client.id", "the host's sign of life": "/tmp/beat-of-test",
		},
		Pids: map[string]int{"another run": 0, "another run's agent": c.sleeper(t), "a bystander": c.sleeper(t), "a victim": c.sleeper(t)},
		// Nothing of the container's listens on loopback but what the test starts; the script wants the gateway's port for a tunnel.
		Sockets: map[string]string{"a socket without a path": "@redoubt-container"}, Ports: map[string]int{"gateway": 18443},
		Hosts:    map[string][]any{"the gateway": {c.address(t, "gateway"), 8443}, "inference": {c.address(t, "inference"), 8453}},
		Endpoint: sandbox.DefaultPort, OtherRun: other.GetName()[strings.LastIndexByte(other.GetName(), '/')+1:], OtherName: other.GetName(),
		Processes: processes, DiskMiB: diskMiB, Address: memoryMiB + 2048,
	}
	listeners := "import socket, time\na = socket.socket(); a.bind(('127.0.0.1', 18443)); a.listen(9)\n" +
		"b = socket.socket(socket.AF_UNIX); b.bind('\\0redoubt-container'); b.listen(9)\ntime.sleep(180)"
	docker(t, "exec", "-d", c.id, "python3", "-c", listeners)
	c.run(t, "sh", "-c", "mkdir -p /tmp/free; echo secret >/tmp/beat-of-test; echo x >/tmp/free/x")
	eventually(t, "the other run's command", func() error {
		out := c.run(t, "sh", "-c", `for p in /proc/[0-9]*; do case "$(tr '\0' ' ' <$p/cmdline 2>/dev/null)" in *wait.py*) echo ${p#/proc/} ;; esac; done`)
		for _, f := range strings.Fields(out) {
			if pid, err := strconv.Atoi(f); err == nil && pid > aim.Pids["another run"] {
				aim.Pids["another run"] = pid
			}
		}
		if aim.Pids["another run"] == 0 {
			return fmt.Errorf("not there yet")
		}
		return nil
	})
	doc, err := json.Marshal(aim)
	if err != nil {
		t.Fatal(err)
	}
	free := c.outside(t, string(doc))
	aim.Pids["a victim"] = c.sleeper(t)
	if doc, err = json.Marshal(aim); err != nil {
		t.Fatal(err)
	}
	r := l.submit(t, &computev1.RunLimits{
		Processes: processes, ScratchBytes: diskMiB << 20, MemoryBytes: memoryMiB << 20, LogBytes: logBytes, Timeout: durationpb.New(60 * time.Second),
	}, map[string]string{"attack.py": script}, "python3", "attack.py", string(doc))
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	end, err := l.WaitRun(ctx, r.GetName(), nil)
	if err != nil || end.GetState() != computev1.Run_STATE_COMPLETED {
		var log strings.Builder
		_, _ = l.FollowLogs(ctx, r.GetName(), 0, false, &log)
		t.Fatalf("the script broke: %s, %s, %v\n%.4000s", end.GetState(), end.GetMessage(), err, log.String())
	}
	inside := download(t, l, r.GetName())
	c.compare(t, inside, free, slices.Min([]int{aim.Pids["another run"], aim.Pids["a bystander"], aim.Pids["another run's agent"]}))
	if got := c.run(t, "cat", "/tmp/beat-of-test"); got != "secret" {
		t.Errorf("a file of the container's is %q now", got)
	}
}

// composeLab is a workspace with the target whose runs the agent's container carries.
func composeLab(t *testing.T) *lab {
	t.Helper()
	password, err := config.ReadSecret(os.Getenv("REDOUBT_COMPOSE_PASSWORD_FILE"))
	if err != nil {
		t.Fatal(err)
	}
	to := client.Context{Name: "compose", Server: os.Getenv("REDOUBT_COMPOSE_SERVER"), CAFile: os.Getenv("REDOUBT_COMPOSE_CA")}
	anyone, err := client.Dial(to, redact.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = anyone.Close() }()
	s, err := anyone.SignIn(t.Context(), "admin", password)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := client.Dial(to, redact.FromString(s.GetAccessToken()))
	if err != nil {
		t.Fatal(err)
	}
	w, err := admin.Resources().CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: "subscriptions/default/resourceGroups/default", WorkspaceId: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if _, err := admin.Resources().DeleteWorkspace(ctx, &workspacev1.DeleteWorkspaceRequest{Name: w.GetName()}); err != nil {
			t.Errorf("the workspace stays: %v", err)
		}
		_ = admin.Close()
	})
	var target *computev1.Compute
	eventually(t, "a target in the new workspace", func() (err error) {
		target, err = admin.Computes().CreateCompute(t.Context(), &computev1.CreateComputeRequest{Parent: w.GetName(), ComputeId: "here", Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 2})
		return err
	})
	return &lab{Client: admin, workspace: w.GetName(), compute: target.GetName()}
}

// sleeper is a process of the agent's user in the container.
func (c container) sleeper(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(c.run(t, "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// outside runs the script in the container, but in no sandbox.
func (c container) outside(t *testing.T, doc string) *verdict {
	t.Helper()
	c.run(t, "python3", "-c", script, doc)
	path := filepath.Join(t.TempDir(), "result.json")
	if err := os.WriteFile(path, []byte(c.run(t, "cat", "/tmp/free/result.json")), 0o600); err != nil {
		t.Fatal(err)
	}
	return readVerdict(t, path)
}

// compare looks at each attack. The container forbids some of them to everybody in it; how many work beside the sandbox shows that the rest
// is the sandbox's doing.
func (c container) compare(t *testing.T, inside, free *verdict, lowest int) {
	t.Helper()
	if inside.HighestPID >= lowest {
		t.Errorf("inside there are processes up to %d, so that %d does not name the one that was meant", inside.HighestPID, lowest)
	}
	if inside.User == 0 {
		t.Error("the run is root in its namespace")
	}
	worked := 0
	for name, got := range inside.Attacks {
		t.Run(name, func(t *testing.T) {
			if got.Result != "BLOCKED" {
				t.Errorf("in a run: %s", got.Result)
			}
			if want := answers[name]; !strings.Contains(got.Why, want) {
				t.Errorf("in a run it fails by %q, wanted %q", got.Why, want)
			}
		})
		if free.Attacks[name].Result == "OK" {
			worked++
		}
	}
	for name := range answers {
		if _, tried := inside.Attacks[name]; !tried {
			t.Errorf("%s was not tried", name)
		}
	}
	for _, must := range []string{"read the seal's key", "connect to the gateway", "connect to inference", "memory map of another run's agent", "kill a process that is not the run's", "connect to the port of gateway", "connect to a socket without a path"} {
		if free.Attacks[must].Result != "OK" {
			t.Errorf("beside the sandbox %q does not work either: %s", must, free.Attacks[must].Why)
		}
	}
	for _, never := range []string{"become root", "trace a process", "the kernel's settings", "raw packets", "a device", "another root"} {
		if free.Attacks[never].Result == "OK" {
			t.Errorf("the container itself lets %q through", never)
		}
	}
	t.Logf("%d attacks in a run, all refused but those named above; %d of them work in the container beside the sandbox", len(inside.Attacks), worked)
	if len(inside.Attacks) < 80 || worked < 25 {
		t.Errorf("only %d attacks, of which only %d work beside the sandbox", len(inside.Attacks), worked)
	}
}
