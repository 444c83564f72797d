//go:build linux

package sandbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// The test binary is also the stage, as every program that starts sandboxes, and the program that runs in them.
func TestMain(m *testing.M) {
	sandbox.MaybeStage()
	if len(os.Args) > 1 {
		if name, ok := strings.CutPrefix(os.Args[1], "helper:"); ok {
			os.Exit(helper(name, os.Args[2:]))
		}
	}
	_ = os.Setenv("SANDBOX_TEST_INHERITED", "1") // which no run may see
	// Now, since a program cannot be executed while a process that was just forked still has it open for writing.
	path, err := program()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(filepath.Dir(path))
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// ordinaryEnv says that this process is the ordinary user's half of a test run that root began.
const ordinaryEnv = "SANDBOX_TEST_ORDINARY"

// TestAsAnOrdinaryUser repeats every test as a user without rights, where this one is root.
func TestAsAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: every test is as an ordinary user already")
	}
	t.Parallel()
	const nobody = 65534
	cmd := exec.Command("/proc/self/exe", "-test.timeout=2m", "-test.v="+fmt.Sprint(testing.Verbose()), "-test.skip=^TestAsAnOrdinaryUser$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), ordinaryEnv+"=1", "HOME=/nonexistent", "PATH=/usr/local/bin:/usr/bin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("%s", out)
	}
}

// isolates is whether this machine can isolate, by our own check. It is asked once.
var isolates = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return sandbox.Check(ctx)
})

// need skips a test where this machine cannot isolate, and says why. It believes the check only when the kernel says the
// same: a sandbox that is broken must not pass for a machine that cannot.
func need(t testing.TB) {
	t.Helper()
	err := isolates()
	if err == nil {
		return
	}
	if fault.ReasonOf(err) != faultv1.Reason_TARGET_NO_ISOLATION {
		t.Fatal(err)
	}
	if why := inNamespaces("isolate"); why != nil {
		t.Skipf("%v; without our sandbox: %v", err, why)
	}
	t.Fatalf("this machine gives namespaces and mounts, but: %v", err)
}

// program is this test binary at a path that every user can read.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sandbox-test-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "program")
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(to, from)
	return path, errors.Join(err, to.Close())
})

// helperConfig is a run of one of this program's helpers. Its folder is closed to others, as a pyenv below root's home is.
func helperConfig(t testing.TB, name string, args ...string) sandbox.Config {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return sandbox.Config{
		Command:       append([]string{path, "helper:" + name}, args...),
		Env:           sandbox.BaseEnv(),
		ReadOnlyPaths: []string{path},
		// The race detector reserves most of the address space.
		Limits: sandbox.Limits{AddressBytes: 1 << 50, DiskBytes: 64 << 20},
	}
}

func shell(script string) sandbox.Config {
	return sandbox.Config{Command: []string{"sh", "-c", script}, Env: sandbox.BaseEnv(), Limits: sandbox.Limits{DiskBytes: 64 << 20}}
}

// start starts a run that ends with the test.
func start(t testing.TB, config sandbox.Config) *sandbox.Process {
	t.Helper()
	need(t)
	p, err := sandbox.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// run runs to the end, and gives what was written.
func run(t testing.TB, config sandbox.Config) (sandbox.Exit, string) {
	t.Helper()
	var out locked
	config.Stdout, config.Stderr = &out, &out
	p := start(t, config)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatalf("%v after %q", err, out.String())
	}
	return exit, out.String()
}

// locked is a buffer for two writers.
type locked struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
