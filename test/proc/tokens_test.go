package proc

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// G2, A1: a program takes tokens without pause while the process is killed. Its tokens share events, and all that it got are counted in them: no
// fewer, and where the count is ahead of them, the event says so.
func TestTokensAreCountedThroughKills(t *testing.T) {
	if d := long(t); d < 30*time.Second {
		t.Skip("it waits for a minute: make proc, with PROC_SECONDS of 30 or more")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	in := New(t, false)
	l, err := NewLab(ctx, in.Access(), "tokens")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	sp, err := l.Directory().CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: "counted"})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := l.Directory().AddServicePrincipalSecret(ctx, &identityv1.AddServicePrincipalSecretRequest{Name: sp.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	var asked, got atomic.Int64
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 4 {
		conn, err := in.Access().plain("")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond): // one address may ask for 50 a second
				}
				short, end := context.WithTimeout(ctx, 2*time.Second)
				asked.Add(1)
				if _, err := identityv1.NewTokenServiceClient(conn).IssueToken(short, &identityv1.IssueTokenRequest{
					GrantType: "client_credentials", ClientId: secret.GetClientId(), ClientSecret: secret.GetSecret(),
				}); err == nil {
					got.Add(1)
				}
				end()
			}
		})
	}
	p := in.Processes[0]
	for range 3 {
		time.Sleep(4 * time.Second) // the moment is the point
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		back(t, in, l, p)
	}
	time.Sleep(2 * time.Second)
	close(stop)
	asking.Wait()

	var most, least int64
	var events, ahead int
	begin := time.Now()
	short, end := context.WithTimeout(ctx, 90*time.Second)
	defer end()
	err = poll(short, func() error {
		most, least, events, ahead = 0, 0, 0, 0
		r, err := l.Activity().ListActivity(short, &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000})
		if err != nil {
			return err
		}
		for _, e := range r.GetEvents() {
			if e.GetPrincipal() != secret.GetClientId() || e.GetResult() != telemetryv1.ActivityEvent_RESULT_SUCCEEDED {
				continue
			}
			events++
			most += e.GetCount()
			if s := e.GetDetails()["calls_at_least"]; s != "" {
				ahead++
				n, err := strconv.ParseInt(s, 10, 64)
				if err != nil || n > e.GetCount() {
					t.Fatalf("an event says at least %q and at most %d", s, e.GetCount())
				}
				least += n
			} else {
				least += e.GetCount()
			}
		}
		if most < got.Load() {
			return fmt.Errorf("%d tokens are counted in %d events, and %d were given", most, events, got.Load())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if least > asked.Load() || ahead == 0 || got.Load() < 100 || events > int(got.Load())/3 {
		t.Errorf("asked %d, got %d, at least %d and at most %d counted, in %d events, %d of them ahead", asked.Load(), got.Load(), least, most, events, ahead)
	}
	t.Logf("asked %d, got %d, at least %d and at most %d counted, in %d events, %d of them ahead; seen after %s", asked.Load(), got.Load(), least, most, events, ahead, time.Since(begin).Round(time.Second))
}
