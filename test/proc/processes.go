package proc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/internal/agent"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// LeafLife of every certificate in the mesh: short, so that they rotate while a test looks.
	LeafLife = 10 * time.Second
	// Whole is the process of an installation that runs in one.
	Whole = "up"
	// Etcd is the process of etcd in an installation of several.
	Etcd = "etcd"

	startLimit = 90 * time.Second
	stopLimit  = 20 * time.Second
)

// Binary is the program: what PROC_BINARY names, else this test binary, which is one too (see Child).
func Binary() string {
	if b := os.Getenv("PROC_BINARY"); b != "" {
		return b
	}
	exe, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return exe
}

// Process is one process of an installation, which may be started again after its end.
type Process struct {
	Name string
	Args []string

	env []string
	dir string // working directory and output

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

// Start starts the process. It does not wait until it answers.
func (p *Process) Start() error {
	out, err := os.OpenFile(p.output(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(Binary(), p.Args...) //nolint:noctx // our own program; ended by Kill and Stop
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, p.env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(ended)
	}()
	return nil
}

// Signal sends a signal and waits for the end of the process.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	cmd, ended := p.cmd, p.ended
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(sig) // it may have ended
	select {
	case <-ended:
		return nil
	case <-time.After(stopLimit):
		_ = cmd.Process.Kill()
		<-ended
		return fmt.Errorf("%s did not end %s after %s", p.Name, stopLimit, sig)
	}
}

// Ended is closed when the process has ended; Err says how.
func (p *Process) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// Err is how the process ended last.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *Process) output() string { return filepath.Join(p.dir, p.Name+".log") }

// Output is the end of what the process has printed, over all its starts.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.output())
	if err != nil {
		return err.Error()
	}
	if len(b) > 6000 {
		b = b[len(b)-6000:]
	}
	return string(b)
}

// Installation is what an operator has on one machine.
type Installation struct {
	// Data is the state folder, Temp the folder for temporary files of its processes.
	Data, Temp string
	URL        string
	CA         []byte
	User       string
	Password   redact.Secret
	// Processes in the order in which an operator would start them.
	Processes []*Process

	base string
}

// New makes an installation and starts it: in several processes, or in one.
func New(t testing.TB, several bool) *Installation {
	t.Helper()
	in := &Installation{User: "admin"}
	in.make(t)
	listen := freePorts(t)
	in.URL = "https://" + listen
	if several {
		in.bootstrap(t, listen)
	} else {
		in.Processes = []*Process{in.process(Whole, "up", "--data", in.Data, "--listen", listen, "--leaf-life", LeafLife.String(), "--log-level", "info")}
	}
	in.Start(t)
	in.WaitReady(t)
	return in
}

// make makes its folders, which are gone after the test with all that worked in them.
func (in *Installation) make(t testing.TB) {
	t.Helper()
	base, err := os.MkdirTemp("", "proc") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	in.base, in.Data, in.Temp = base, filepath.Join(base, "data"), filepath.Join(base, "tmp")
	for _, d := range []string{in.Temp, in.run()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, p := range in.Processes {
			_ = p.Signal(syscall.SIGKILL)
		}
		killAgents(in.Data)
		if t.Failed() && os.Getenv("PROC_KEEP") != "" {
			t.Logf("kept %s", base)
			return
		}
		_ = os.RemoveAll(base)
	})
}

func (in *Installation) run() string { return filepath.Join(in.base, "run") }

// process does not start it. Its home is the installation's own.
func (in *Installation) process(name string, args ...string) *Process {
	return &Process{Name: name, Args: args, dir: in.run(), env: append(Environment(in.base), "TMPDIR="+in.Temp)}
}

// Environment of a process whose settings lie in a folder.
func Environment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + filepath.Join(home, "config"), "XDG_STATE_HOME=" + filepath.Join(home, "state")}
}

// bootstrap makes the installation of several processes, which are started as it prints.
func (in *Installation) bootstrap(t testing.TB, listen string) {
	t.Helper()
	code, out := Run(t, Environment(in.base), "bootstrap", "--data", in.Data, "--listen", listen, "--leaf-life", LeafLife.String())
	if code != 0 {
		t.Fatalf("bootstrap ends with %d: %s", code, out)
	}
	for line := range strings.Lines(out) {
		args, ok := strings.CutPrefix(strings.TrimSpace(line), "redoubt ")
		if !ok {
			continue
		}
		f := strings.Fields(args)
		switch {
		case f[0] == "etcd":
			in.Processes = append(in.Processes, in.process(Etcd, f...))
		case f[0] == "serve" && len(f) > 1:
			in.Processes = append(in.Processes, in.process(f[1], f...))
		}
	}
	if len(in.Processes) != len(node.Services)+1 {
		t.Fatalf("bootstrap names %d processes:\n%s", len(in.Processes), out)
	}
}

// Run runs the program to its end.
func Run(t testing.TB, env []string, args ...string) (code int, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary(), args...)
	cmd.Env = env
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

// Start starts every process that does not run, without waiting.
func (in *Installation) Start(t testing.TB) {
	t.Helper()
	for _, p := range in.Processes {
		if err := p.Start(); err != nil {
			t.Fatalf("%s: %v", p.Name, err)
		}
	}
}

// Stop ends every process in reverse order, as an operator does, and wants each to end well.
func (in *Installation) Stop(t testing.TB) {
	t.Helper()
	for _, p := range slices.Backward(in.Processes) {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("%v\n%s", err, p.Output())
		} else if err := p.Err(); err != nil {
			t.Errorf("%s ended with %v\n%s", p.Name, err, p.Output())
		}
	}
}

// WaitReady waits until the first administrator can sign in and every service answers him.
func (in *Installation) WaitReady(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if err := poll(ctx, func() error { return in.answers(ctx) }); err != nil {
		for _, p := range in.Processes {
			t.Logf("%s:\n%s", p.Name, p.Output())
		}
		t.Fatalf("the installation is not ready: %v", err)
	}
}

// poll tries until it works, a process being on the other side. Else it gives the last error that is not only that time is up.
func poll(ctx context.Context, try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := try()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil && status.Code(err) != codes.DeadlineExceeded {
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}

func (in *Installation) answers(ctx context.Context) error {
	for _, p := range in.Processes {
		select {
		case <-p.Ended():
			return fmt.Errorf("%s has ended: %w", p.Name, p.Err())
		default:
		}
	}
	if len(in.CA) == 0 {
		ca, err := os.ReadFile(filepath.Join(in.Data, "ca.pem"))
		if err != nil {
			return err
		}
		in.CA = ca
	}
	if in.Password.Empty() {
		b, err := os.ReadFile(filepath.Join(in.Data, "admin.password"))
		if err != nil {
			return err
		}
		in.Password = redact.FromString(strings.TrimSpace(string(b)))
	}
	return in.Access().probe(ctx)
}

// Access is how to reach the installation as its first administrator.
func (in *Installation) Access() Access {
	return Access{URL: in.URL, CA: in.CA, User: in.User, Password: in.Password}
}

// portsOfOne is how many ports an installation takes.
const portsOfOne = 13

// freePorts finds as many free ports in a row as an installation takes, below the range that the system hands out.
func freePorts(t testing.TB) string {
	t.Helper()
	for range 200 {
		base := 10000 + portsOfOne*rand.IntN(1600)
		free := true
		for i := range portsOfOne {
			l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:"+strconv.Itoa(base+i))
			if err != nil {
				free = false
				break
			}
			_ = l.Close()
		}
		if free {
			return "127.0.0.1:" + strconv.Itoa(base)
		}
	}
	t.Fatal("not enough free ports in a row")
	return ""
}

// Access is how to reach an installation.
type Access struct {
	URL      string
	CA       []byte
	User     string
	Password redact.Secret
	// Follow are the roots of the moment in place of CA, where roots change.
	Follow *agent.Roots
}

// Dial makes the client of commands. With an empty token only public methods answer.
func (a Access) Dial(token string, opts ...grpc.DialOption) (*client.Client, error) {
	if a.Follow != nil {
		opts = append([]grpc.DialOption{grpc.WithTransportCredentials(a.Follow.Credentials("", time.Now))}, opts...)
	}
	return client.Dial(client.Context{Name: "proc", Server: a.URL, CAPEM: a.CA}, redact.FromString(token), opts...)
}

// SignIn gives a token.
func (a Access) SignIn(ctx context.Context) (string, error) {
	c, err := a.Dial("")
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	s, err := c.SignIn(ctx, a.User, a.Password)
	return s.GetAccessToken(), err
}

// TLS believes the installation's roots.
func (a Access) TLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CA)
	if a.Follow != nil {
		roots = a.Follow.Pool()
	}
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
}

// plain is a connection that repeats nothing: each call fails that the installation fails.
func (a Access) plain(token string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+strings.TrimPrefix(a.URL, "https://"), grpc.WithTransportCredentials(credentials.NewTLS(a.TLS())),
		grpc.WithPerRPCCredentials(bearer(token)), grpc.WithNoProxy(), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig())
}

type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }
