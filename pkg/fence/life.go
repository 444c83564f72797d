package fence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// life is one life of a member: one lease, one key.
type life struct {
	f      *Fence
	id     string          // of its row
	gone   <-chan struct{} // closed when a transaction did not find the row; nil without one
	me     member
	lease  clientv3.LeaseID
	key    string
	born   int64        // create revision of key
	until  atomic.Int64 // the deadline, on Config.Boottime
	late   atomic.Bool  // until was seen to have passed; a renewal takes it back
	ctx    context.Context
	cancel context.CancelCauseFunc

	cluster uint64
	seen    int64 // the highest revision that etcd answered with; of keep alone

	kick  chan struct{}
	again chan struct{} // the key says less than was published

	mu      sync.Mutex
	stopped bool              // guarded by mu
	pending []event           // of the log, in order; guarded by mu
	reached int64             // the revision up to which the state has come; guarded by mu
	needs   map[string]uint64 // by owner, the number that reached rests on; guarded by mu
	views   []*View           // that may have open sections; of apply, and of bury after it
	claimed atomic.Int64      // what the key has been told to say
}

// event is what one revision of the log asks for.
type event struct {
	rev  int64
	seqs map[string]uint64
}

// member is the value of a member's key and of its mark.
type member struct {
	Applied  int64   `json:"applied"`
	Class    Class   `json:"class"`
	Service  string  `json:"service"`
	Instance string  `json:"instance"`
	Place    string  `json:"place,omitempty"`
	Life     string  `json:"life"`
	Process  process `json:"process"`
}

func (m member) String() string { return m.Service + "/" + m.Instance }

func (m member) encode() string {
	b, _ := json.Marshal(m) // strings and numbers
	return string(b)
}

// debt is what a life that is over has left, which is to be taken away in this order: its row, its mark, and the lease that ends with them.
type debt struct {
	row   string
	mark  string
	lease clientv3.LeaseID
}

var (
	errClosed   = errors.New("the member leaves")
	errKeyLost  = errors.New("its key in etcd is gone or another one's")
	errCluster  = errors.New("etcd is another cluster than before, or has lost what it knew")
	errRowGone  = errors.New("its row in the database was taken away, as that of one who is gone")
	errBehind   = errors.New("it could not apply what the log holds in time")
	errWentBack = errors.New("the state of an owner went back to an earlier one")
)

const headName = "head"

func (f *Fence) logKey(name string) string { return f.cfg.Prefix + "/log/" + name }
func (f *Fence) logPrefix() string         { return f.cfg.Prefix + "/log/" }
func (f *Fence) instPrefix() string        { return f.cfg.Prefix + "/inst/" }
func (f *Fence) markPrefix() string        { return f.cfg.Prefix + "/perm/" }

// Run joins, and joins again after each lost life, until ctx ends. Then it takes nothing more, waits until what is under way is done,
// and gives its lease up. It returns nil.
func (f *Fence) Run(ctx context.Context) error {
	for failures := 0; ctx.Err() == nil; failures++ {
		began := f.cfg.Boottime()
		err := f.live(ctx)
		if ctx.Err() != nil {
			break
		}
		f.because("its lease was given up: " + err.Error())
		f.cfg.Logger.WarnContext(ctx, "the fence is lost, and nothing is decided until it is joined again", "error", err, "failures", failures)
		if f.cfg.OnLost != nil {
			f.cfg.OnLost(err)
		}
		if f.cfg.Boottime()-began > f.cfg.Times.Lease {
			failures = 0
		}
		pause(ctx, min(f.cfg.Times.Renew/4<<min(failures, 3), f.cfg.Times.Renew))
	}
	f.because("it is stopping")
	f.settle(context.WithoutCancel(ctx))
	return nil //nolint:nilerr // the error is that of the life that ctx has ended
}

// live is one life. It returns when that is over, with why; a ctx that ended is no loss.
func (f *Fence) live(ctx context.Context) error {
	f.settle(ctx)
	if !f.off.reload {
		if err := f.caughtUp(ctx); err != nil {
			return err
		}
	}
	in := f.newLife(ctx)
	defer in.cancel(errClosed)
	var rev int64
	var err error
	if f.off.registerFirst {
		if rev, err = in.load(); err != nil {
			return err
		}
	}
	if err := in.register(); err != nil {
		return err
	}
	defer in.end()
	if !f.off.registerFirst {
		if rev, err = in.load(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.present = in
	f.mu.Unlock()
	in.wake()
	if !f.off.reload {
		defer context.AfterFunc(in.ctx, in.stop)()
	}
	var wg sync.WaitGroup
	parts := []func() error{func() error { return in.watch(rev) }, in.apply, in.keep}
	if f.cfg.Rows != nil {
		parts = append(parts, in.row, in.tidy)
	}
	for _, part := range parts {
		wg.Go(func() { in.cancel(part()) })
	}
	wg.Wait()
	return context.Cause(in.ctx)
}

// caughtUp waits until every owner has brought a state, and one that is not behind the log: a member that registers before would only
// be waited for.
func (f *Fence) caughtUp(ctx context.Context) error {
	for {
		f.mu.Lock()
		moved := f.moved
		missing := ""
		for _, o := range f.cfg.Owners {
			if _, ok := f.delivered[o]; !ok {
				missing = o
			}
		}
		f.mu.Unlock()
		if missing == "" {
			short, cancel := context.WithTimeout(ctx, f.cfg.Times.Renew)
			resp, err := f.cfg.Client.Get(short, f.logPrefix(), clientv3.WithPrefix())
			cancel()
			if err != nil {
				return errors.New("etcd does not answer")
			}
			e := f.read(resp.Header.Revision, resp.Kvs)
			f.mu.Lock()
			for o, seq := range e.seqs {
				if f.delivered[o] < seq {
					missing = o
				}
			}
			f.mu.Unlock()
		}
		if missing == "" {
			return nil
		}
		f.because("it waits for the state that " + missing + " sends")
		if f.indebted() {
			f.settle(ctx)
		}
		select {
		case <-moved:
		case <-time.After(f.cfg.Times.Renew):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *Fence) newLife(ctx context.Context) *life {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	in := &life{f: f, id: hex.EncodeToString(b[:]), kick: make(chan struct{}, 1), again: make(chan struct{}, 1), needs: make(map[string]uint64)}
	in.me = member{Class: f.cfg.Class, Service: f.cfg.Service, Instance: f.cfg.Instance, Place: f.cfg.Place, Life: in.id, Process: thisProcess()}
	in.ctx, in.cancel = context.WithCancelCause(ctx)
	return in
}

// register makes the lease and the key (r1, r2, r10).
func (in *life) register() error {
	f := in.f
	ctx, cancel := context.WithTimeout(in.ctx, f.cfg.Times.Lease/2)
	defer cancel()
	if f.cfg.Rows != nil {
		var err error
		if in.gone, err = f.cfg.Rows.Insert(ctx, in.id); err != nil {
			return errors.Join(errors.New("its row could not be stored"), err)
		}
		f.owe(debt{row: in.id}) // until it lives
		defer func() {
			if in.born == 0 {
				f.cfg.Rows.Leave()
			}
		}()
	}
	sent := f.cfg.Boottime()
	f.at("granting")
	grant, err := f.cfg.Client.Grant(ctx, int64(f.cfg.Times.Lease/time.Second))
	if err != nil {
		return errors.New("etcd gave no lease")
	}
	in.lease, in.cluster, in.seen = grant.ID, grant.ClusterId, grant.Revision
	if f.off.fromSend {
		sent = f.cfg.Boottime()
	}
	in.confirmed(sent, grant.TTL)
	in.key = f.instPrefix() + f.cfg.Service + "/" + strconv.FormatInt(int64(grant.ID), 16)
	mark := ""
	if f.cfg.Class != SQL {
		mark = f.markOf(in.key)
	}
	left := in.leaves(mark)
	f.forgive(debt{row: in.id})
	f.owe(left) // until it lives
	compare := clientv3.Compare(clientv3.CreateRevision(in.key), "=", 0)
	if f.off.ownKey {
		in.key = f.instPrefix() + f.cfg.Service + "/" + f.cfg.Instance
		compare = clientv3.Compare(clientv3.CreateRevision(in.key), ">", -1)
	}
	puts := []clientv3.Op{clientv3.OpPut(in.key, in.me.encode(), clientv3.WithLease(in.lease))}
	if mark != "" && !f.off.mark {
		puts = append(puts, clientv3.OpPut(mark, in.me.encode()))
	}
	txn, err := f.cfg.Client.Txn(ctx).If(compare).Then(puts...).Commit()
	if err != nil || !txn.Succeeded {
		return errors.New("etcd did not take the registration")
	}
	f.forgive(left)
	in.born = txn.Header.Revision
	if f.off.ownKey {
		in.born = -1
	}
	f.succeed(ctx, in)
	f.at("registered")
	return nil
}

// leaves is what this life leaves when it is over.
func (in *life) leaves(mark string) debt {
	d := debt{mark: mark, lease: in.lease}
	if in.f.cfg.Rows != nil {
		d.row = in.id
	}
	return d
}

func (f *Fence) markOf(key string) string {
	return f.markPrefix() + key[len(f.instPrefix()):]
}

// succeed takes away what dead predecessors have left: those of the same store, whose lock this process holds.
func (f *Fence) succeed(ctx context.Context, in *life) {
	if f.cfg.Class != Embedded {
		return
	}
	for _, prefix := range []string{f.markPrefix(), f.instPrefix()} {
		resp, err := f.cfg.Client.Get(ctx, prefix+f.cfg.Service+"/", clientv3.WithPrefix())
		if err != nil {
			return // the next life does it
		}
		for _, kv := range resp.Kvs {
			var m member
			if json.Unmarshal(kv.Value, &m) != nil || m.Place != f.cfg.Place || m.Class != Embedded || m.Process == in.me.Process {
				continue
			}
			_, _ = f.cfg.Client.Delete(ctx, string(kv.Key))
		}
	}
}

// load reads the log, after the registration (r2), and gives the revision from which it is to be watched.
func (in *life) load() (rev int64, err error) {
	f := in.f
	ctx, cancel := context.WithTimeout(in.ctx, f.cfg.Times.Lease/2)
	defer cancel()
	if f.off.reload && f.cur.Load() != nil {
		rev = f.cur.Load().rev
		in.pending = []event{{rev: rev}}
		return rev, nil
	}
	resp, err := f.cfg.Client.Get(ctx, f.logPrefix(), clientv3.WithPrefix())
	if err != nil {
		return 0, errors.New("the log could not be read")
	}
	rev = resp.Header.Revision
	if rev < in.born || resp.Header.ClusterId != in.cluster && in.cluster != 0 {
		return 0, errCluster
	}
	in.mu.Lock()
	in.pending = append(in.pending, f.read(rev, resp.Kvs))
	in.mu.Unlock()
	f.at("loaded")
	return rev, nil
}

// end is the end of a life: what was decided in it takes effect no more.
func (in *life) end() {
	f := in.f
	in.cancel(errClosed)
	f.mu.Lock()
	if f.present == in {
		f.present = nil
	}
	f.mu.Unlock()
	if !f.off.reload {
		in.stop()
	}
	if f.cfg.Rows != nil {
		f.cfg.Rows.Leave()
	}
	mark := ""
	if f.cfg.Class != SQL {
		mark = f.markOf(in.key)
	}
	if !f.off.drain && !in.drain() {
		// Its lease ends by itself, and its mark stays until its sections are over.
		go func() {
			for !in.drain() {
			}
			f.owe(in.leaves(mark))
		}()
		return
	}
	f.owe(in.leaves(mark))
}

// drainWithin bounds one look at whether all sections are over.
const drainWithin = 5 * time.Second

// drain waits until every section of this life is over (r12), and says whether it is.
func (in *life) drain() bool {
	end := time.NewTimer(drainWithin)
	defer end.Stop()
	for {
		open := false
		for _, v := range in.views {
			open = open || v.open.Load() > 0
		}
		if !open {
			return true
		}
		select {
		case <-in.f.drained:
		case <-time.After(5 * time.Millisecond):
		case <-end.C:
			return false
		}
	}
}

func (f *Fence) owe(d debt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.debts = append(f.debts, d)
}

func (f *Fence) forgive(debt debt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, d := range f.debts {
		if d == debt {
			f.debts = append(f.debts[:i], f.debts[i+1:]...)
			return
		}
	}
}

func (f *Fence) indebted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.debts) > 0
}

// settle takes away what lives that are over, and drained, have left in etcd. What cannot be done now is done before the next life.
func (f *Fence) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	f.mu.Lock()
	debts := f.debts
	f.debts = nil
	f.mu.Unlock()
	for _, d := range debts {
		if !f.pay(ctx, d) {
			f.owe(d)
		}
	}
}

// pay takes away what a life has left, and says whether it could. The mark stands while the row may be held.
func (f *Fence) pay(ctx context.Context, d debt) bool {
	if d.row != "" && f.cfg.Rows.Delete(ctx, d.row) != nil {
		return false
	}
	if d.mark != "" {
		if _, err := f.cfg.Client.Delete(ctx, d.mark); err != nil {
			return false
		}
	}
	if d.lease != 0 {
		_, _ = f.cfg.Client.Revoke(ctx, d.lease) // else it ends by itself
	}
	return true
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
