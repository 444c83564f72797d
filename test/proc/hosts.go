package proc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
)

// Hosts is an installation whose processes are on hosts of their own: addresses of this machine's loopback network.
type Hosts struct {
	*Installation
	// Members are the etcd processes, Services the others.
	Members, Services []*Process
	client            string // the folder of a service's certificate for etcd
	endpoints         []string
}

// NewHosts makes an installation of three etcd members and one instance of each service, from a plan, and starts it. more is what the plan
// says besides; before is called with bootstrap's arguments when the plan is written.
func NewHosts(t testing.TB, more string, before func(args ...string)) *Hosts {
	t.Helper()
	in := &Installation{User: "admin"}
	in.make(t)
	network := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(250), rand.IntN(250))
	_, base, err := splitPort(freePorts(t))
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	in.URL = fmt.Sprintf("https://%s%d:%d", network, 11+slices.Index(node.Services, "gateway"), base)
	fmt.Fprintf(&plan, "public_url: %s\nscoring_url: https://%s%d:%d\nbase_port: %d\nleaf_life: %s\netcd:\n",
		in.URL, network, 11+slices.Index(node.Services, "inference"), base+9, base, LeafLife)
	for i := 1; i <= 3; i++ {
		fmt.Fprintf(&plan, "  - {name: etcd-%d, host: %s3%d, client_port: %d, peer_port: %d}\n", i, network, i, base, base+1)
	}
	plan.WriteString("instances:\n")
	for i, s := range node.Services {
		fmt.Fprintf(&plan, "  - {service: %s, name: a, host: %s%d}\n", s, network, 11+i)
	}
	plan.WriteString(more)
	path := filepath.Join(in.base, "plan.yaml")
	if err := os.WriteFile(path, []byte(plan.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before("bootstrap", "--plan", path, "--data", in.Data)
	}
	code, out := Run(t, Environment(in.base), "bootstrap", "--plan", path, "--data", in.Data)
	if code != 0 {
		t.Fatalf("bootstrap ends with %d: %s", code, out)
	}
	h := &Hosts{Installation: in, client: filepath.Join(in.Data, "gateway-a", "etcd")}
	for line := range strings.Lines(out) {
		where, args, ok := strings.Cut(strings.TrimSpace(line), ": redoubt ")
		name, _, process := strings.Cut(where, " at ")
		if !ok || !process {
			continue
		}
		p := in.process(name, strings.Fields(args)...)
		in.Processes = append(in.Processes, p)
		if strings.HasPrefix(args, "etcd ") {
			h.Members = append(h.Members, p)
		} else {
			h.Services = append(h.Services, p)
		}
	}
	for i := range h.Members {
		h.endpoints = append(h.endpoints, fmt.Sprintf("https://%s3%d:%d", network, i+1, base))
	}
	if len(h.Members) != 3 || len(h.Services) != len(node.Services) {
		t.Fatalf("bootstrap names %d members and %d services:\n%s", len(h.Members), len(h.Services), out)
	}
	in.Start(t)
	in.WaitReady(t)
	return h
}

func splitPort(addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = fmt.Sscan(text, &port)
	}
	return host, port, err
}

// Registered lists the services that stand in etcd, which a majority of its members has to say.
func (h *Hosts) Registered(ctx context.Context) ([]string, error) {
	tls, err := node.EtcdClientTLS(h.client)
	if err != nil {
		return nil, err
	}
	r, err := discovery.Open(discovery.Config{Endpoints: h.endpoints, TLS: tls})
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list, err := r.List(ctx)
	var out []string
	for service, instances := range list {
		if len(instances) > 0 {
			out = append(out, service)
		}
	}
	slices.Sort(out)
	return out, err
}

// WantRegistered waits until every service stands in etcd.
func (h *Hosts) WantRegistered(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	want := slices.Sorted(slices.Values(node.Services))
	if err := poll(ctx, func() error {
		got, err := h.Registered(ctx)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("registered are %v", got)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// Calls are made one after the other until stopped.
type Calls struct {
	stop func()
	wg   sync.WaitGroup

	mu     sync.Mutex
	good   int
	failed []error
}

// Calling calls identity and workspace through the gateway, without repeating anything, as a client does that gives up after 5 s.
func (h *Hosts) Calling(t testing.TB) *Calls {
	t.Helper()
	token, err := h.Access().SignIn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := h.Access().plain(token)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Calls{stop: stop}
	c.wg.Go(func() {
		defer func() { _ = conn.Close() }()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			err := one(ctx, conn, n)
			if ctx.Err() != nil {
				return
			}
			c.mu.Lock()
			if err != nil {
				c.failed = append(c.failed, err)
			} else {
				c.good++
			}
			c.mu.Unlock()
			<-tick.C
		}
	})
	return c
}

func one(ctx context.Context, conn grpc.ClientConnInterface, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if n%2 == 0 {
		_, err := identityv1.NewSignInServiceClient(conn).WhoAmI(ctx, &identityv1.WhoAmIRequest{})
		return err
	}
	_, err := workspacev1.NewResourceServiceClient(conn).ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: "subscriptions/default/resourceGroups/default"})
	return err
}

// Stop gives how many calls were answered, and what the others failed with.
func (c *Calls) Stop() (good int, failed []error) {
	c.stop()
	c.wg.Wait()
	return c.good, c.failed
}

// More waits until so many more calls have been answered.
func (c *Calls) More(t testing.TB, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	c.mu.Lock()
	want := c.good + n
	c.mu.Unlock()
	if err := poll(ctx, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.good < want {
			return fmt.Errorf("%d calls were answered, waiting for %d; the last failed with %v", c.good, want, c.failed)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
