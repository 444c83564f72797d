//go:build linux

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestExit(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		script string
		code   int
		signal syscall.Signal
		reason sandbox.Reason
	}{
		{"success", "true", 0, 0, sandbox.Exited},
		{"failure", "exit 3", 3, 0, sandbox.Exited},
		{"a signal of its own", "kill -TERM $$", 143, syscall.SIGTERM, sandbox.Signaled},
		{"as killed", "kill -KILL $$", 137, syscall.SIGKILL, sandbox.Signaled},
		{"children left behind", "sleep 1000 & sleep 1000 >/dev/null 2>&1 & exit 4", 4, 0, sandbox.Exited},
		{"orphans that end first", "(sh -c 'exit 9' &) ; sleep 0.05; exit 5", 5, 0, sandbox.Exited},
		{"process 1 cannot be ended from below", "for s in KILL TERM INT QUIT HUP ABRT SEGV BUS FPE ILL TRAP USR1 PIPE STOP TSTP CONT; do kill -$s 1; done 2>/dev/null; exit 6", 6, 0, sandbox.Exited},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			exit, out := run(t, shell(c.script))
			if exit.Code != c.code || exit.Signal != c.signal || exit.Reason != c.reason {
				t.Errorf("ended with %+v, want code %d, signal %d, %s; it wrote %q", exit, c.code, c.signal, c.reason, out)
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	cases := []struct {
		name   string
		config sandbox.Config
		code   codes.Code
		reason faultv1.Reason
		says   string
	}{
		{"no command", sandbox.Config{}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "needs a command"},
		{"a zero byte", sandbox.Config{Command: []string{"a\x00b"}}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "zero byte"},
		{"environment without a name", sandbox.Config{Command: []string{"true"}, Env: []string{"=x"}}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "NAME=value"},
		{"limit below zero", sandbox.Config{Command: []string{"true"}, Limits: sandbox.Limits{DiskBytes: -1}}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "below zero"},
		{"missing command", command("no-such-program"), codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "no-such-program: there is no such command"},
		{"missing path", command("./train.sh"), codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "no such command"},
		{"a folder", command("/usr/bin"), codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "it is a folder"},
		{"not executable", command("/etc/passwd"), codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "not executable"},
		{"not a program", with(command("./x"), func(w *os.Root) error { return w.WriteFile("x", []byte("\x01\x02"), 0o700) }), codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "exec format error"},
		{"its interpreter is missing", with(command("./x"), func(w *os.Root) error { return w.WriteFile("x", []byte("#!/no/such\n"), 0o700) }), codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "no such file"},
		{"no PATH", sandbox.Config{Command: []string{"sh"}}, codes.FailedPrecondition, faultv1.Reason_RUN_COMMAND_MISSING, "no such command"},
		{"populate fails", with(command("true"), func(*os.Root) error { return broken }), codes.Internal, faultv1.Reason_INTERNAL_FAULT, "broken"},
		{"populate leaves", with(command("true"), func(w *os.Root) error { return w.WriteFile("../x", nil, 0o600) }), codes.Internal, faultv1.Reason_INTERNAL_FAULT, "escapes"},
		{"the tree does not fit", with(command("true"), func(w *os.Root) error { return w.WriteFile("x", make([]byte, 3<<20), 0o600) }), codes.ResourceExhausted, faultv1.Reason_LIMIT_EXCEEDED, "2097152 bytes"},
		{"a platform file in a folder", files(map[string][]byte{"a/b": nil}), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "without folders"},
		{"a platform file outside", files(map[string][]byte{"..": nil}), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "without folders"},
		{"too much of the platform's", files(map[string][]byte{"a": make([]byte, 1<<20), "b": {1}}), codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, "at most 1048576 bytes"},
		{"shown path covers ours", shows("/"), codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "would cover"},
		{"shown path is closed", shows("/proc/self"), codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED, "stays closed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			need(t)
			p, err := sandbox.Start(t.Context(), c.config)
			if err == nil {
				p.Close()
				t.Fatal("it started")
			}
			if fault.Code(err) != c.code || fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v %v: %v; want %v %v that says %q", fault.Code(err), fault.ReasonOf(err), err, c.code, c.reason, c.says)
			}
		})
	}
}

func command(args ...string) sandbox.Config {
	return sandbox.Config{Command: args, Env: sandbox.BaseEnv(), Limits: sandbox.Limits{DiskBytes: 2 << 20}}
}

func with(c sandbox.Config, populate func(*os.Root) error) sandbox.Config {
	c.Populate = populate
	return c
}

func files(list map[string][]byte) sandbox.Config {
	c := command("true")
	c.Files = list
	return c
}

// The platform's files are there to be read, and whoever runs cannot change them.
func TestPlatformFiles(t *testing.T) {
	t.Parallel()
	need(t)
	c := shell(`cat /redoubt/a && ls /redoubt; (echo x >/redoubt/a) 2>/dev/null || echo closed; (echo x >/redoubt/b) 2>/dev/null || echo closed
		(rm -f /redoubt/a; mv /redoubt/a /tmp; mv /redoubt /tmp; chmod 777 /redoubt /redoubt/a) 2>/dev/null; cat /redoubt/a`)
	c.Files = map[string][]byte{"a": []byte("of the platform\n")}
	exit, out := run(t, c)
	if exit.Code != 0 || out != "of the platform\na\nclosed\nclosed\nof the platform\n" {
		t.Errorf("%+v: %q", exit, out)
	}
}

func shows(path string) sandbox.Config {
	c := command("true")
	c.ReadOnlyPaths = []string{path}
	return c
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	need(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := sandbox.Start(ctx, with(command("true"), func(*os.Root) error { cancel(); <-ctx.Done(); return nil }))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// Once it runs, the context has no say.
	ctx, cancel = context.WithCancel(t.Context())
	p, err := sandbox.Start(ctx, shell("read x </proc/sys/kernel/ostype; exec sleep 0.05"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	cancel()
	if exit, err := p.Wait(t.Context()); err != nil || exit.Reason != sandbox.Exited {
		t.Errorf("%+v, %v", exit, err)
	}
}

// TestInside looks at what a run is given.
func TestInside(t *testing.T) {
	t.Parallel()
	config := helperConfig(t, "inside")
	config.Env = append(config.Env, "RAW=\xff\xfe")
	config.Populate = func(work *os.Root) error {
		if err := work.Mkdir("data", 0o700); err != nil {
			return err
		}
		return errors.Join(work.WriteFile("data/x", []byte("x"), 0o600), work.Symlink("data/x", "link"))
	}
	exit, out := run(t, config)
	if exit.Code != 0 {
		t.Errorf("%+v: %s", exit, out)
	}
	want := "env " + strings.Join(config.Env, " ") + "\n"
	if !strings.Contains(out, want) {
		t.Errorf("it was given\n%swant\n%s", out, want)
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	// Two runs at once, on the same port: each reaches its own agent.
	for _, name := range []string{"one", "two"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := helperConfig(t, "get", "http://"+sandbox.Address(8123)+"/")
			config.Port = 8123
			var out locked
			config.Stdout, config.Stderr = &out, &out
			p := start(t, config)
			server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "this is "+name)
			})}
			served := make(chan error, 1)
			go func() { served <- server.Serve(p.Listener()) }()
			exit, err := p.Wait(t.Context())
			if err != nil || exit.Code != 0 || out.String() != "this is "+name {
				t.Errorf("%+v, %v: %q", exit, err, out.String())
			}
			// Out here there is no such listener.
			if conn, err := net.DialTimeout("tcp", sandbox.Address(8123), time.Second); err == nil {
				conn.Close()
				t.Error("the endpoint is reachable from outside")
			}
			_ = server.Close()
			<-served
		})
	}
}

func TestPython(t *testing.T) {
	t.Parallel()
	need(t)
	path, roots, err := sandbox.Interpreter(t.Context(), "python3")
	if err != nil {
		t.Skip(err)
	}
	t.Logf("%s, %q", path, roots)
	exit, out := run(t, sandbox.Config{
		Command: []string{path, "train.py"}, Env: sandbox.BaseEnv(), ReadOnlyPaths: roots,
		Limits:   sandbox.Limits{MemoryBytes: 200 << 20},
		Populate: func(w *os.Root) error { return w.WriteFile("train.py", []byte(trainPy), 0o600) },
	})
	if exit.Code != 0 || out != "ok\n" {
		t.Errorf("%+v: %s", exit, out)
	}
}

// trainPy touches what scripts do: the standard library, extension modules, threads, processes that share memory by fork
// (which must not count twice), and shared memory.
const trainPy = `
import csv, ctypes, hashlib, json, multiprocessing, os, pathlib, random, socket, sqlite3, ssl, subprocess, tempfile, threading, time, urllib.request
def work(n): return n * n
def slow(n): time.sleep(0.15); return len(held)
held = bytearray(os.urandom(1 << 20) * 64)
t = threading.Thread(target=work, args=(1,)); t.start(); t.join()
with multiprocessing.get_context("fork").Pool(4) as pool: assert pool.map(slow, range(8)) == [64 << 20] * 8
shared = multiprocessing.Value("i", 7); assert shared.value == 7
assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
with tempfile.NamedTemporaryFile() as f: f.write(b"x"); assert f.name.startswith("/tmp/"), f.name
assert pathlib.Path.home() == pathlib.Path("/scratch"), pathlib.Path.home()
assert socket.gethostbyname("localhost") == "127.0.0.1"
open("/outputs/model.json", "w").write(json.dumps({"ok": True}))
os.rename("/outputs/model.json", "/outputs/m.json"); os.mkdir("d"); os.rename("train.py", "d/train.py")
print("ok")
`

// TestVirtualEnvironment runs a Python whose program is a link, and whose library is elsewhere.
func TestVirtualEnvironment(t *testing.T) {
	t.Parallel()
	need(t)
	env := filepath.Join(t.TempDir(), "env")
	if out, err := exec.Command("python3", "-m", "venv", "--without-pip", env).CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	path, roots, err := sandbox.Interpreter(t.Context(), filepath.Join(env, "bin", "python"))
	if err != nil {
		t.Fatal(err)
	}
	exit, out := run(t, sandbox.Config{
		Command: []string{path, "-c", "import json, sys; print(sys.prefix, sys.prefix != sys.base_prefix)"},
		Env:     sandbox.BaseEnv(), ReadOnlyPaths: roots,
	})
	if exit.Code != 0 || out != env+" True\n" {
		t.Errorf("%+v: %s; %s, %q", exit, out, path, roots)
	}
}

func TestInterpreterRefuses(t *testing.T) {
	t.Parallel()
	if _, _, err := sandbox.Interpreter(t.Context(), "no-such-program"); fault.Code(err) != codes.FailedPrecondition {
		t.Errorf("got %v", err)
	}
	if path, roots, err := sandbox.Interpreter(t.Context(), "sh"); err != nil || len(roots) != 0 || path == "" {
		t.Errorf("sh: %q, %q, %v", path, roots, err)
	}
}

// counter counts what is written, and nothing else.
type counter struct{ n atomic.Int64 }

func (c *counter) Write(b []byte) (int, error) { c.n.Add(int64(len(b))); return len(b), nil }

func TestOutputIsNotGathered(t *testing.T) {
	t.Parallel()
	const size = 100 << 20
	var out counter
	config := helperConfig(t, "print", fmt.Sprint(size))
	config.Stdout = &out
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p := start(t, config)
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	runtime.ReadMemStats(&after)
	if out.n.Load() != size {
		t.Errorf("%d bytes came, want %d", out.n.Load(), size)
	}
	// Other tests run beside this one, and allocate a little.
	if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > size/4 {
		t.Errorf("%d bytes were allocated on the way", grown)
	}
}

// gate lets writes through once it is opened.
type gate struct {
	open    chan struct{}
	reached chan struct{}
	n       atomic.Int64
}

func (g *gate) Write(b []byte) (int, error) {
	if g.n.Add(int64(len(b))) == int64(len(b)) {
		close(g.reached)
	}
	<-g.open
	return len(b), nil
}

func TestOutputThatIsNotTaken(t *testing.T) {
	t.Parallel()
	g := &gate{open: make(chan struct{}), reached: make(chan struct{})}
	config := helperConfig(t, "print", fmt.Sprint(10<<20))
	config.Stdout = g
	p := start(t, config)
	<-g.reached
	// The run waits; it can be killed; and while its output is not taken, it has not ended.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v", err)
	}
	p.Close()
	select {
	case <-p.Done():
		t.Error("it is done, though its output was not taken")
	default:
	}
	close(g.open)
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Reason != sandbox.Killed {
		t.Errorf("%+v, %v", exit, err)
	}
	if n := g.n.Load(); n >= 10<<20 {
		t.Errorf("all %d bytes came", n)
	}
}

type refusing struct{}

func (refusing) Write([]byte) (int, error) { return 0, errors.New("no room") }

func TestOutputThatIsRefused(t *testing.T) {
	t.Parallel()
	config := helperConfig(t, "print", fmt.Sprint(1<<20))
	config.Stdout = refusing{}
	p := start(t, config)
	exit, err := p.Wait(t.Context())
	if exit.Code != 0 || exit.Reason != sandbox.Exited {
		t.Errorf("the run suffered: %+v", exit)
	}
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("the loss was not told: %v", err)
	}
}

func TestOutputs(t *testing.T) {
	t.Parallel()
	p := start(t, shell(`cd /outputs
		echo model >model.txt; mkdir -p a/b; echo deep >a/b/c; echo other >a.txt
		ln -s /etc/passwd link; ln -s ../../etc a/dir; mkfifo pipe; ln -s . loop
		mkdir locked; echo in >locked/x; chmod 000 locked
		d=.; i=0; while [ $i -lt 70 ]; do d=$d/n; i=$((i+1)); done; mkdir -p $d; echo far >$d/f`))
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	var got []string
	skipped, err := sandbox.EachOutput(p.Outputs(), func(o sandbox.Output) error {
		text, err := io.ReadAll(o.File)
		got = append(got, o.Name+"="+strings.TrimSpace(string(text)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a/b/c=deep", "a.txt=other", "locked/x=in", "model.txt=model"}
	if !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	var names []string
	for _, s := range skipped {
		names = append(names, s.Name)
	}
	wantSkipped := []string{"a/dir", "link", "loop", strings.Repeat("n/", 64) + "n", "pipe"}
	if !slices.Equal(names, wantSkipped) {
		t.Errorf("skipped %q, want %q", skipped, wantSkipped)
	}
	stop := errors.New("stop")
	if _, err := sandbox.EachOutput(p.Outputs(), func(sandbox.Output) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("keep's error: %v", err)
	}
}

// TestCheckWhereItCannot asks inside a sandbox, which forbids to make another.
func TestCheckWhereItCannot(t *testing.T) {
	t.Parallel()
	exit, out := run(t, helperConfig(t, "check"))
	if exit.Code != 0 || !strings.Contains(out, "TARGET_NO_ISOLATION") || !strings.Contains(out, "user namespaces") {
		t.Errorf("%+v: %s", exit, out)
	}
}

// TestProgramForItsOwnerOnly starts a run from a program that only root may execute, as one that was built under umask 077.
func TestProgramForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	need(t)
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	// By cp, so that no process forked from this one has the copy open for writing.
	own := filepath.Join(t.TempDir(), "own")
	if out, err := exec.Command("cp", path, own).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chmod(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(own, "helper:isolate").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// BenchmarkFirstOutput measures from Start to the command's first output; the goal is 50 ms.
func BenchmarkFirstOutput(b *testing.B) {
	need(b)
	for b.Loop() {
		g := &gate{open: make(chan struct{}), reached: make(chan struct{})}
		close(g.open)
		config := shell("echo x; exec sleep 1000")
		config.Stdout = g
		p, err := sandbox.Start(b.Context(), config)
		if err != nil {
			b.Fatal(err)
		}
		<-g.reached
		b.StopTimer()
		p.Close()
		b.StartTimer()
	}
}
