//go:build linux

package attack

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

const (
	// mostGrowth is how much more memory the gateway may have under attack.
	mostGrowth = 256 << 20
	// recovery is within what the gateway is itself again.
	recovery = 2 * time.Second
	// floor is what a slow call may take in any case: the attacker is on this machine. In the small tier, which runs beside other tests, it is
	// smallFloor: what holds everybody up, as handshakes that never end once did, is more than that.
	floor, smallFloor = 100 * time.Millisecond, time.Second
)

// good is the client who has to notice nothing: four callers, a call each in 4 ms.
type good struct {
	conn telemetryv1.MetricServiceClient
}

// calls makes calls until ctx ends; it returns how long each took, sorted, and the errors.
func (g *good) calls(ctx context.Context) (took []time.Duration, errs []error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range 4 {
		wg.Go(func() {
			tick := time.NewTicker(4 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				d, err := g.call()
				mu.Lock()
				took = append(took, d)
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took, errs
}

func (g *good) call() (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	began := time.Now()
	_, err := g.conn.GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: "r"})
	return time.Since(began), err
}

// p99 is a slow call among calls.
func p99(took []time.Duration) time.Duration {
	if len(took) == 0 {
		return 0
	}
	return took[len(took)*99/100]
}

// measured is what a good client has noticed of an attack, and the gateway.
type measured struct {
	before, slow time.Duration // a slow call without the attack, and beside it
	tried, lost  int64
	calls        int
	grown        int64 // bytes of memory
	ended        time.Time
}

// under has the attack made beside the good client.
func under(t *testing.T, g *good, o order, quiet func() time.Duration, memory int64) measured {
	t.Helper()
	m := measured{before: quiet()}
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		took []time.Duration
		errs []error
	}
	done := make(chan result, 1)
	go func() {
		took, errs := g.calls(ctx)
		done <- result{took, errs}
	}()
	peak := make(chan int64, 1)
	go func() {
		most, tick := int64(0), time.NewTicker(20*time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, rss(t, o.Place.Pid))
			select {
			case <-ctx.Done():
				peak <- most
				return
			case <-tick.C:
			}
		}
	}()
	r := send(t, o)
	m.ended = time.Now()
	cancel()
	got, most := <-done, <-peak
	m.slow, m.tried, m.calls, m.lost, m.grown = p99(got.took), r.Tried, len(got.took), int64(len(got.errs)), most-memory
	t.Logf("%-24s tried %7d, ended by the gateway %5d; good client: %4d calls, %d failed, p99 %s without, %s with (%.1f times); memory +%d MiB",
		o.Name, r.Tried, r.Ended, m.calls, m.lost, m.before.Round(10*time.Microsecond), m.slow.Round(10*time.Microsecond), float64(m.slow)/float64(m.before), m.grown>>20)
	if m.lost > 0 {
		t.Errorf("%d of the good client's calls failed: %v", m.lost, got.errs[0])
	}
	if r.Tried == 0 || m.calls == 0 {
		t.Error("nothing was tried")
	}
	return m
}

func TestAttacks(t *testing.T) {
	each, small := 200*time.Millisecond, true
	if s := os.Getenv("ATTACK_SECONDS"); s != "" {
		n, err := strconv.ParseFloat(s, 64)
		ok(t, err)
		each, small = time.Duration(n*float64(time.Second)), n < 1
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("ATTACK_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		ok(t, err)
		seed = n
	}
	least := floor
	if small {
		least = smallFloor
	}
	names := make([]string, 0, len(attacks))
	for name := range attacks {
		names = append(names, name)
	}
	slices.Sort(names)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })

	p := start(t)
	conn, err := grpc.NewClient("passthrough:///"+p.Addr, grpc.WithTransportCredentials(credentials.NewTLS(p.tls("h2"))))
	ok(t, err)
	defer conn.Close()
	g := &good{telemetryv1.NewMetricServiceClient(conn)}
	_, err = g.call()
	ok(t, err)
	quiet := func() time.Duration {
		ctx, cancel := context.WithTimeout(t.Context(), max(each/2, 250*time.Millisecond))
		defer cancel()
		took, errs := g.calls(ctx)
		if len(errs) > 0 {
			t.Fatalf("calls fail without an attack: %v", errs[0])
		}
		return p99(took)
	}
	memory := rss(t, p.Pid)
	var tried, failed, calls, lost int64
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			m := under(t, g, order{Name: name, For: each, Seed: seed, Place: *p}, quiet, memory)
			if m.slow > max(2*m.before, least) {
				// Of a second's calls one of a hundred is a handful, which whatever else the machine does can hold up. What the gateway lets happen
				// is there again in three times as many.
				t.Logf("slow calls took %v; once more, for longer", m.slow)
				m = under(t, g, order{Name: name, For: 3 * each, Seed: seed + 1, Place: *p}, quiet, memory)
			}
			tried, calls, lost = tried+m.tried, calls+int64(m.calls), lost+m.lost
			if m.slow > max(2*m.before, least) {
				t.Errorf("the good client's slow calls take %v, and %v without an attack", m.slow, m.before)
			}
			if m.grown > mostGrowth {
				t.Errorf("the gateway has %d MiB more than before", m.grown>>20)
			}
			before, ended := m.before, m.ended
			for {
				d, err := g.call()
				if err == nil && d <= max(2*before, least) {
					break
				}
				if time.Since(ended) > recovery {
					t.Errorf("it has not recovered: a call takes %v, %v", d, err)
					break
				}
			}
			if t.Failed() {
				failed++
			}
		})
	}
	fmt.Printf("attack: %s: tried %d, accepted %d, seed %d\n", t.Name(), tried, failed, seed)
	t.Logf("%d attacks, %d failed; tried %d times; %d good calls, %d of them lost; seed %d; small %v", len(names), failed, tried, calls, lost, seed, small)
}
