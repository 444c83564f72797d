package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"crypto/x509"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
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
// are checked and decided as ever: what memory the installation has at most, and what a slow call of that client's takes before and during.
func signIns(ctx context.Context, o options) error {
	in, err := newClientOf(ctx, o, "installation-passwords")
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(in.admin.Close(), in.stop()) }()
	const users = 4
	directory := identityv1.NewDirectoryServiceClient(in.admin.Conn())
	for i := range users {
		if _, err := directory.CreateUser(ctx, &identityv1.CreateUserRequest{UserId: fmt.Sprint("user", i), Password: fmt.Sprint("the password of user ", i)}); err != nil {
			return err
		}
	}
	// The client that notices or not: a call each 5 ms.
	resources := workspacev1.NewResourceServiceClient(in.admin.Conn())
	calls := func(until <-chan struct{}) (took []time.Duration, err error) {
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
	before, err := calls(after(2 * o.each))
	if err != nil {
		return err
	}
	idle, err := in.memory()
	if err != nil {
		return err
	}
	over := make(chan struct{})
	var in200, busy, failed int
	var mu sync.Mutex
	var first error
	peak := make(chan int64, 1)
	go func() {
		most, tick := int64(0), time.NewTicker(10*time.Millisecond)
		defer tick.Stop()
		for {
			if m, err := in.memory(); err == nil {
				most = max(most, m)
			}
			select {
			case <-over:
				peak <- most
				return
			case <-tick.C:
			}
		}
	}()
	var wg sync.WaitGroup
	begun := time.Now()
	var signedIn time.Duration
	for i := range atOnce {
		wg.Go(func() {
			err := in.signInFrom(ctx, i, fmt.Sprint("user", i%users), fmt.Sprint("the password of user ", i%users))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				in200++
			case status.Code(err) == codes.ResourceExhausted || status.Code(err) == codes.Unavailable:
				busy++
			default:
				failed++
				first = err
			}
		})
	}
	go func() {
		wg.Wait()
		signedIn = time.Since(begun)
		close(over)
	}()
	during, err := calls(over)
	if err != nil {
		return err
	}
	<-over
	most := <-peak
	if failed > 0 {
		return fmt.Errorf("%d sign-ins failed: %w", failed, first)
	}
	quiet, loud := percentile(before, 0.99), percentile(during, 0.99)
	fmt.Fprintf(o.log, "  %d sign-ins at once: %d in %v, %d asked to come back; memory %d MiB before, %d MiB at most; a checked call p50 %v and %v, p99 %v and %v, of %d and %d\n",
		atOnce, in200, signedIn.Round(time.Millisecond), busy, idle>>20, most>>20, percentile(before, 0.5), percentile(during, 0.5), quiet, loud, len(before), len(during))
	o.print("sign-ins-memory", float64(most>>20), "MiB", float64(most)/float64(idle), "the installation at rest")
	o.print("sign-ins-p99", float64(loud)/1e6, "ms", float64(loud)/float64(quiet), "a checked call without sign-ins")
	return nil
}

// signInFrom signs a user in from an address of loopback that nobody else has.
func (in *installation) signInFrom(ctx context.Context, i int, user, pw string) error {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 8, byte(i/200), byte(1+i%200))}}
	conn, err := grpc.NewClient("passthrough:///"+hostOf(in.hello.Gateway), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(in.roots, "")), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, err = identityv1.NewSignInServiceClient(conn).SignIn(ctx, &identityv1.SignInRequest{User: user, Password: pw})
	return err
}

// memory is what the process has in memory, in bytes.
func (p *process) memory() (int64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/status")
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
