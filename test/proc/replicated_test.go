package proc

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
)

const group = "subscriptions/default/resourceGroups/default"

// mixed is load on every service that runs twice, and what was acknowledged of it.
type mixed struct {
	t    testing.TB
	conn *grpc.ClientConn
	name string // of the workspace whose secrets are set

	stop context.CancelFunc
	wg   sync.WaitGroup
	made atomic.Int64

	mu     sync.Mutex
	tried  map[string]int
	failed map[string][]error
	stored map[string]string // what was acknowledged, workspaces and secrets, and by which request
}

// mix starts callers: who read, who make workspaces with request ids, and who set secrets, which nobody repeats.
func mix(t testing.TB, conn *grpc.ClientConn, workspace string) *mixed {
	prefix := "m" + strings.ToLower(rand.Text()[:8])
	ctx, stop := context.WithCancel(context.Background())
	m := &mixed{t: t, conn: conn, name: workspace, stop: stop, tried: make(map[string]int), failed: make(map[string][]error), stored: make(map[string]string)}
	t.Cleanup(stop)
	for what, call := range map[string]func(context.Context) (string, error){
		"read identity": func(ctx context.Context) (string, error) {
			_, err := identityv1.NewSignInServiceClient(conn).WhoAmI(ctx, &identityv1.WhoAmIRequest{})
			return "", err
		},
		"read workspace": func(ctx context.Context) (string, error) {
			_, err := workspacev1.NewResourceServiceClient(conn).ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: group, PageSize: 10})
			return "", err
		},
		"read keyvault": func(ctx context.Context) (string, error) {
			_, err := keyvaultv1.NewSecretServiceClient(conn).ListSecrets(ctx, &keyvaultv1.ListSecretsRequest{Parent: workspace, PageSize: 10})
			return "", err
		},
		"read telemetry": func(ctx context.Context) (string, error) {
			_, err := telemetryv1.NewActivityServiceClient(conn).ListActivity(ctx, &telemetryv1.ListActivityRequest{Scope: group, PageSize: 10})
			return "", err
		},
		"create a workspace": func(ctx context.Context) (string, error) {
			id := fmt.Sprintf("%s-w%d", prefix, m.made.Add(1))
			w, err := workspacev1.NewResourceServiceClient(conn).CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{Parent: group, WorkspaceId: id, RequestId: rand.Text()})
			return w.GetName(), err
		},
		"set a secret": func(ctx context.Context) (string, error) {
			id := fmt.Sprintf("%s-s%d", prefix, m.made.Add(1))
			_, err := keyvaultv1.NewSecretServiceClient(conn).SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: workspace, SecretId: id, Value: []byte("canary")})
			return workspace + "/secrets/" + id, err
		},
	} {
		m.wg.Go(func() {
			for ctx.Err() == nil {
				short, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				id := rand.Text()
				made, err := call(metadata.AppendToOutgoingContext(short, "x-request-id", id))
				cancel()
				m.mu.Lock()
				m.tried[what]++
				if err != nil {
					m.failed[what] = append(m.failed[what], err)
				} else if made != "" {
					m.stored[made] = id
				}
				m.mu.Unlock()
			}
		})
	}
	return m
}

// end stops the load and prints what came of it. It returns how many calls failed.
func (m *mixed) end(what string) (failed int) {
	m.stop()
	m.wg.Wait()
	total := 0
	for kind, n := range m.tried {
		total += n
		failed += len(m.failed[kind])
		m.t.Logf("%s: %s: tried %d, failed %d", what, kind, n, len(m.failed[kind]))
		for _, err := range m.failed[kind][:min(3, len(m.failed[kind]))] {
			m.t.Logf("  %v", err)
		}
	}
	m.t.Logf("%s: tried %d, failed %d", what, total, failed)
	return failed
}

// wantStored wants everything that was acknowledged to be there, and once in the activity log.
func (m *mixed) wantStored() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	there := make(map[string]bool)
	for token := ""; ; {
		l, err := workspacev1.NewResourceServiceClient(m.conn).ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: group, PageSize: 1000, PageToken: token})
		if err != nil {
			m.t.Fatal(err)
		}
		for _, w := range l.GetWorkspaces() {
			there[w.GetName()] = true
		}
		if token = l.GetNextPageToken(); token == "" {
			break
		}
	}
	for token := ""; ; {
		l, err := keyvaultv1.NewSecretServiceClient(m.conn).ListSecrets(ctx, &keyvaultv1.ListSecretsRequest{Parent: m.name, PageSize: 1000, PageToken: token})
		if err != nil {
			m.t.Fatal(err)
		}
		for _, s := range l.GetSecrets() {
			there[s.GetName()] = true
		}
		if token = l.GetNextPageToken(); token == "" {
			break
		}
	}
	for name := range m.stored {
		if !there[name] {
			m.t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	events := 0
	err := poll(ctx, func() error { // the relay delivers what was acknowledged a moment ago
		var logged map[string]bool
		logged, events = m.logged(ctx)
		for name, id := range m.stored {
			if !logged[id] {
				return fmt.Errorf("%s was acknowledged to request %s, which is not in the activity log", name, id)
			}
		}
		return nil
	})
	if err != nil {
		m.t.Error(err)
	}
	m.t.Logf("acknowledged %d changes: all are there, and in the activity log, which has %d events here, each once", len(m.stored), events)
}

// logged are the requests of which the activity log tells that they succeeded. No event may come twice.
func (m *mixed) logged(ctx context.Context) (requests map[string]bool, events int) {
	requests, seen := make(map[string]bool), make(map[string]bool)
	for token := ""; ; {
		l, err := telemetryv1.NewActivityServiceClient(m.conn).ListActivity(ctx, &telemetryv1.ListActivityRequest{
			Scope: group, PageSize: 500, PageToken: token, Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED,
		})
		if err != nil {
			m.t.Error(err)
			return requests, len(seen)
		}
		for _, e := range l.GetEvents() {
			key := fmt.Sprintf("%s %d", e.GetService(), e.GetSeq())
			if seen[key] || seen[e.GetUid()] {
				m.t.Errorf("event %s (%s) comes twice", key, e.GetUid())
			}
			seen[key], seen[e.GetUid()] = true, true
			requests[e.GetRequestId()] = true
		}
		if token = l.GetNextPageToken(); token == "" {
			return requests, len(seen) / 2
		}
	}
}

// probing calls without repeating anything, and gives the longest time in which nothing was answered.
func probing(t testing.TB, conn *grpc.ClientConn) (stop func() (longest time.Duration, good, failed int)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var longest time.Duration
	var good, failed int
	go func() {
		defer close(done)
		var broken time.Time // since when calls fail
		for n := 0; ctx.Err() == nil; n++ {
			begin := time.Now()
			err := one(ctx, conn, n)
			switch {
			case ctx.Err() != nil:
			case err == nil:
				good++
				if !broken.IsZero() {
					longest, broken = max(longest, time.Since(broken)), time.Time{}
				}
			default:
				if failed++; status.Code(err) != codes.Unavailable {
					t.Errorf("a call that was under way: %v", err)
				}
				if broken.IsZero() {
					broken = begin
				}
			}
		}
	}()
	return func() (time.Duration, int, int) { cancel(); <-done; return longest, good, failed }
}

func policy(t testing.TB) string {
	t.Helper()
	code, out := Run(t, os.Environ(), "retry-policy", "--with-request-ids")
	if code != 0 {
		t.Fatalf("retry-policy ends with %d: %s", code, out)
	}
	return out
}

// D10, part I: every replica is restarted in turn under load, then each is killed; leaders too. What clients repeat by the documented policy
// does not fail; nothing that was acknowledged is lost, and all of it stands in the activity log once.
func TestReplicated(t *testing.T) {
	r := NewReplicated(t)
	token, err := r.Access().SignIn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	load := r.Both(t, token, policy(t))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := workspacev1.NewResourceServiceClient(load).CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{Parent: group, WorkspaceId: "replicated", RequestId: rand.Text()})
	if err != nil {
		t.Fatal(err)
	}

	t.Run("calls per second", func(t *testing.T) { rates(t, r, load, token) })
	t.Run("rolling restart", func(t *testing.T) {
		m := mix(t, load, w.GetName())
		for _, p := range r.Twice {
			begin := time.Now()
			if err := p.Signal(syscall.SIGTERM); err != nil {
				t.Errorf("%v\n%s", err, p.Output())
			} else if err := p.Err(); err != nil {
				t.Errorf("%s ended with %v\n%s", p.Name, err, p.Output())
			}
			stopped := time.Since(begin)
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			r.WaitServing(t, p)
			t.Logf("%s: stopped in %v, serving again after %v", p.Name, stopped.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		}
		if failed := m.end("rolling restart"); failed > 0 {
			t.Errorf("%d calls failed", failed)
		}
		m.wantStored()
	})

	t.Run("killed", func(t *testing.T) {
		m := mix(t, load, w.GetName())
		probe := r.Both(t, token, "")
		for _, p := range r.Twice {
			stop := probing(t, probe)
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-time.After(3 * time.Second) // calls go on without it
			longest, good, failed := stop()
			t.Logf("%s killed: without an answer for %v, %d calls answered and %d UNAVAILABLE in 3 s", p.Name, longest.Round(time.Millisecond), good, failed)
			if longest > 2*time.Second || good == 0 {
				t.Errorf("%s killed: no answer for %v", p.Name, longest)
			}
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			r.WaitServing(t, p)
		}
		m.stop()
		m.wg.Wait()
		for what, errs := range m.failed {
			for _, err := range errs {
				// What was in flight and nobody repeats; and a workspace that the killed process was making, until another one takes it over.
				begun := what == "create a workspace" && status.Code(err) == codes.Aborted
				if !begun && (status.Code(err) != codes.Unavailable || what != "set a secret") {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
		m.end("killed")
		m.wantStored()
	})

	t.Run("leader killed", func(t *testing.T) {
		m := mix(t, load, w.GetName())
		for _, service := range []string{"workspace", "keyvault", "identity"} {
			old, term := r.Leader(t, service, "outbox")
			begin := time.Now()
			if err := old.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			err := poll(ctx, func() error {
				if p, now := r.Leader(t, service, "outbox"); p == old || now == term {
					return fmt.Errorf("%s still leads", p.Name)
				}
				return nil
			})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s killed, which relayed for %s: another one after %v", old.Name, service, time.Since(begin).Round(10*time.Millisecond))
			if err := old.Start(); err != nil {
				t.Fatal(err)
			}
			r.WaitServing(t, old)
		}
		m.end("leader killed")
		m.wantStored()
	})

	t.Run("revoked", func(t *testing.T) { revoked(t, r) })
}

// rates prints how many calls a second are answered with two instances, and with one. Where all of them have the same two processors there
// is nothing to be gained; it shows what is lost.
func rates(t *testing.T, r *Replicated, load *grpc.ClientConn, token string) {
	const callers, measured = 8, 5 * time.Second
	rate := func() float64 {
		conn := r.Both(t, token, "")
		var n atomic.Int64
		var wg sync.WaitGroup
		end := time.Now().Add(measured)
		for range callers {
			wg.Go(func() {
				for i := 0; time.Now().Before(end); i++ { // no call is cut off: its error would be ours
					if err := one(t.Context(), conn, i); err != nil {
						t.Errorf("got %v", err)
						return
					}
					n.Add(1)
				}
			})
		}
		wg.Wait()
		return float64(n.Load()) / measured.Seconds()
	}
	making := func(id string) time.Duration {
		begin := time.Now()
		if _, err := workspacev1.NewResourceServiceClient(load).CreateWorkspace(t.Context(), &workspacev1.CreateWorkspaceRequest{Parent: group, WorkspaceId: id, RequestId: rand.Text()}); err != nil {
			t.Error(err)
		}
		return time.Since(begin)
	}
	two, made := rate(), making("rate-two")
	for _, p := range r.Twice {
		if strings.HasSuffix(p.Name, "-b") {
			if err := p.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	single, madeAlone := rate(), making("rate-one")
	for _, p := range r.Twice {
		if strings.HasSuffix(p.Name, "-b") {
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			r.WaitServing(t, p)
		}
	}
	t.Logf("figure replicas-two-calls %.0f calls/s ratio %.2f beside one-instance %.0f", two, two/single, single)
	t.Logf("figure replicas-two-create-workspace %.0f ms ratio %.2f beside one-instance %.0f", float64(made.Milliseconds()), made.Seconds()/madeAlone.Seconds(), float64(madeAlone.Milliseconds()))
}

// revoked signs out at one replica. No replica of any service takes the token afterwards.
func revoked(t *testing.T, r *Replicated) {
	const rounds = 20
	var late, longest time.Duration
	for range rounds {
		token, err := r.Access().SignIn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn := r.Both(t, token, "")
		calls := func() (taken int) { // each goes to the replica whose turn it is
			for n := range 8 {
				err := one(t.Context(), conn, n)
				switch status.Code(err) {
				case codes.OK:
					taken++
				case codes.Unauthenticated:
				default:
					t.Errorf("got %v", err)
				}
			}
			return taken
		}
		if n := calls(); n != 8 {
			t.Fatalf("%d of 8 calls with a new token were taken", n)
		}
		if _, err := identityv1.NewSignInServiceClient(conn).SignOut(t.Context(), &identityv1.SignOutRequest{}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for identityAsked := false; ; identityAsked = true {
			_, err := identityv1.NewSignInServiceClient(conn).WhoAmI(t.Context(), &identityv1.WhoAmIRequest{})
			if status.Code(err) != codes.Unauthenticated && !identityAsked {
				t.Error("a replica of identity takes a token that the other one has revoked")
			}
			if n := calls(); n == 0 {
				break
			}
			late = time.Since(begin)
			if late > 10*time.Second {
				t.Fatal("a revoked token is still taken after 10 s")
			}
		}
		longest = max(longest, late)
		late = 0
		_ = conn.Close()
	}
	t.Logf("%d sign-outs: the last call with a revoked token was taken %v after its sign-out had returned", rounds, longest.Round(time.Millisecond))
	if longest > time.Second {
		t.Errorf("a revoked token was taken for %v", longest)
	}
}
