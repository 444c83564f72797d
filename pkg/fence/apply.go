package fence

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// read takes the numbers out of the log's keys. Owners whose state this member does not keep are passed over: it decides nothing by them.
func (f *Fence) read(rev int64, kvs []*mvccpb.KeyValue) event {
	e := event{rev: rev, seqs: make(map[string]uint64)}
	for _, kv := range kvs {
		f.note(&e, kv)
	}
	return e
}

func (f *Fence) note(e *event, kv *mvccpb.KeyValue) {
	owner := strings.TrimPrefix(string(kv.Key), f.logPrefix())
	for _, o := range f.cfg.Owners {
		if o != owner {
			continue
		}
		seq, err := strconv.ParseUint(string(kv.Value), 10, 64)
		if err != nil {
			seq = 1<<64 - 1 // never reached, and so closed
		}
		e.seqs[o] = max(e.seqs[o], seq)
	}
}

// watch follows the log from after rev.
func (in *life) watch(rev int64) error {
	f := in.f
	for {
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(in.ctx))
		err := in.follow(f.cfg.Client.Watch(ctx, f.logPrefix(), clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithProgressNotify()), &rev)
		cancel()
		if in.ctx.Err() != nil {
			return nil //nolint:nilerr // the life has ended, and with it the watch
		}
		if errors.Is(err, rpctypes.ErrCompacted) {
			if f.off.resume {
				rev = -1 // now
				continue
			}
			return errors.New("etcd has compacted the log further than it was read") // a new life loads it whole
		}
		pause(in.ctx, 50*time.Millisecond) // and go on from where it ended, never from now
	}
}

func (in *life) follow(c clientv3.WatchChan, rev *int64) error {
	for r := range c {
		if err := r.Err(); err != nil {
			return err
		}
		if r.Header.ClusterId != 0 && r.Header.ClusterId != in.cluster {
			in.cancel(errCluster)
			return errCluster
		}
		if r.IsProgressNotify() {
			*rev = max(*rev, r.Header.Revision) // keeps the place in the log young, and says nothing of what is applied
			continue
		}
		// All events of one answer are one step; etcd does not split a revision.
		e := event{seqs: make(map[string]uint64)}
		for _, ev := range r.Events {
			if ev.Kv.ModRevision <= *rev {
				continue
			}
			e.rev = max(e.rev, ev.Kv.ModRevision)
			if ev.Type == clientv3.EventTypePut {
				in.f.note(&e, ev.Kv)
			}
		}
		if e.rev == 0 {
			continue
		}
		*rev = e.rev
		in.f.at("event")
		in.mu.Lock()
		in.pending = append(in.pending, e)
		in.mu.Unlock()
		in.wake()
	}
	return errors.New("the watch ended")
}

// wake has apply look at what has come.
func (in *life) wake() {
	select {
	case in.kick <- struct{}{}:
	default:
	}
}

// brought takes up that owner's state is as of seq.
func (in *life) brought(owner string, seq uint64) {
	in.mu.Lock()
	back := seq < in.needs[owner]
	in.mu.Unlock()
	if back {
		in.stop()
		in.cancel(errWentBack)
		return
	}
	in.wake()
}

// advance takes the events out that the state has come up to, and gives the revision that it is at.
func (in *life) advance() int64 {
	in.f.mu.Lock()
	delivered := maps.Clone(in.f.delivered)
	in.f.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.pending) > 0 {
		e := in.pending[0]
		for o, seq := range e.seqs {
			if delivered[o] < seq && !in.f.off.apply {
				return in.reached
			}
		}
		for o, seq := range e.seqs {
			in.needs[o] = max(in.needs[o], seq)
		}
		in.reached, in.pending = e.rev, in.pending[1:]
	}
	return in.reached
}

// stop takes the view away: nothing that was decided in this life takes effect any more.
func (in *life) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stopped = true
	if v := in.f.cur.Load(); v != nil && v.life == in && in.f.cur.CompareAndSwap(v, nil) {
		close(v.next)
	}
}

// swap makes next the present view. ok is false if the life is over.
func (in *life) swap(next *View) (first, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopped {
		return false, false
	}
	old := in.f.cur.Swap(next)
	if old != nil {
		close(old.next)
	}
	return old == nil, true
}

// apply makes the views: swap, quiesce, publish.
func (in *life) apply() error {
	f := in.f
	for {
		select {
		case <-in.ctx.Done():
			return nil
		case <-in.kick:
		case <-in.again:
			if err := in.publish(); err != nil {
				return err
			}
			continue
		}
		rev := in.advance()
		if old := f.cur.Load(); rev == 0 || old != nil && old.life == in && old.rev >= rev {
			continue
		}
		next := &View{life: in, rev: rev, next: make(chan struct{})}
		in.views = append(in.views, next)
		if f.off.quiesce {
			in.claimed.Store(rev)
			_ = in.publish()
		}
		first, ok := in.swap(next)
		if !ok {
			return nil
		}
		f.at("swapped")
		if first {
			f.cfg.Logger.InfoContext(in.ctx, "the fence is joined", "revision", rev)
		}
		if !f.off.quiesce && !in.quiesce(next) {
			return nil
		}
		in.claimed.Store(rev)
		if err := in.publish(); err != nil {
			return err
		}
	}
}

// quiesce waits until no section is open on any view but the present one (r3). It is false when the life ended before.
func (in *life) quiesce(present *View) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		kept := in.views[:0]
		busy := false
		for _, v := range in.views {
			if v == present {
				kept = append(kept, v)
			} else if v.open.Load() > 0 {
				busy = true
				kept = append(kept, v)
			}
		}
		if !busy {
			in.views = kept
			return true
		}
		in.views = kept
		select {
		case <-in.f.drained:
		case <-tick.C:
		case <-in.ctx.Done():
			return false
		}
	}
}

// publish has the key say what was claimed.
func (in *life) publish() error {
	f := in.f
	for in.ctx.Err() == nil {
		in.me.Applied = in.claimed.Load()
		ctx, cancel := context.WithTimeout(in.ctx, f.cfg.Times.Renew)
		compare := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(in.key), "=", in.born), clientv3.Compare(clientv3.LeaseValue(in.key), "=", in.lease)}
		if f.off.ownKey {
			compare = nil
		}
		txn, err := f.cfg.Client.Txn(ctx).If(compare...).Then(clientv3.OpPut(in.key, in.me.encode(), clientv3.WithLease(in.lease))).Commit()
		cancel()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound) || err == nil && !txn.Succeeded:
			return errKeyLost
		case err == nil:
			f.at("published")
			return nil
		}
		pause(in.ctx, 50*time.Millisecond)
	}
	return nil
}

// confirmed moves the deadline (r1): the lease lives at least ttl from when its renewal was sent.
func (in *life) confirmed(sent time.Duration, ttl int64) {
	t := in.f.cfg.Times
	until := sent + min(t.Lease, time.Duration(ttl)*time.Second) - t.Margin
	if int64(until) > in.until.Load() {
		in.until.Store(int64(until))
	}
}

// keep renews the lease, and looks whether it still is one.
func (in *life) keep() error {
	f := in.f
	tick := time.NewTicker(f.cfg.Times.Renew)
	defer tick.Stop()
	var behind lag
	for {
		if err := in.renew(&behind); err != nil {
			return err
		}
		if f.indebted() {
			f.settle(in.ctx)
		}
		in.late.Store(f.cfg.Boottime() >= time.Duration(in.until.Load()))
		select {
		case <-tick.C:
		case <-in.ctx.Done():
			return nil
		}
	}
}

// lag is a revision of the log that the key has not come up to, and since when.
type lag struct {
	rev   int64 // 0 for none
	since time.Duration
}

func (in *life) renew(behind *lag) error {
	f := in.f
	ctx, cancel := context.WithTimeout(in.ctx, max(f.cfg.Times.Renew, 100*time.Millisecond))
	defer cancel()
	sent := f.cfg.Boottime()
	alive, err := f.cfg.Client.KeepAliveOnce(ctx, in.lease)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return errKeyLost
	}
	if err != nil {
		return nil
	}
	if f.off.fromSend {
		sent = f.cfg.Boottime()
	}
	if f.off.term {
		in.confirmed(sent, alive.TTL)
		return nil
	}
	// A deposed leader may say that it renewed. What the present one knows confirms it, if it is the same (r8).
	txn, err := f.cfg.Client.Txn(ctx).Then(clientv3.OpGet(in.key), clientv3.OpGet(f.logKey(headName))).Commit()
	if err != nil {
		return nil
	}
	own, head := txn.Responses[0].GetResponseRange().GetKvs(), txn.Responses[1].GetResponseRange().GetKvs()
	switch {
	case txn.Header.ClusterId != in.cluster || alive.ClusterId != in.cluster || txn.Header.Revision < in.seen:
		return errCluster
	case len(own) == 0 || own[0].CreateRevision != in.born && !f.off.ownKey || clientv3.LeaseID(own[0].Lease) != in.lease && !f.off.ownKey:
		return errKeyLost
	}
	in.seen = txn.Header.Revision
	if alive.RaftTerm == txn.Header.RaftTerm {
		in.confirmed(sent, alive.TTL)
	}
	var says member
	if json.Unmarshal(own[0].Value, &says) == nil && says.Applied < in.claimed.Load() {
		select { // a late duplicate of an earlier publish
		case in.again <- struct{}{}:
		default:
		}
	}
	// The watchdog: one that never catches up would have every change wait for ever, since its lease is alive.
	// It is about one revision: while there is change after change the key may always be a little behind.
	now := f.cfg.Boottime()
	switch {
	case len(head) == 0 || head[0].ModRevision <= says.Applied || f.off.watchdog:
		*behind = lag{}
	case behind.rev == 0 || behind.rev <= says.Applied:
		*behind = lag{rev: head[0].ModRevision, since: now}
	case now-behind.since > f.cfg.Times.Watch:
		return errBehind
	}
	return nil
}
