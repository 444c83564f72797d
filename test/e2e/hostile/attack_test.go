//go:build linux

package hostile

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
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
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
)

//go:embed testdata/attack.py
var script string

const (
	processes = 96
	diskMiB   = 48
	memoryMiB = 256
	logBytes  = 1 << 20
)

// targets are where things are, for the script.
type targets struct {
	State     string            `json:"state"`
	Folders   map[string]string `json:"folders"`
	Files     map[string]string `json:"files"`
	Pids      map[string]int    `json:"pids"`
	Sockets   map[string]string `json:"sockets"`
	Ports     map[string]int    `json:"ports"`
	Hosts     map[string][]any  `json:"hosts,omitempty"`
	Endpoint  int               `json:"endpoint"`
	OtherRun  string            `json:"other_run"`
	OtherName string            `json:"other_run_name"`
	Processes int               `json:"processes"`
	DiskMiB   int               `json:"disk_mib"`
	Address   int               `json:"address_mib"`
	Out       string            `json:"out"`
}

// verdict is what the script says.
type verdict struct {
	Attacks map[string]struct {
		Result, Why string
	}
	Outputs     []string
	Environment map[string]string
	HighestPID  int `json:"highest_pid"`
	User        int
}

// A4, H3: a run that tries everything reaches nothing, and the installation goes on answering.
func TestHostileRun(t *testing.T) {
	l := newLab(t, "attacked")
	other := l.submit(t, nil, map[string]string{"wait.py": "import time\nprint('here', flush=True)\ntime.sleep(600)\n"}, "python3", "wait.py")
	defer l.end(t, other)
	aim := surroundings(t, other)
	free := outside(t, aim)
	aim.Pids["a victim"] = sleeper(t)
	doc, err := json.Marshal(aim)
	if err != nil {
		t.Fatal(err)
	}
	stop := answering(t)
	r := l.submit(t, &computev1.RunLimits{
		Processes: processes, ScratchBytes: diskMiB << 20, MemoryBytes: memoryMiB << 20, LogBytes: logBytes, Timeout: durationpb.New(40 * time.Second),
	}, map[string]string{"attack.py": script}, "python3", "attack.py", string(doc))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	end, err := l.WaitRun(ctx, r.GetName(), nil)
	stop()
	var log strings.Builder
	if err != nil {
		_, _ = l.FollowLogs(t.Context(), r.GetName(), 0, false, &log)
		agent, _ := os.ReadFile(filepath.Join(mesh.Dir, "compute", "runs", r.GetUid(), "agent.log"))
		t.Fatalf("%v\n%.8000s\n%s", err, log.String(), agent)
	}
	if _, err := l.FollowLogs(ctx, r.GetName(), 0, false, &log); err != nil {
		t.Fatal(err)
	}
	if end.GetState() != computev1.Run_STATE_COMPLETED {
		t.Fatalf("the script broke: %s, %s\n%.4000s", end.GetState(), end.GetMessage(), log.String())
	}
	inside := download(t, l, r.GetName())
	compare(t, inside, free, min(aim.Pids["the installation"], aim.Pids["another run's agent"], aim.Pids["a bystander"]))
	t.Run("environment", func(t *testing.T) { environment(t, inside.Environment) })
	t.Run("log", func(t *testing.T) {
		if log.Len() != logBytes || end.GetLogBytes() != logBytes {
			t.Errorf("100 MiB without a newline left %d bytes of log, the run says %d", log.Len(), end.GetLogBytes())
		}
	})
	t.Run("metrics", func(t *testing.T) {
		for run, want := range map[string]string{r.GetName(): "still-alive", other.GetName(): ""} {
			d, err := l.Metrics().GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: run})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range d.GetLatest() {
				got = append(got, m.GetKey())
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s has the metrics %q, wanted %q", run, got, want)
			}
		}
	})
	if now, err := l.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: other.GetName()}); err != nil || now.GetState() != computev1.Run_STATE_RUNNING {
		t.Errorf("the other run is %s: %v", now.GetState(), err)
	}
}

// surroundings finds what there is to attack: everything real, and two processes of this test's own.
func surroundings(t *testing.T, other *computev1.Run) *targets {
	t.Helper()
	folder := filepath.Join(mesh.Dir, "compute", "runs", other.GetUid())
	agent := 0
	eventually(t, "the other run's agent", func() error {
		b, err := os.ReadFile(filepath.Join(folder, "agent.pid"))
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(b), &agent)
		return err
	})
	command := 0
	eventually(t, "the other run's command", func() error {
		all := descendants(agent)
		for _, pid := range all {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(b), "wait.py") {
				command = pid
				return nil
			}
		}
		return fmt.Errorf("not among %v", all)
	})
	own := settings.Open(filepath.Join(t.TempDir(), "redoubt"))
	if err := own.Write(&settings.File{CurrentContext: "here", Contexts: []settings.Context{{Name: "here", Server: mesh.URL, CA: string(mesh.CA), User: "admin"}}}); err != nil {
		t.Fatal(err)
	}
	if err := own.SetToken(t.Context(), "here", settings.Token{Server: mesh.URL, Value: mesh.Admin(t), Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	a := &targets{
		State:   mesh.Dir,
		Folders: map[string]string{"the state folder": mesh.Dir, "the folder of a service": filepath.Join(mesh.Dir, "identity"), "an agent's folder": folder, "the folder of settings": filepath.Dir(own.Path())},
		Files: map[string]string{
			"the seal's key": filepath.Join(mesh.Dir, "keyvault", "seal.key"), "a service's private key": filepath.Join(mesh.Dir, "identity", "svid", "key.pem"),
			"a key of etcd's clients": filepath.Join(mesh.Dir, "compute", "etcd", "client.key"), "an agent's pid file": filepath.Join(folder, "agent.pid"),
			"the settings of the command line": own.Path(), "the tokens of the command line": filepath.Join(filepath.Dir(own.Path()), settings.TokenFile),
		},
		Pids:    map[string]int{"the installation": os.Getpid(), "another run's agent": agent, "another run": command, "a bystander": sleeper(t), "a victim": sleeper(t)},
		Sockets: make(map[string]string), Ports: make(map[string]int), Endpoint: sandbox.DefaultPort,
		OtherRun: other.GetName()[strings.LastIndexByte(other.GetName(), '/')+1:], OtherName: other.GetName(),
		Processes: processes, DiskMiB: diskMiB, Address: memoryMiB + 2048,
	}
	services := 0
	err := filepath.WalkDir(mesh.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(mesh.Dir, path)
		switch {
		case d.Type()&fs.ModeSocket != 0:
			a.Sockets["the socket "+rel] = path
			services++
		case d.Name() == "db.sqlite":
			a.Files["the database "+rel] = path
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if len(a.Files) < 8 || services < 1 {
		t.Errorf("the state folder has %d sockets, and the attacked files are only %v: has its layout changed?", services, a.Files)
	}
	if _, err := os.Stat("/var/run/docker.sock"); err == nil {
		a.Sockets["docker"] = "/var/run/docker.sock"
	}
	unnamed, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", "@redoubt-hostile-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unnamed.Close() })
	a.Sockets["a socket without a path"] = "@redoubt-hostile-" + strconv.Itoa(os.Getpid())
	for _, p := range ports {
		_, port, err := net.SplitHostPort(p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if a.Ports[p.Name], err = strconv.Atoi(port); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// sleeper is a process of this user that does nothing.
func sleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// outside runs the script as a plain child of this process.
func outside(t *testing.T, aim *targets) *verdict {
	t.Helper()
	python, _, err := sandbox.Interpreter(t.Context(), "python3")
	if err != nil {
		t.Fatal(err)
	}
	mine := *aim
	mine.Out = t.TempDir()
	doc, err := json.Marshal(mine)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = left.Close() }()
	cmd := exec.CommandContext(t.Context(), python, "-c", script, string(doc))
	cmd.ExtraFiles = []*os.File{left}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MLFLOW_") && !strings.HasPrefix(v, "REDOUBT_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("without the sandbox: %v\n%s", err, out)
	}
	return readVerdict(t, filepath.Join(mine.Out, "result.json"))
}

func readVerdict(t *testing.T, path string) *verdict {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := &verdict{}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// download takes the outputs, which have to be the plain ones and nothing that the script had made to mislead.
func download(t *testing.T, l *lab, run string) *verdict {
	t.Helper()
	dir := t.TempDir()
	if err := l.DownloadOutputs(t.Context(), run, dir, nil, nil); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			got = append(got, rel)
			if !d.Type().IsRegular() {
				t.Errorf("%s is no plain file", rel)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	v := readVerdict(t, filepath.Join(dir, "result.json"))
	t.Run("outputs", func(t *testing.T) {
		// A locked file is the run's own, and the agent may open it where it is root or the same user.
		got = slices.DeleteFunc(slices.Clone(got), func(name string) bool { return name == "locked" })
		if want := []string{"plain", "result.json"}; !slices.Equal(got, want) {
			t.Errorf("stored are %q, wanted %q", got, want)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "plain")); err != nil || string(b) != "hostile" {
			t.Errorf("the plain file: %q %v", b, err)
		}
		if len(v.Outputs) < 15 {
			t.Errorf("the script could make only %q", v.Outputs)
		}
	})
	return v
}

// answers are what the run's endpoint says, where it matters which refusal it is.
var answers = map[string]string{
	"endpoint: another run's id": "HTTP 403", "endpoint: two ids": "HTTP 403", "endpoint: no id": "HTTP 400", "endpoint: another run's name as an id": "HTTP 403",
	"endpoint: another host": "HTTP 403", "endpoint: a body too large": "HTTP 413",
	"endpoint: a proxy's request": "403", "endpoint: a path above": "HTTP 4", "endpoint: files": "HTTP 404", "endpoint: another method of MLflow": "HTTP 404",
	"endpoint: deep JSON": "HTTP 400", "endpoint: a key with a zero byte": "HTTP 400", "endpoint: a key too long": "HTTP 400", "endpoint: a value that is no number": "HTTP 400",
	"more processes than allowed": "Resource temporarily unavailable", "more disk than allowed": "full", "more address space than allowed": "Cannot allocate memory",
	"more open files than allowed": "Too many open files", "a connection to the network": "no route", "a route to the network": "no route",
}

// excused says why an attack may fail without a sandbox too, or "".
func excused(attack string) string {
	root := os.Geteuid() == 0
	switch {
	case strings.HasPrefix(attack, "endpoint: "):
		return "there is no endpoint outside"
	case strings.HasPrefix(attack, "read a file of the state by the root of another run"):
		return "that is the root of a sandbox"
	case strings.Contains(attack, "process 1"):
		return "it may be someone else's, even for root"
	case strings.Contains(attack, "route") || attack == "a connection to the network":
		return "this machine may have no network"
	case slices.Contains([]string{"the kernel's settings", "the kernel's log", "a device", "control groups", "more open files than allowed", "higher priority"}, attack):
		return "containers forbid it"
	case attack == "mount" || attack == "namespaces of one's own" || attack == "more processes than allowed":
		if !root {
			return "some machines forbid it to users"
		}
	case strings.HasPrefix(attack, "memory") || attack == "trace a process" || strings.HasPrefix(attack, "read another process's memory"):
		if b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(b)) != "0" || !root {
			return "some machines forbid tracing"
		}
	case !root && (strings.Contains(attack, "agent") || strings.Contains(attack, "another run") || attack == "connect to docker" ||
		slices.Contains([]string{"become root", "another root", "raw packets", "the machine's passwords"}, attack)):
		return "only root can"
	}
	return ""
}

// compare looks at each attack.
func compare(t *testing.T, inside, free *verdict, lowest int) {
	t.Helper()
	if inside.HighestPID >= lowest {
		t.Errorf("inside there are processes up to %d, so that %d does not name the one that was meant", inside.HighestPID, lowest)
	}
	if inside.User == 0 {
		t.Error("the run is root in its namespace")
	}
	worked, let := 0, 0
	for name, got := range inside.Attacks {
		t.Run(name, func(t *testing.T) {
			if got.Result != "BLOCKED" {
				let++
				t.Errorf("in a run: %s", got.Result)
			}
			if want := answers[name]; !strings.Contains(got.Why, want) {
				t.Errorf("in a run it fails by %q, wanted %q", got.Why, want)
			}
			without := free.Attacks[name]
			if without.Result == "OK" {
				worked++
			} else if why := excused(name); why == "" {
				t.Errorf("without the sandbox it does not work either: %s", without.Why)
			}
		})
	}
	for name := range free.Attacks {
		if _, tried := inside.Attacks[name]; !tried {
			t.Errorf("%s was not tried in the run", name)
		}
	}
	for name := range answers {
		if _, tried := inside.Attacks[name]; !tried {
			t.Errorf("%s was not tried", name)
		}
	}
	t.Logf("%d attacks, of which %d work without the sandbox", len(inside.Attacks), worked)
	fmt.Printf("attack: %s: tried %d, accepted %d\n", t.Name(), len(inside.Attacks), let)
	if len(inside.Attacks) < 100 || worked < 50 {
		t.Errorf("only %d attacks, of which only %d work without the sandbox", len(inside.Attacks), worked)
	}
}

// environment holds a run's variables to those that are meant for it.
func environment(t *testing.T, got map[string]string) {
	t.Helper()
	known := []string{"PATH", "HOME", "TMPDIR", "USER", "LANG", "LC_CTYPE", "PYTHONUNBUFFERED", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "REDOUBT_RUN", "REDOUBT_OUTPUTS"}
	if len(got) < 9 {
		t.Errorf("the script saw only %v", got)
	}
	for name, value := range got {
		if !slices.Contains(known, name) {
			t.Errorf("a run gets %s", name)
		}
		for _, secret := range []string{mesh.Admin(t), mesh.Password(), mesh.Dir, "rdt_", "eyJ"} {
			if strings.Contains(value, secret) {
				t.Errorf("%s holds what is not for a run", name)
			}
		}
	}
}

// descendants of a process, itself not among them.
func descendants(pid int) []int {
	var out []int
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, thread := range threads {
		b, err := os.ReadFile(thread)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(append(out, n), descendants(n)...)
			}
		}
	}
	return out
}

// H3: a run that takes memory until there is none ends itself only.
func TestMemoryHog(t *testing.T) {
	l := newLab(t, "hog")
	r := l.submit(t, &computev1.RunLimits{MemoryBytes: 128 << 20, Timeout: durationpb.New(60 * time.Second)},
		map[string]string{"hog.py": "import time\nheld = []\nwhile len(held) < 900:\n    held.append(b'x' * (1 << 20))\ntime.sleep(30)\n"}, "python3", "hog.py")
	ctx, cancel := context.WithTimeout(t.Context(), 70*time.Second)
	defer cancel()
	end, err := l.WaitRun(ctx, r.GetName(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if end.GetState() != computev1.Run_STATE_FAILED || end.GetReason() != "LIMIT_EXCEEDED" {
		t.Errorf("ended as %s: %s %s", end.GetState(), end.GetReason(), end.GetMessage())
	}
}
