package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPool(t *testing.T, grace time.Duration) *Pool {
	t.Helper()
	p, err := New(Config{TLS: func(svid.Authorize) *tls.Config { return nil }, TrustDomain: "x", Grace: grace, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// sockets makes connections of which the test has the other end.
type sockets struct {
	l net.Listener
}

func newSockets(t *testing.T) *sockets {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &sockets{l}
}

// worker adds a connection to the pool, and gives it with its other end.
func (s *sockets) worker(p *Pool, run, workspace string) (*Conn, net.Conn, error) {
	far, err := net.Dial("tcp", s.l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	near, err := s.l.Accept()
	if err != nil {
		return nil, nil, err
	}
	c, err := newConn(p, nil, &counting{Conn: near}, near)
	if err == nil {
		err = p.add(c, run, workspace)
	}
	if err != nil {
		_ = near.Close()
		_ = far.Close()
	}
	return c, far, err
}

func soon() time.Time { return time.Now().Add(time.Minute) }

func TestAcquire(t *testing.T) {
	p, s := newPool(t, time.Hour), newSockets(t)
	ctx := t.Context()
	if _, err := p.Acquire(ctx, "d", soon()); !errors.Is(err, ErrRetired) {
		t.Errorf("an unknown deployment: %v", err)
	}
	p.Configure("d", []string{"a", "b"}, 1)
	if _, err := p.Acquire(ctx, "d", soon()); !errors.Is(err, ErrNoWorker) {
		t.Errorf("no replica: %v", err)
	}
	if _, _, err := s.worker(p, "a", "w"); !errors.Is(err, errNotExpected) {
		t.Errorf("not expected: %v", err)
	}
	p.Expect("a", "w", "d")
	p.Expect("b", "w", "d")
	p.Expect("c", "w", "d") // not wanted yet
	if _, _, err := s.worker(p, "a", "v"); !errors.Is(err, errNotExpected) {
		t.Errorf("of another workspace: %v", err)
	}
	for _, run := range []string{"a", "a", "b", "c"} {
		if _, _, err := s.worker(p, run, "w"); err != nil {
			t.Fatal(err)
		}
	}
	if p.Ready("a") != 2 || p.Ready("c") != 1 || p.Workers("d") != 3 {
		t.Errorf("%d %d %d", p.Ready("a"), p.Ready("c"), p.Workers("d"))
	}
	// The replica with the least to do, and never one that is not wanted.
	var held []*Conn
	count := map[string]int{}
	for range 3 {
		c, err := p.Acquire(ctx, "d", soon())
		if err != nil {
			t.Fatal(err)
		}
		count[c.Run()]++
		if len(held) == 1 && c.Run() == held[0].Run() {
			t.Error("the second request goes to the same replica")
		}
		held = append(held, c)
	}
	if count["a"] != 2 || count["b"] != 1 {
		t.Errorf("%v", count)
	}
	// A deadline, and the one place in the queue.
	if _, err := p.Acquire(ctx, "d", time.Now().Add(time.Millisecond)); !errors.Is(err, ErrLate) {
		t.Errorf("late: %v", err)
	}
	got := make(chan *Conn, 1)
	go func() {
		c, err := p.Acquire(ctx, "d", soon())
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	for p.Waiting("d") == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := p.Acquire(ctx, "d", soon()); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v", err)
	}
	// A replica that is wanted from now on serves who waits.
	p.Configure("d", []string{"c"}, 1)
	c := <-got
	if c.Run() != "c" {
		t.Errorf("served by %s", c.Run())
	}
	// The last one is the first to be used again.
	c.Release()
	for _, h := range held {
		h.Release()
	}
	p.Configure("d", []string{"a"}, 1)
	one, err := p.Acquire(ctx, "d", soon())
	if err != nil {
		t.Fatal(err)
	}
	one.Release()
	if again, err := p.Acquire(ctx, "d", soon()); err != nil || again != one {
		t.Errorf("%v", err)
	} else {
		again.Release()
	}
	p.Retire("d")
	if _, err := p.Acquire(ctx, "d", soon()); !errors.Is(err, ErrRetired) {
		t.Errorf("retired: %v", err)
	}
}

func TestDrain(t *testing.T) {
	p, s := newPool(t, time.Hour), newSockets(t)
	p.Expect("a", "w", "d")
	p.Configure("d", []string{"a"}, 1)
	if _, _, err := s.worker(p, "a", "w"); err != nil {
		t.Fatal(err)
	}
	c, err := p.Acquire(t.Context(), "d", soon())
	if err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Drain(late, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drained with a request: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Drain(t.Context(), "a") }()
	c.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := p.Drain(t.Context(), "unknown"); err != nil {
		t.Error(err)
	}
}

// TestIdleConnectionsThatEnd are noticed without a request.
func TestIdleConnectionsThatEnd(t *testing.T) {
	p, s := newPool(t, time.Hour), newSockets(t)
	p.Expect("a", "w", "d")
	p.Configure("d", []string{"a"}, 1)
	_, far, err := s.worker(p, "a", "w")
	if err != nil {
		t.Fatal(err)
	}
	if p.sweep(nil); p.Ready("a") != 1 {
		t.Fatal("one that stands is taken for ended")
	}
	_ = far.Close()
	for p.Ready("a") > 0 {
		p.sweep(nil)
		time.Sleep(time.Millisecond)
	}
	_, far, err = s.worker(p, "a", "w")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = far.Write([]byte("unasked"))
	for p.Ready("a") > 0 {
		p.sweep(nil)
		time.Sleep(time.Millisecond)
	}
}

// TestPoolUnderChange has everything happen at once: no connection has two users, everybody who asks gets an answer, and in the end nothing
// is counted as being in use.
// A connection that has stood for long is closed where no request is under way, one of a replica at a time: what it was made with may be of a root
// that goes (D10).
func TestConnectionsThatAreOld(t *testing.T) {
	s, now := newSockets(t), time.Now()
	p, err := New(Config{
		TLS: func(svid.Authorize) *tls.Config { return nil }, TrustDomain: "x", Grace: time.Hour, Age: time.Hour, Now: func() time.Time { return now }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	p.Configure("d", []string{"a"}, 1)
	p.Expect("a", "w", "d")
	for range 3 {
		if _, _, err := s.worker(p, "a", "w"); err != nil {
			t.Fatal(err)
		}
	}
	used, err := p.Acquire(t.Context(), "d", soon())
	if err != nil {
		t.Fatal(err)
	}
	used.resp.done = true // its answer has been read
	now = now.Add(50 * time.Minute)
	if found := p.sweep(nil); len(found) != 0 || p.Ready("a") != 3 {
		t.Errorf("%d were closed before their time, %d are left", len(found), p.Ready("a"))
	}
	now = now.Add(20 * time.Minute)
	for left := 2; left > 0; left-- {
		if found := p.sweep(nil); len(found) != 1 || p.Ready("a") != left {
			t.Errorf("%d were closed at once, %d are left", len(found), p.Ready("a"))
		}
	}
	if !used.alive() {
		t.Error("one that is in use was closed")
	}
	used.Release()
	if p.Ready("a") != 0 {
		t.Error("it was kept after its use")
	}
	if _, _, err := s.worker(p, "a", "w"); err != nil {
		t.Fatal(err)
	}
	again, err := p.Acquire(t.Context(), "d", soon())
	if err != nil {
		t.Fatal(err)
	}
	again.Release()
	if p.Ready("a") != 1 {
		t.Error("a new one was not kept")
	}
}

func TestPoolUnderChange(t *testing.T) {
	p, s := newPool(t, time.Millisecond), newSockets(t)
	var users sync.Map // *Conn → *atomic.Int32
	stop := make(chan struct{})
	var changes, requests sync.WaitGroup
	runs := []string{"a", "b", "c", "d"}
	deployment := func(run string) string { return map[string]string{"a": "x", "b": "x", "c": "y", "d": "y"}[run] }
	for seed := range uint64(3) {
		changes.Go(func() {
			dice := rand.New(rand.NewPCG(seed, 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				run := runs[dice.IntN(len(runs))]
				switch dice.IntN(8) {
				case 0:
					p.Forget(run)
				case 1:
					p.Retire(deployment(run))
				case 2:
					p.Configure(deployment(run), []string{run}, dice.IntN(4))
				case 3, 4:
					p.Configure(deployment(run), runs, 3)
				case 5:
					p.sweep(nil)
				default:
					p.Expect(run, "w", deployment(run))
					if _, far, err := s.worker(p, run, "w"); err == nil && dice.IntN(3) == 0 {
						_ = far.Close()
					} else if err == nil {
						changes.Go(func() { <-stop; _ = far.Close() })
					}
				}
			}
		})
	}
	var got, refused atomic.Int64
	for seed := range uint64(4) {
		requests.Go(func() {
			dice := rand.New(rand.NewPCG(seed, 2))
			for got.Load() < 500 || refused.Load() < 500 {
				ctx, cancel := context.WithCancel(t.Context())
				if dice.IntN(4) == 0 {
					cancel()
				}
				c, err := p.Acquire(ctx, []string{"x", "y"}[dice.IntN(2)], time.Now().Add(time.Duration(dice.IntN(3))*time.Millisecond))
				cancel()
				if err != nil {
					refused.Add(1)
					continue
				}
				got.Add(1)
				v, _ := users.LoadOrStore(c, new(atomic.Int32))
				n, _ := v.(*atomic.Int32)
				if n.Add(1) != 1 {
					t.Error("a connection has two users")
				}
				if dice.IntN(3) == 0 {
					c.Close()
				}
				n.Add(-1)
				c.Release()
			}
		})
	}
	requests.Wait()
	close(stop)
	changes.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.replicas {
		if r.busy != 0 || len(r.idle) != len(r.conns) {
			t.Errorf("%s: %d in use, %d of %d free", r.run, r.busy, len(r.idle), len(r.conns))
		}
	}
	for uid, g := range p.groups {
		if g.waiting.len != 0 {
			t.Errorf("%d wait for %s", g.waiting.len, uid)
		}
	}
}

func TestQueueOrder(t *testing.T) {
	var q queue
	var ws []*waiter
	for range 5 {
		w := &waiter{ready: make(chan given, 1)}
		ws = append(ws, w)
		q.push(w)
	}
	q.remove(ws[2])
	q.remove(ws[0])
	q.remove(ws[4])
	if q.len != 2 || q.pop() != ws[1] || q.pop() != ws[3] || q.first != nil || q.last != nil || q.len != 0 {
		t.Errorf("%+v", q)
	}
	q.push(ws[0])
	boom := fmt.Errorf("boom")
	q.fail(boom)
	if got := <-ws[0].ready; !errors.Is(got.err, boom) || q.len != 0 {
		t.Errorf("%v", got)
	}
}
