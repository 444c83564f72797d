package proc

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/agent"
)

// What rotates how often. A root of a minute is the shortest in which a rotation fits: its waits are 10 s prepared, 10 s of a leaf, 10 s of a
// connection, and 30 s for clocks that differ.
const (
	rootPeriod = 60 * time.Second
	keyPeriod  = 30 * time.Second
)

// rotateFor is how long the load lasts: ROTATE_SECONDS.
func rotateFor(t *testing.T) time.Duration {
	t.Helper()
	needSandbox(t)
	s := os.Getenv("ROTATE_SECONDS")
	if s == "" {
		t.Skip("a long one: make rotate")
	}
	d, err := time.ParseDuration(s + "s")
	if err != nil {
		t.Fatalf("ROTATE_SECONDS: %v", err)
	}
	return d
}

// newRotating makes an installation of several processes in which everything rotates as often as it may.
func newRotating(t *testing.T) *Installation {
	t.Helper()
	in := &Installation{User: "admin"}
	in.make(t)
	listen := freePorts(t)
	in.URL = "https://" + listen
	in.bootstrap(t, listen)
	for _, p := range in.Processes {
		if p.Name == Etcd {
			continue
		}
		p.Args = append(p.Args, "--set", "mesh.connection_age=4s")
		if p.Name == "identity" {
			p.Args = append(p.Args, "--set", "service.root_period="+rootPeriod.String(), "--set", "service.run_life=13s",
				"--set", "service.key_period="+keyPeriod.String(), "--set", "service.key_ahead=10s", "--set", "service.token_life=10m")
		}
	}
	in.Start(t)
	in.WaitReady(t)
	return in
}

// followRoots keeps a session's roots those of the moment, as `compute serve` does.
func (s *session) followRoots(ctx context.Context, y *tally) {
	for ctx.Err() == nil {
		wait := time.Second
		_ = y.call(ctx, "fetch the roots", true, func(ctx context.Context) error {
			conn, err := s.plain()
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			b, err := identityv1.NewKeyServiceClient(conn).GetTrustBundle(ctx, &identityv1.GetTrustBundleRequest{})
			if err != nil {
				return err
			}
			wait = b.GetRefresh().AsDuration()
			_, err = s.access.Follow.Take(b.GetRoots())
			return err
		})
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// host makes a self-hosted target and starts a process that carries its runs, with the root of now in a file that nobody changes.
func (r *rotating) host(ctx context.Context, t *testing.T, in *Installation) *Process {
	t.Helper()
	target, err := r.lab.Computes().CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: r.lab.Workspace, ComputeId: "elsewhere", Kind: computev1.Compute_KIND_SELF_HOSTED, MaxRuns: 2})
	if err != nil {
		t.Fatal(err)
	}
	r.hosted = target.GetName()
	sp, err := r.lab.Directory().CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "host"})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := r.lab.Directory().AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.lab.Client.Access().CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: "/", Role: "roleDefinitions/agent-host", Principal: sp.GetUid()}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(in.base, "host")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"secret": secret.GetSecret(), "ca.pem": string(in.CA)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := in.process("host", "compute", "serve", r.hosted, "--server", in.URL, "--ca", filepath.Join(dir, "ca.pem"), "--drain", "1s",
		"--client-id", secret.GetClientId(), "--client-secret-file", filepath.Join(dir, "secret"), "--roots-file", filepath.Join(dir, "roots.pem"))
	in.Processes = append(in.Processes, p)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// D10, A3: leaves of ten seconds, a root of a minute, signing keys of half a minute; every service is called, runs are carried by agents here and
// by a process that is never started again, streams are open. Of all requests none fails.
func TestRotateUnderLoad(t *testing.T) {
	long := rotateFor(t)
	in := newRotating(t)
	ctx, cancel := context.WithTimeout(t.Context(), long+5*time.Minute)
	defer cancel()
	access := in.Access()
	roots, err := agent.NewRoots(in.CA)
	if err != nil {
		t.Fatal(err)
	}
	access.Follow = roots
	r := &rotating{session: &session{access: access}, y: newTally(), runs: make(map[string]int)}
	if err := r.signIn(ctx); err != nil {
		t.Fatal(err)
	}
	loading, stop := context.WithCancel(ctx)
	defer stop()
	following, unfollow := context.WithCancel(ctx)
	defer unfollow()
	var wg, behind sync.WaitGroup
	behind.Go(func() { r.followRoots(following, r.y) })
	behind.Go(func() {
		until(following, 2*time.Minute, func(int) { _ = r.y.call(following, "sign in", true, r.signIn) })
	})
	r.lab = &Lab{Access: access, Changes: make(map[string]string)}
	if r.lab.Client, err = r.commands(r.y); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.lab.Close() }()
	if err := r.lab.furnish(ctx, "rotate"); err != nil {
		t.Fatal(err)
	}
	host := r.host(ctx, t, in)
	r.endpoint, _ = r.lab.deploy(ctx, t)
	credentials, err := r.lab.Endpoints().GetCredentials(ctx, &inferencev1.GetCredentialsRequest{Name: r.endpoint.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	r.key = credentials.GetPrimaryKey()
	// A whole rotation at least, however short the load was to be: a root that is gone is what may break something. The run lasts as long.
	longest := long + rootPeriod
	steps := int(longest / (500 * time.Millisecond))
	request := r.lab.count("all-the-time", steps, 500*time.Millisecond)
	run, err := r.lab.Runs().SubmitRun(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	r.run = run.GetName()

	begin := time.Now()
	s := &seen{leaves: make(map[string]bool), active: make(map[string]bool), keys: make(map[string]bool), gone: make(map[string]bool)}
	for range 3 {
		wg.Go(func() { r.reads(loading, t) })
	}
	wg.Go(func() { r.writes(loading, t) })
	wg.Go(func() { r.scores(loading) })
	wg.Go(func() { r.carries(loading, t, r.lab.Compute) })
	wg.Go(func() { r.carries(loading, t, r.hosted) })
	wg.Go(func() { r.handshakes(loading, s) })
	wg.Go(func() { r.watches(loading, t, s) })
	r.streams(ctx, &wg, r.run, steps)
	over := time.After(long)
	for whole := false; !whole; {
		select {
		case <-over:
			over = nil
		case <-time.After(time.Second):
			whole = over == nil && (s.revoked() > 0 || time.Since(begin) > longest-5*time.Second)
		case <-host.Ended():
			t.Errorf("`compute serve` has ended: %v\n%s", host.Err(), host.Output())
			whole = true
		}
	}
	took := time.Since(begin).Round(time.Second)
	stop()
	wg.Wait()
	r.wantKept(ctx, t, in)
	unfollow()
	behind.Wait()

	r.y.mu.Lock()
	defer r.y.mu.Unlock()
	t.Logf("%d requests in %s, %d failed; %d repeats as docs/retries.md allows; %d streams opened; runs completed %v", r.y.requests, took, r.y.total(), r.y.repeats, r.y.streams, r.runs)
	t.Logf("seen: %d leaves of the gateway, %d roots that signed, %d roots revoked, %d signing keys", len(s.leaves), len(s.active), len(s.gone), len(s.keys))
	for _, what := range slices.Sorted(maps.Keys(r.y.by)) {
		t.Logf("  %6d %s", r.y.by[what], what)
	}
	t.Logf("roots: %s", strings.Join(s.phases, " | "))
	for what, n := range r.y.failed {
		t.Errorf("FAILED %d × %s", n, what)
	}
	for _, w := range r.y.words {
		t.Logf("  %s", w)
	}
	for name, x := range map[string][2]int{
		"leaves": {len(s.leaves), int(long / LeafLife)}, "roots that signed": {len(s.active), 1 + int((long-20*time.Second)/(rootPeriod+15*time.Second))},
		"roots revoked": {len(s.gone), max(1, int((long-time.Minute)/(rootPeriod+15*time.Second)))}, "signing keys": {len(s.keys), int(long/keyPeriod) - 1},
		"runs here": {r.runs["here"], 1}, "runs elsewhere": {r.runs["elsewhere"], 1},
	} {
		if x[0] < x[1] {
			t.Errorf("%d %s, and at least %d were to be", x[0], name, x[1])
		}
	}
	for _, p := range in.Processes {
		// Without force nothing hangs on a root when it goes.
		if b, err := os.ReadFile(p.output()); err != nil || bytes.Contains(b, []byte("connections were closed whose root is not believed")) {
			t.Errorf("%s has closed connections of a root that went: %v", p.Name, err)
		}
	}
	if t.Failed() {
		for _, p := range in.Processes {
			t.Logf("%s:\n%s", p.Name, p.Output())
		}
	}
}

// shown is the certificate that the gateway shows, which is believed by the roots of the moment.
func (a Access) shown(ctx context.Context) ([]byte, error) {
	d := tls.Dialer{Config: a.TLS()}
	c, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(a.URL, "https://"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil, errors.New("no TLS")
	}
	return t.ConnectionState().PeerCertificates[0].Raw, nil
}

// handshakes notes the certificates that the gateway shows.
func (r *rotating) handshakes(ctx context.Context, s *seen) {
	until(ctx, 500*time.Millisecond, func(int) {
		_ = r.y.call(ctx, "handshake", false, func(ctx context.Context) error {
			leaf, err := r.access.shown(ctx)
			if err == nil {
				s.leaves[string(leaf)] = true
			}
			return err
		})
	})
}

// wantKept waits until the roots that `compute serve` has kept are those of now.
func (r *rotating) wantKept(ctx context.Context, t *testing.T, in *Installation) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := r.plain()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	if err := poll(ctx, func() error {
		b, err := os.ReadFile(filepath.Join(in.base, "host", "roots.pem"))
		if err != nil {
			return err
		}
		now, err := identityv1.NewKeyServiceClient(conn).GetTrustBundle(ctx, &identityv1.GetTrustBundleRequest{})
		if err != nil {
			return err
		}
		var kept []string
		for {
			var block *pem.Block
			if block, b = pem.Decode(b); block == nil {
				break
			}
			kept = append(kept, string(block.Bytes))
		}
		if !slices.EqualFunc(kept, now.GetRoots(), func(a string, b []byte) bool { return a == string(b) }) {
			return fmt.Errorf("%d roots are kept, and they are not the %d of now", len(kept), len(now.GetRoots()))
		}
		return nil
	}); err != nil {
		t.Errorf("`compute serve`: %v", err)
	}
}

// D10: identity is killed, and not asked to stop, as soon as each phase of a rotation is seen, and goes on where it was.
func TestRotateKilled(t *testing.T) {
	rotateFor(t)
	in := newRotating(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	access := in.Access()
	roots, err := agent.NewRoots(in.CA)
	if err != nil {
		t.Fatal(err)
	}
	access.Follow = roots
	sess := &session{access: access}
	if err := sess.signIn(ctx); err != nil {
		t.Fatal(err)
	}
	identity := in.Processes[slices.IndexFunc(in.Processes, func(p *Process) bool { return p.Name == "identity" })]
	conn, err := sess.plain()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	keys := identityv1.NewKeyServiceClient(conn)
	list := func() (all *identityv1.ListAuthoritiesResponse) {
		t.Helper()
		if err := poll(ctx, func() (err error) {
			if b, err := keys.GetTrustBundle(ctx, &identityv1.GetTrustBundleRequest{}); err == nil {
				_, _ = roots.Take(b.GetRoots())
			}
			all, err = keys.ListAuthorities(ctx, &identityv1.ListAuthoritiesRequest{})
			return err
		}); err != nil {
			t.Fatalf("%v\n%s", err, identity.Output())
		}
		return all
	}
	first, kills := list().GetAuthorities()[0].GetPin(), 0
	s := &seen{active: make(map[string]bool), gone: make(map[string]bool)}
	known := map[string]bool{}
	for s.take(list(), known); !s.gone[first]; s.take(list(), known) {
		if len(s.phases) > kills+1 {
			kills++
			t.Logf("killed when the roots were %s", s.phases[kills])
			if err := identity.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := identity.Start(); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no rotation came to its end: %v\n%s", s.phases, identity.Output())
		case <-time.After(100 * time.Millisecond):
		}
	}
	if want := []string{"ACTIVE", "ACTIVE PREPARED", "OLD ACTIVE", "TAINTED ACTIVE", "ACTIVE"}; !slices.Equal(s.phases[:min(5, len(s.phases))], want) {
		t.Errorf("the phases were %v, not %v", s.phases, want)
	}
	if kills < 3 {
		t.Errorf("%d kills", kills)
	}
	if err := poll(ctx, func() error { return access.probe(ctx) }); err != nil {
		t.Error(err)
	}
	t.Logf("%d kills; the phases were %v", kills, s.phases)
}
