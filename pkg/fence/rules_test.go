package fence

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// r1: a lease counts from when it was asked for. The answer of the grant lingers; the member believes in a lease that is over sooner.
func TestR1DeadlineFromTheSending(t *testing.T) {
	t.Parallel()
	both(t, off{fromSend: true}, func(t *testing.T, o off) bool {
		p := newProxy(t)
		m := single(t, "m", client(t, p), with(o), func(f *Fence) {
			f.cfg.Times.Lease, f.cfg.Times.Margin = 4*time.Second, 100*time.Millisecond
		})
		if _, err := m.cfg.Client.Get(t.Context(), "x"); err != nil { // connected
			t.Fatal(err)
		}
		m.Delivered("a", 0)
		m.hook = func(point string) {
			if point == "granting" {
				p.down.hold()
				time.AfterFunc(1800*time.Millisecond, p.down.release)
			}
			if point == "loaded" {
				p.cut() // and no renewal after it
			}
		}
		m.run()
		v := m.serves()
		w := revoke(revoker(t), 1)
		w.returned(20 * time.Second)
		return m.effect(v)
	})
}

// r2: the log is read after the registration. Read before, a change in between is seen by nobody.
func TestR2RegisteredBeforeTheLoad(t *testing.T) {
	t.Parallel()
	both(t, off{registerFirst: true}, func(t *testing.T, o off) bool {
		r := revoker(t)
		var w *revoking
		var once sync.Once
		m := single(t, "m", client(t, nil), with(o))
		m.hook = func(point string) {
			if point == "loaded" {
				once.Do(func() {
					w = revoke(r, 1)
					w.returned(500 * time.Millisecond)
				})
			}
		}
		m.Delivered("a", 0)
		m.run()
		v := m.serves() // of the load, which knew nothing of the change
		w.returned(20 * time.Second)
		return m.effect(v)
	})
}

// r3: published when the sections on older views are over.
func TestR3QuiescenceBeforeThePublication(t *testing.T) {
	t.Parallel()
	both(t, off{quiesce: true}, func(t *testing.T, o off) (broken bool) {
		m := join(t, "m", client(t, nil), with(o))
		v := m.serves()
		r := revoker(t)
		_ = m.Finish(v, func() error {
			w := revoke(r, 1)
			m.Delivered("a", 1)
			broken = w.returned(1500 * time.Millisecond) // and the effect comes now
			return nil
		})
		return broken
	})
}

// r3: a commit of which nothing was heard keeps its section until it must be over.
func TestR3UnknownResult(t *testing.T) {
	t.Parallel()
	both(t, off{linger: true}, func(t *testing.T, o off) bool {
		m := join(t, "m", client(t, nil), with(o), func(f *Fence) { f.cfg.Times.Idle = 2 * time.Second })
		v := m.serves()
		_ = m.Finish(v, func() error { return errEffect }) // the COMMIT is in a socket
		w := revoke(revoker(t), 1)
		m.Delivered("a", 1)
		return w.returned(2 * time.Second) // and it lands now, within Idle and the drift
	})
}

// r3: who counts itself looks at the view afterwards.
func TestR3SecondLook(t *testing.T) {
	t.Parallel()
	both(t, off{secondLook: true}, func(t *testing.T, o off) (broken bool) {
		m := join(t, "m", client(t, nil))
		v := m.serves()
		r := revoker(t)
		m.off = o
		change := func() bool {
			w := revoke(r, 1)
			m.Delivered("a", 1)
			return w.returned(10 * time.Second)
		}
		m.hook = func(point string) {
			if point == "looked" {
				m.hook = nil
				broken = change()
			}
		}
		done := m.effect(v)
		if !o.secondLook {
			change()
			done = m.effect(v) // looked at again: refused
			broken = true
		}
		return broken && done
	})
}

// r4: what was decided is checked before it takes effect. The member is cut off, its lease ends, and a request goes on that was parked.
func TestR4CheckedBeforeTheEffect(t *testing.T) {
	t.Parallel()
	both(t, off{check: true}, func(t *testing.T, o off) bool {
		p := newProxy(t)
		m := join(t, "m", client(t, p), with(o))
		v := m.serves()
		p.cut()
		w := revoke(revoker(t), 1)
		return w.returned(20*time.Second) && m.effect(v)
	})
}

// r4: and against the life that it was decided in: the member has a new lease meanwhile.
func TestR4SameLife(t *testing.T) {
	t.Parallel()
	both(t, off{sameLife: true}, func(t *testing.T, o off) bool {
		p := newProxy(t)
		m := join(t, "m", client(t, p), with(o))
		v := m.serves()
		p.cut()
		w := revoke(revoker(t), 1)
		returned := w.returned(20 * time.Second)
		p.release()
		m.Delivered("a", 1)
		for m.serves().life == v.life {
			time.Sleep(10 * time.Millisecond)
		}
		return returned && m.effect(v)
	})
}

// r6: a new lease begins with what the log says, and not with what was known.
func TestR6NewLeaseNewLoad(t *testing.T) {
	t.Parallel()
	both(t, off{reload: true}, func(t *testing.T, o off) bool {
		p := newProxy(t)
		m := join(t, "m", client(t, p), with(o))
		first := m.serves()
		p.cut()
		w := revoke(revoker(t), 1)
		returned := w.returned(20 * time.Second)
		p.release() // nothing is delivered: the state is that of before
		for range 300 {
			if v, err := m.View(); err == nil && v.life != first.life && returned && m.effect(v) {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	})
}

// r7: the deadline goes on in suspend. Without it: a clock that stood still meanwhile, as CLOCK_MONOTONIC does.
func TestR7Boottime(t *testing.T) {
	t.Parallel()
	stands := off{fromSend: true} // any mark for "the clock stands still"
	both(t, stands, func(t *testing.T, o off) bool {
		p := newProxy(t)
		var asleep atomic.Int64
		clock := func() time.Duration {
			if at := asleep.Load(); at != 0 && o == stands {
				return time.Duration(at)
			}
			return Boottime()
		}
		m := join(t, "m", client(t, p), func(f *Fence) { f.cfg.Boottime = clock })
		v := m.serves()
		p.cut()
		asleep.Store(int64(Boottime()))
		w := revoke(revoker(t), 1)
		return w.returned(20*time.Second) && m.effect(v)
	})
}

// r8: a renewal that a deposed leader acknowledged does not count: the acknowledgements are made up here, with an earlier term.
func TestR8DeposedLeader(t *testing.T) {
	t.Parallel()
	both(t, off{term: true}, func(t *testing.T, o off) bool {
		var deposed atomic.Bool
		c := client(t, nil, grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := next(ctx, d, cc, method, opts...)
			if err == nil && method == "/etcdserverpb.Lease/LeaseKeepAlive" {
				s = &fakeRenewal{ClientStream: s, on: &deposed}
			}
			return s, err
		}))
		m := join(t, "m", c, with(o))
		v := m.serves()
		deposed.Store(true)
		w := revoke(revoker(t), 1)
		return w.returned(20*time.Second) && m.effect(v)
	})
}

// fakeRenewal answers renewals without asking etcd, as a leader that does not know yet that it is none.
type fakeRenewal struct {
	grpc.ClientStream
	on   *atomic.Bool
	fake bool
	id   int64
}

func (s *fakeRenewal) SendMsg(m any) error {
	if s.fake = s.on.Load(); s.fake {
		s.id = m.(*etcdserverpb.LeaseKeepAliveRequest).GetID()
		return nil
	}
	return s.ClientStream.SendMsg(m)
}

func (s *fakeRenewal) RecvMsg(m any) error {
	if !s.fake {
		return s.ClientStream.RecvMsg(m)
	}
	r := m.(*etcdserverpb.LeaseKeepAliveResponse)
	r.ID, r.TTL, r.Header = s.id, 2, &etcdserverpb.ResponseHeader{RaftTerm: 1}
	return nil
}

// r8: a watch whose place in the log was compacted is not opened again at now.
func TestR8Compaction(t *testing.T) {
	t.Parallel()
	both(t, off{resume: true}, func(t *testing.T, o off) bool {
		p := newProxy(t)
		c := client(t, p)
		m := single(t, "m", c, with(o), func(f *Fence) {
			f.cfg.Times.Lease, f.cfg.Times.Watch = 20*time.Second, 20*time.Second
			f.cfg.Owners = []string{"a", "b"}
		}).run()
		m.Delivered("a", 0)
		m.Delivered("b", 0)
		v := m.serves()
		p.cut()
		r := revoker(t)
		w := revoke(r, 1)
		for {
			if seq, err := r.Recorded(t.Context(), "a"); err == nil && seq == 1 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		head, err := r.cfg.Client.Put(t.Context(), "elsewhere/"+t.Name(), "")
		if err != nil {
			t.Fatal(err)
		}
		compacting.Lock() // of one etcd that all tests share
		_, err = r.cfg.Client.Compact(t.Context(), head.Header.Revision)
		compacting.Unlock()
		if err != nil {
			t.Log(err) // another test's was further: as good
		}
		// The connection breaks, so that the watch is opened again.
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.release()
		time.Sleep(2 * time.Second)
		if err := r.Record(t.Context(), "b", 1); err != nil {
			t.Fatal(err)
		}
		m.Delivered("b", 1)
		if !w.returned(3 * time.Second) {
			return false
		}
		if now, err := m.View(); err == nil {
			v = now // whatever it is, it rests on the state of a before the change
		}
		return m.effect(v)
	})
}

var compacting sync.Mutex

// r9: who repeats a change waits, also if the log has it already.
func TestR9RepetitionWaits(t *testing.T) {
	t.Parallel()
	both(t, off{repeat: true}, func(t *testing.T, o off) bool {
		m := join(t, "m", client(t, nil))
		v := m.serves()
		r := revoker(t, with(o))
		if err := r.Record(t.Context(), "a", 1); err != nil { // the first revoker died here
			t.Fatal(err)
		}
		w := revoke(r, 1)
		return w.returned(500*time.Millisecond) && m.effect(v)
	})
}

// r10: a key belongs to one lease. A successor under the same key would answer for a predecessor whose commit is under way.
func TestR10KeyOfOneLease(t *testing.T) {
	t.Parallel()
	both(t, off{ownKey: true}, func(t *testing.T, o off) (broken bool) {
		p := newProxy(t)
		first := join(t, "m", client(t, p), with(o))
		v := first.serves()
		_ = first.Finish(v, func() error {
			p.cut() // it is dead for etcd; its commit is on the way
			w := revoke(revoker(t), 1)
			second := single(t, "m", client(t, nil), with(o)).run()
			second.Delivered("a", 1)
			second.serves()
			broken = w.returned(700 * time.Millisecond) // less than the lease: the commit may land
			return nil
		})
		return broken
	})
}

// r11: members are listed in the transaction of the change.
func TestR11ListedInTheTransaction(t *testing.T) {
	t.Parallel()
	both(t, off{listInTxn: true}, func(t *testing.T, o off) bool {
		var m *person
		r := revoker(t, with(o))
		arrive := func() { m = join(t, "m", client(t, nil)) }
		r.hook = func(point string) {
			if point == "listed" {
				arrive()
			}
		}
		if !o.listInTxn {
			arrive()
		}
		w := revoke(r, 1)
		returned := w.returned(3 * time.Second)
		v, err := m.View()
		return returned && err == nil && m.effect(v)
	})
}

// r12: a lease is given up after the drain.
func TestR12DrainBeforeTheEnd(t *testing.T) {
	t.Parallel()
	both(t, off{drain: true}, func(t *testing.T, o off) (broken bool) {
		m := join(t, "m", client(t, nil), with(o))
		v := m.serves()
		_ = m.Finish(v, func() error {
			m.stop()
			w := revoke(revoker(t), 1)
			broken = w.returned(time.Second)
			return nil
		})
		return broken
	})
}

// r13: what an embedded store's process may still do outlives its lease. Whoever waits hears its name.
func TestR13MarkOutlivesTheLease(t *testing.T) {
	t.Parallel()
	both(t, off{mark: true}, func(t *testing.T, o off) (broken bool) {
		p := newProxy(t)
		m := join(t, "m", client(t, p), with(o), func(f *Fence) { f.cfg.Class, f.cfg.Place = Embedded, "here" })
		v := m.serves()
		r := revoker(t, func(f *Fence) { f.cfg.Times.Wait = 5 * time.Second })
		_ = m.Finish(v, func() error {
			p.cut() // the process is paused between its check and its COMMIT
			w := revoke(r, 1)
			broken = w.returned(20 * time.Second)
			if !broken && (len(w.r.Pending) != 1 || w.r.Pending[0] != "svc/m") {
				t.Errorf("pending: %v, %v", w.r, w.err)
			}
			return nil
		})
		return broken
	})
}

// The watchdog: a member whose state never comes up to the log stops, so that changes do not wait for ever.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	for _, o := range []off{{}, {watchdog: true}} {
		t.Run(map[bool]string{false: "with", true: "without"}[o.watchdog], func(t *testing.T) {
			t.Parallel()
			m := join(t, "m", client(t, nil), with(o))
			v := m.serves()
			w := revoke(revoker(t, func(f *Fence) { f.cfg.Times.Wait = 8 * time.Second }), 1)
			if returned := w.returned(20 * time.Second); returned == o.watchdog {
				t.Errorf("returned %v with %v, %v", returned, w.r, w.err)
			} else if returned && m.effect(v) {
				t.Error("an old effect after it")
			}
		})
	}
}
