package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"crypto/x509"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

// passwords is RFC 9106's second choice for argon2id with one lane: 64 MiB, three passes. How many are computed together is the default.
func passwords() password.Config { return password.Config{MemoryKiB: 64 << 10, Passes: 3} }

const atOnce = 200

// newClientOf starts a server process that is an installation, and is its administrator.
func newClientOf(ctx context.Context, o options, kind string) (*installation, error) {
	p, err := start(ctx, o, kind)
	if err != nil {
		return nil, err
	}
	in := &installation{process: p, roots: x509.NewCertPool()}
	if !in.roots.AppendCertsFromPEM(p.Root) {
		return nil, errors.New("the installation's root is no certificate")
	}
	in.admin, err = client.Dial(client.Context{Name: "bench", Server: p.hello.Gateway, CAPEM: p.Root}, redact.FromString(p.Token))
	return in, err
}

// signIns has 200 people sign in at once by passwords of 64 MiB and three passes, each from an address of his own, beside a client whose calls
// are checked and decided as ever: what memory the installation has at most, and what a slow call of that client's takes before, during and after; and
// beside what is left without passwords, and without passwords and as busy.
// Who is asked to come back does, when he was told to, until he is in.
func signIns(ctx context.Context, o options) error {
	kind := "installation-passwords"
	if o.inside {
		kind += "-inside"
	}
	in, err := newClientOf(ctx, o, kind)
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(in.admin.Close(), in.stop()) }()
	directory := identityv1.NewDirectoryServiceClient(in.admin.Conn())
	for i := range atOnce {
		if _, err := directory.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: fmt.Sprint("user", i), Password: fmt.Sprint("the password of user ", i)}); err != nil {
			return err
		}
	}
	// What notices or not, each 5 ms: a client's call, and a hundred checks of a token that was seen before, as every service makes them.
	w, done, err := here(ctx)
	if err != nil {
		return err
	}
	defer done()
	resources := workspacev1.NewResourceServiceClient(in.admin.Conn())
	var checks []time.Duration // each of a hundred
	calls := func(until <-chan struct{}) (took []time.Duration, err error) {
		checks = nil
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-until:
				return took, nil
			case <-ctx.Done():
				return took, ctx.Err()
			case <-tick.C:
			}
			begun := time.Now()
			if _, err := resources.ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: "subscriptions/default/resourceGroups/default"}); err != nil {
				return took, err
			}
			took = append(took, time.Since(begun))
			begun = time.Now()
			for range 100 {
				if _, err := w.verifier.Verify(ctx, w.token, issuer); err != nil {
					return took, err
				}
			}
			checks = append(checks, time.Since(begun))
		}
	}
	after := func(d time.Duration) <-chan struct{} {
		c := make(chan struct{})
		time.AfterFunc(d, func() { close(c) })
		return c
	}
	if _, err := calls(after(o.each)); err != nil { // warm
		return err
	}
	quiet, err := calls(after(5 * o.each))
	if err != nil {
		return err
	}
	checksQuiet := checks
	idle, err := in.memory()
	if err != nil {
		return err
	}
	crowd := in.crowd(ctx)
	during, err := calls(crowd.over)
	if err != nil {
		return err
	}
	checksDuring := checks
	<-crowd.over
	if crowd.err != nil {
		return fmt.Errorf("a sign-in failed: %w", crowd.err)
	}
	again, err := calls(after(5 * o.each))
	if err != nil {
		return err
	}
	quiet, checksQuiet = append(quiet, again...), append(checksQuiet, checks...)
	// The same connections at the same times, and a call that needs no password: what is left when the hashes are taken away.
	echo := in.echo(ctx, crowd.begun)
	beside, err := calls(echo.over)
	if err != nil {
		return err
	}
	if <-echo.over; echo.err != nil {
		return fmt.Errorf("a connection failed: %w", echo.err)
	}
	// The same beside as many busy cores: what any work of the lowest priority costs on this machine.
	loop, err := start(ctx, o, "busy")
	if err != nil {
		return err
	}
	defer func() { _ = loop.stop() }()
	echo = in.echo(ctx, crowd.begun)
	busy, err := calls(echo.over)
	if err != nil {
		return err
	}
	if <-echo.over; echo.err != nil {
		return fmt.Errorf("a connection failed: %w", echo.err)
	}
	slices.Sort(crowd.waited)
	fmt.Fprintf(o.log, "  %d sign-ins at once: all in after %v, half after %v; %d times one was asked to come back; memory %d MiB before, %d MiB at most\n",
		len(crowd.waited), crowd.waited[len(crowd.waited)-1].Round(time.Millisecond), crowd.waited[len(crowd.waited)/2].Round(time.Millisecond), crowd.busy, idle>>20, crowd.most>>20)
	fmt.Fprintf(o.log, "  a checked call, quiet and beside them: p50 %v and %v, p90 %v and %v, p99 %v and %v, of %d and %d\n",
		percentile(quiet, 0.5), percentile(during, 0.5), percentile(quiet, 0.9), percentile(during, 0.9), percentile(quiet, 0.99), percentile(during, 0.99), len(quiet), len(during))
	fmt.Fprintf(o.log, "  beside the same %d connections without passwords: p50 %v, p90 %v, p99 %v, of %d\n", len(crowd.begun), percentile(beside, 0.5), percentile(beside, 0.9), percentile(beside, 0.99), len(beside))
	fmt.Fprintf(o.log, "  and as many cores kept busy at the lowest priority: p50 %v, p90 %v, p99 %v, of %d\n", percentile(busy, 0.5), percentile(busy, 0.9), percentile(busy, 0.99), len(busy))
	fmt.Fprintf(o.log, "  a hundred checks of a token, quiet and beside them: mean %v and %v, p50 %v and %v, p90 %v and %v, p99 %v and %v\n", mean(checksQuiet), mean(checksDuring),
		percentile(checksQuiet, 0.5), percentile(checksDuring, 0.5), percentile(checksQuiet, 0.9), percentile(checksDuring, 0.9), percentile(checksQuiet, 0.99), percentile(checksDuring, 0.99))
	o.print("sign-ins-token-check", float64(mean(checksDuring))/100, "ns", float64(mean(checksDuring))/float64(mean(checksQuiet)), "a check of a token without sign-ins")
	o.print("sign-ins-memory", float64(crowd.most>>20), "MiB", float64(crowd.most)/float64(idle), "the installation at rest")
	of := func(p float64) func([]time.Duration) time.Duration {
		return func(d []time.Duration) time.Duration { return percentile(d, p) }
	}
	for _, at := range []struct {
		name string
		of   func([]time.Duration) time.Duration
	}{{"sign-ins-mean", mean}, {"sign-ins-p50", of(0.5)}, {"sign-ins-p99", of(0.99)}} {
		was, with, full, is := at.of(quiet), at.of(beside), at.of(busy), at.of(during)
		o.print(at.name, float64(is)/1e6, "ms", float64(is)/float64(was), "a checked call without sign-ins")
		o.print(at.name+"-hashes", float64(is)/1e6, "ms", float64(is)/float64(with), "a checked call beside the same connections without passwords")
		o.print(at.name+"-busy", float64(is)/1e6, "ms", float64(is)/float64(full), "a checked call beside those and as many cores kept busy by a bare loop at the lowest priority")
	}
	return nil
}

func mean(all []time.Duration) (sum time.Duration) {
	for _, d := range all {
		sum += d
	}
	return sum / time.Duration(max(1, len(all)))
}

// crowd is 200 sign-ins. Its fields are read when over is closed.
type crowd struct {
	over   chan struct{}
	begun  []time.Duration // when each try began
	waited []time.Duration // until each was in
	busy   int             // how often one was asked to come back
	most   int64           // memory, in bytes
	err    error
}

func (in *installation) crowd(ctx context.Context) *crowd {
	c := &crowd{over: make(chan struct{})}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range atOnce {
		wg.Go(func() {
			for {
				mu.Lock()
				c.begun = append(c.begun, time.Since(begun))
				mu.Unlock()
				wait, err := in.signInFrom(ctx, i)
				mu.Lock()
				if err == nil {
					c.waited = append(c.waited, time.Since(begun))
				} else if wait == 0 {
					c.err = err
				} else {
					c.busy++
				}
				mu.Unlock()
				if wait == 0 {
					return
				}
				time.Sleep(wait)
			}
		})
	}
	in200 := make(chan struct{})
	go func() {
		wg.Wait()
		close(in200)
	}()
	go func() {
		defer close(c.over)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			if m, err := in.memory(); err == nil {
				c.most = max(c.most, m)
			}
			select {
			case <-in200:
				return
			case <-tick.C:
			}
		}
	}()
	return c
}

// echo connects at the times of a crowd's tries, and asks for what anybody may read.
func (in *installation) echo(ctx context.Context, at []time.Duration) *crowd {
	c := &crowd{over: make(chan struct{})}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for i, d := range at {
		wg.Go(func() {
			time.Sleep(time.Until(begun.Add(d)))
			err := in.from(ctx, i%atOnce, func(ctx context.Context, conn *grpc.ClientConn) error {
				_, err := identityv1.NewTokenServiceClient(conn).GetDiscovery(ctx, &identityv1.GetDiscoveryRequest{})
				return err
			})
			if err != nil {
				mu.Lock()
				c.err = err
				mu.Unlock()
			}
		})
	}
	go func() {
		defer close(c.over)
		wg.Wait()
	}()
	return c
}

// from makes a connection from an address of loopback that nobody else has, for one call.
func (in *installation) from(ctx context.Context, i int, call func(context.Context, *grpc.ClientConn) error) error {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 8, byte(i/200), byte(1+i%200))}}
	conn, err := grpc.NewClient("passthrough:///"+hostOf(in.hello.Gateway), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(in.roots, "")), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return call(ctx, conn)
}

// signInFrom signs the user i in, from an address of his own. With an error, wait says when to come back, 0 for never.
func (in *installation) signInFrom(ctx context.Context, i int) (wait time.Duration, err error) {
	err = in.from(ctx, i, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := identityv1.NewSignInServiceClient(conn).SignIn(ctx, &identityv1.SignInRequest{User: fmt.Sprint("user", i), Password: fmt.Sprint("the password of user ", i)})
		return err
	})
	var f *fault.Error
	if errors.As(fault.FromStatus(err), &f) && fault.ReasonOf(f) == faultv1.Reason_RATE_LIMITED {
		return max(f.RetryAfter(), time.Millisecond), err
	}
	return 0, err
}

// memory is what the process and those it started have in memory, in bytes.
func (p *process) memory() (int64, error) {
	pids := []string{strconv.Itoa(p.pid)}
	tasks, err := filepath.Glob("/proc/" + pids[0] + "/task/*/children")
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		text, _ := os.ReadFile(t) // a thread may have ended
		pids = append(pids, strings.Fields(string(text))...)
	}
	var sum int64
	for i, pid := range pids {
		n, err := resident(pid)
		if err != nil && i == 0 {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func resident(pid string) (int64, error) {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("there is no VmRSS")
}
