// Package stepup runs the command line against an installation whose clock was behind when somebody signed in, so that his sign-in is old
// now (A2, RFC 9470).
//
// It owns its installation, since no other may have its clock. Its trust boundary is the gateway's.
package stepup

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-ml/redoubt/internal/cli"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/testmesh"
)

var (
	mesh *testmesh.Mesh
	// behind is how far the installation's clock is behind that of the command line, in nanoseconds.
	behind atomic.Int64
)

func meshNow() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }

func TestMain(m *testing.M) {
	testmesh.Child()
	behind.Store(int64(20 * time.Minute))
	var err error
	if mesh, err = testmesh.Start(func(c *node.UpConfig) { c.Options.Now = meshNow }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	mesh.Close()
	os.Exit(code)
}

// output is what a command has written so far. It is safe for concurrent use.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// running is a command that was started.
type running struct {
	t         *testing.T
	out, errs output
	end       chan int
}

func start(t *testing.T, in interface{ Read([]byte) (int, error) }, args ...string) *running {
	r := &running{t: t, end: make(chan int, 1)}
	go func() { r.end <- cli.Main(t.Context(), args, in, &r.out, &r.errs) }()
	return r
}

// says waits until standard error has the text n times.
func (r *running) says(text string, n int) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); strings.Count(r.errs.String(), text) < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("it does not say %q %d times:\n%s%s", text, n, r.out.String(), r.errs.String())
		}
		select {
		case code := <-r.end:
			r.t.Fatalf("it ended with %d before it said %q %d times:\n%s%s", code, text, n, r.out.String(), r.errs.String())
		default:
		}
	}
}

func (r *running) ends(code int) string {
	r.t.Helper()
	if got := <-r.end; got != code {
		r.t.Fatalf("%d, not %d\n%s%s", got, code, r.out.String(), r.errs.String())
	}
	return r.out.String() + r.errs.String()
}

// ptsPair is a pseudo-terminal: the end that a command has, and the keyboard.
func ptsPair(t *testing.T) (program, keyboard *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Skip("there are no pseudo-terminals here:", err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return program, keyboard
}

func typed(t *testing.T, keyboard *os.File, line string) {
	t.Helper()
	if _, err := keyboard.WriteString(line + "\n"); err != nil {
		t.Fatal(err)
	}
}
