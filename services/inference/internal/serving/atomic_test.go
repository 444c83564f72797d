package serving

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

// TestSetIsAtomic regenerates one key round after round under load (A5): once Set has returned the old one opens nothing, and the other one
// never fails.
func TestSetIsAtomic(t *testing.T) {
	l := newLab(t)
	l.Expect("run_1", workspace, "dep_ep_1")
	a := l.newAgent("run_1")
	for n := range 4 {
		a.work(n, echo)
	}
	l.Set(simple("ep_1", "run_1"))
	l.ready("run_1", 4)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var over atomic.Int64 // rounds whose key is over
	var steady, stale, fresh atomic.Int64
	send := func(secret string) int {
		got, err := l.try(l.client, "POST", "/endpoints/ep_1/score", strings.NewReader("{}"), bearer, "Bearer "+secret)
		if err != nil {
			t.Errorf("%s: %v", secret, err)
		}
		return got.status
	}
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if got := send("secondary"); got != 200 {
					t.Errorf("the other key: %d", got)
				}
				steady.Add(1)
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				round := over.Load() // taken before the request begins
				if round == 0 {
					continue
				}
				if got := send(fmt.Sprintf("primary-%d", round)); got != 401 {
					t.Errorf("the key of round %d: %d", round, got)
				}
				stale.Add(1)
			}
		})
	}
	for round := int64(1); round <= 200; round++ {
		e := simple("ep_1", "run_1")
		e.Credentials[0] = key(fmt.Sprintf("primary-%d", round), "key-primary")
		l.Set(e)
		over.Store(round - 1)
		if got := send(fmt.Sprintf("primary-%d", round)); got != 200 {
			t.Errorf("the key of round %d, at once: %d", round, got)
		}
		fresh.Add(1)
	}
	stop()
	wg.Wait()
	if steady.Load() == 0 || stale.Load() == 0 {
		t.Errorf("%d with the other key, %d with old ones", steady.Load(), stale.Load())
	}
}

// TestWithdrawnWhileItWaits: a request that waits for a worker, or whose body is still coming, gets no worker by a key that is over, and one that
// has a worker gets no answer.
func TestWithdrawnWhileItWaits(t *testing.T) {
	hold := make(chan struct{})
	l, a := serving(t, waiting(hold))
	first := l.begin(t.Context())
	eventually(t, func() bool { return a.served.Load() == 1 })
	waits := l.begin(t.Context())
	eventually(t, func() bool { return l.Waiting("dep_ep_1") == 1 })
	e := simple("ep_1", "run_1")
	e.Credentials = e.Credentials[1:]
	l.Set(e)
	close(hold)
	if got := <-first; got.status != 401 || a.served.Load() != 1 {
		t.Errorf("what the worker had: %v, %d served", got, a.served.Load())
	}
	if got := <-waits; got.status != 401 || a.served.Load() != 1 {
		t.Errorf("what waited: %v, %d served", got, a.served.Load())
	}
	if got := l.call(l.client, "POST", "/endpoints/ep_1/score", "{}", bearer, "Bearer secondary"); got.status != 200 {
		t.Errorf("the worker is lost to others: %v", got)
	}
	l.Remove("ep_1")
	if got := l.call(l.client, "POST", "/endpoints/ep_1/score", "{}", bearer, "Bearer secondary"); got.status != 401 {
		t.Errorf("removed: %v", got)
	}
}

// TestSwitchIsAtomic goes from keys to tokens to nothing and back.
func TestSwitchIsAtomic(t *testing.T) {
	l, _ := serving(t, echo)
	status := func(secret string) int {
		return l.call(l.client, "POST", "/endpoints/ep_1/score", "{}", bearer, "Bearer "+secret).status
	}
	for range 20 {
		e := simple("ep_1", "run_1")
		l.Set(e)
		if k, o := status("primary"), status("token"); k != 200 || o != 401 {
			t.Fatalf("keys: %d %d", k, o)
		}
		e = simple("ep_1", "run_1")
		e.Auth, e.Credentials, e.Others = inferencev1.Endpoint_AUTH_TOKEN, e.Others, e.Credentials
		l.Set(e)
		if k, o := status("primary"), status("token"); k != 401 || o != 200 {
			t.Fatalf("tokens: %d %d", k, o)
		}
		e = simple("ep_1", "run_1")
		e.Auth, e.Credentials = inferencev1.Endpoint_AUTH_NONE, nil
		l.Set(e)
		if k := status("wrong"); k != 200 {
			t.Fatalf("none: %d", k)
		}
	}
}
