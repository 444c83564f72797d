package fence

import (
	"context"
	"errors"
	"math/rand/v2"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestRefused(t *testing.T) {
	c := client(t, nil)
	good := func() Config {
		return Config{Client: c, Service: "svc", Instance: "a", Class: SQL, Owners: []string{"a"}}
	}
	for name, change := range map[string]func(*Config){
		"no client":                       func(c *Config) { c.Client = nil },
		"no owners":                       func(c *Config) { c.Owners = nil },
		"an owner that is the head":       func(c *Config) { c.Owners = []string{"head"} },
		"no class":                        func(c *Config) { c.Class = "" },
		"an embedded store without place": func(c *Config) { c.Class = Embedded },
		"rows that are missing":           func(c *Config) { c.Class = SQLFence },
		"a margin below idle and drift":   func(c *Config) { c.Times = Times{Margin: 3 * time.Second} },
		"no time for three renewals":      func(c *Config) { c.Times = Times{Margin: 8 * time.Second} },
		"half a second of lease":          func(c *Config) { c.Times = Times{Lease: 10500 * time.Millisecond} },
		"a negative time":                 func(c *Config) { c.Times = Times{Watch: -1} },
		"no name":                         func(c *Config) { c.Service = "" },
	} {
		cfg := good()
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	f, err := New(good())
	if err != nil {
		t.Fatal(err)
	}
	lost := func(what string, err error) {
		if !fault.Is(err, codes.Unavailable) || fault.ReasonOf(err) != faultv1.Reason_FENCE_LOST {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = f.View()
	lost("a view before it has joined", err)
	lost("an effect without a view", f.Finish(nil, func() error { t.Error("called"); return nil }))
}

// A change that all honour returns soon, and what was decided before is decided again.
func TestChange(t *testing.T) {
	t.Parallel()
	a, b := join(t, "a", client(t, nil)), join(t, "b", client(t, nil))
	r := revoker(t)
	va := a.serves()
	for seq := uint64(1); seq < 20; seq++ {
		w := revoke(r, seq)
		a.Delivered("a", seq)
		b.Delivered("a", seq)
		if !w.returned(20*time.Second) || w.r.Acked != 2 || len(w.r.Pending) != 0 {
			t.Fatalf("change %d: %+v, %v", seq, w.r, w.err)
		}
		if err := a.Finish(va, func() error { return nil }); !errors.Is(err, ErrStale) {
			t.Fatalf("decided before: %v", err)
		}
		if va = a.serves(); va.Revision() < w.r.Revision {
			t.Fatalf("serves %d after a change at %d returned", va.Revision(), w.r.Revision)
		}
		if !a.effect(va) {
			t.Fatal("decided after it, and refused")
		}
	}
	// An earlier number is in force with the later one, and a revision can be waited for.
	if res, err := r.Change(t.Context(), "a", 3); err != nil || res.Acked != 2 {
		t.Errorf("%+v, %v", res, err)
	}
	if res, err := r.WaitFor(t.Context(), va.Revision()); err != nil || res.Acked != 2 {
		t.Errorf("%+v, %v", res, err)
	}
	// An owner that nobody follows is nobody's to wait for.
	if res, err := r.Change(t.Context(), "z", 1); err != nil || res.Acked != 2 {
		t.Errorf("%+v, %v", res, err)
	}
	all, err := List(t.Context(), r.cfg.Client, r.cfg.Prefix)
	if err != nil || len(all) != 2 || all[0].Instance != "a" || all[0].Applied < all[0].Head || all[0].Lease <= 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

// What went back to an earlier state decides nothing until it has caught up.
func TestStateThatGoesBack(t *testing.T) {
	t.Parallel()
	m := join(t, "m", client(t, nil))
	w := revoke(revoker(t), 5)
	m.Delivered("a", 5)
	if !w.returned(20 * time.Second) {
		t.Fatal(w.err)
	}
	v := m.serves()
	m.Delivered("a", 4)
	if m.effect(v) {
		t.Error("an effect on a state that is gone")
	}
	time.Sleep(time.Second)
	if _, err := m.View(); err == nil {
		t.Error("it decides with an earlier state than the log's")
	}
	m.Delivered("a", 5)
	m.serves()
}

// A member that leaves in order is not waited for, and leaves nothing behind.
func TestLeaves(t *testing.T) {
	t.Parallel()
	m := join(t, "m", client(t, nil), func(f *Fence) { f.cfg.Class, f.cfg.Place = Embedded, "here" })
	v := m.serves()
	m.stop()
	<-m.ended
	if m.effect(v) {
		t.Error("an effect after it left")
	}
	r := revoker(t)
	if res, err := r.Change(t.Context(), "a", 1); err != nil || res.Acked != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	got, err := r.cfg.Client.Get(t.Context(), r.cfg.Prefix+"/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || len(got.Kvs) != 2 { // the log
		t.Errorf("left behind: %v, %v", got.Kvs, err)
	}
}

// What a dead process of this machine has left is taken away by whoever waits for it, and by its successor.
func TestDeadProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, _, _ := lives(cmd.Process.Pid)
	here := thisProcess()
	other := process{Boot: here.Boot, Space: here.Space, PID: cmd.Process.Pid, Start: start}
	r := revoker(t, func(f *Fence) { f.cfg.Times.Wait = 3 * time.Second })
	dead := member{Class: Embedded, Service: "svc", Instance: "dead", Place: "there", Process: other}
	leave := func(key string) {
		if _, err := r.cfg.Client.Put(t.Context(), key, dead.encode()); err != nil {
			t.Fatal(err)
		}
	}
	leave(r.instPrefix() + "svc/1")
	leave(r.markPrefix() + "svc/1")
	leave(r.markPrefix() + "svc/2")
	if w := revoke(r, 1); w.returned(20*time.Second) || len(w.r.Pending) != 1 || w.r.Pending[0] != "svc/dead" {
		t.Errorf("it is alive: %+v, %v", w.r, w.err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if w := revoke(r, 1); !w.returned(20 * time.Second) {
		t.Errorf("it is dead: %+v, %v", w.r, w.err)
	}
	// On another machine nobody sees it. Its successor holds the lock of the same store.
	dead.Process.Boot = "another"
	leave(r.instPrefix() + "svc/3")
	leave(r.markPrefix() + "svc/3")
	if w := revoke(r, 1); w.returned(20 * time.Second) {
		t.Errorf("it may live: %+v", w.r)
	}
	another := single(t, "other-store", client(t, nil), func(f *Fence) { f.cfg.Class, f.cfg.Place = Embedded, "elsewhere" }).run()
	another.Delivered("a", 1)
	another.serves()
	if w := revoke(r, 1); w.returned(20 * time.Second) {
		t.Errorf("it may live: %+v", w.r)
	}
	m := single(t, "successor", client(t, nil), func(f *Fence) { f.cfg.Class, f.cfg.Place = Embedded, "there" }).run()
	m.Delivered("a", 1)
	m.serves()
	if w := revoke(r, 1); !w.returned(20 * time.Second) {
		t.Errorf("it has a successor: %+v, %v", w.r, w.err)
	}
}

// Members that come, go and are cut off, and effects all the time: none is decided before a change that has returned.
func TestRandom(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	var truth, back atomic.Uint64 // the last change that is committed, and the last that has returned
	var effects, refused, broken, changes, unknown atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var proxies []*proxy
	for _, name := range []string{"a", "b", "c"} {
		p := newProxy(t)
		m := join(t, name, client(t, p))
		proxies = append(proxies, p)
		var state atomic.Uint64 // what it decides with
		wg.Go(func() {          // its stream
			for ctx.Err() == nil {
				if now := truth.Load(); now != state.Load() {
					state.Store(now)
					m.Delivered("a", now)
				}
				time.Sleep(time.Millisecond)
			}
		})
		for range 3 {
			wg.Go(func() {
				for ctx.Err() == nil {
					v, err := m.View()
					if err != nil {
						time.Sleep(time.Millisecond)
						continue
					}
					decided := state.Load()
					if rand.IntN(50) == 0 {
						time.Sleep(time.Duration(rand.IntN(2500)) * time.Millisecond)
					}
					before := back.Load() // returned before the effect
					if m.Finish(v, func() error {
						before = max(before, back.Load())
						time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
						return nil
					}) != nil {
						refused.Add(1)
						continue
					}
					effects.Add(1)
					if decided < before {
						broken.Add(1)
					}
				}
			})
		}
	}
	r := revoker(t)
	wg.Go(func() {
		for ctx.Err() == nil {
			seq := truth.Add(1)
			if _, err := r.Change(ctx, "a", seq); err != nil {
				unknown.Add(1)
				continue
			}
			changes.Add(1)
			back.Store(seq)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			p := proxies[rng.IntN(len(proxies))]
			p.cut()
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			p.release()
			time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		}
	})
	wg.Wait()
	t.Logf("seed %d: %d changes returned, %d did not, %d effects, %d refused, %d broken", seed, changes.Load(), unknown.Load(), effects.Load(), refused.Load(), broken.Load())
	if broken.Load() > 0 || changes.Load() == 0 || effects.Load() == 0 {
		t.Error("effects that were decided before a change that had returned, or nothing happened")
	}
}

func BenchmarkViewAndFinish(b *testing.B) {
	f := &Fence{}
	f.cfg.Boottime = Boottime
	f.cfg.Class = SQL
	v := &View{life: &life{f: f}, rev: 1, next: make(chan struct{})}
	v.life.until.Store(int64(1 << 62))
	f.cur.Store(v)
	nothing := func() error { return nil }
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			v, err := f.View()
			if err == nil {
				err = f.Finish(v, nothing)
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}
