package fence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Result says how a change came to be in force.
type Result struct {
	// Revision is the change's, 0 where it is not known.
	Revision int64
	// Acked members have applied it. Expired ones were gone, or their lease ran out meanwhile.
	Acked, Expired int
	// Pending members, "service/instance", were not heard of.
	Pending []string
}

// Change says in the log that owner's state is as of seq, whose transaction is committed, and waits until every member honours it. When
// it returns nil, nothing takes effect any more that was decided on a state of owner before seq.
//
// Errors: ErrPending, and Result names who was not heard of within Times.Wait or ctx; else those of etcd, and then it is not known.
// Repeat either: a repetition waits as well.
func (f *Fence) Change(ctx context.Context, owner string, seq uint64) (r Result, err error) {
	began := time.Now()
	defer func() {
		if f.cfg.OnWait != nil {
			f.cfg.OnWait(owner, time.Since(began), r, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Times.Wait)
	defer cancel()
	rev, already, m, err := f.record(ctx, owner, seq)
	if err != nil {
		return Result{}, err
	}
	if already && f.off.repeat || f.off.wait {
		return Result{Revision: rev}, nil
	}
	f.at("recorded")
	return f.wait(ctx, rev, m)
}

// Record puts owner's number into the log without waiting for anybody, unless the log has it: what a process that died after its commit
// did not get to, and what needs nobody to wait. The error is etcd's.
func (f *Fence) Record(ctx context.Context, owner string, seq uint64) error {
	_, _, _, err := f.record(ctx, owner, seq)
	return err
}

// Recorded gives what the log says of an owner, 0 where it says nothing.
func (f *Fence) Recorded(ctx context.Context, owner string) (seq uint64, err error) {
	resp, err := f.cfg.Client.Get(ctx, f.logKey(owner))
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	_, err = fmt.Sscanf(string(resp.Kvs[0].Value), "%d", &seq)
	return seq, err
}

// WaitFor waits for a revision of the log as Change does.
func (f *Fence) WaitFor(ctx context.Context, rev int64) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Times.Wait)
	defer cancel()
	m, err := f.list(ctx)
	if err != nil {
		return Result{Revision: rev}, err
	}
	return f.wait(ctx, rev, m)
}

// members are the keys and marks that stood at one revision.
type members struct {
	at    int64
	inst  map[string]member
	marks map[string]member
}

func (f *Fence) decode(at int64, inst, marks []*mvccpb.KeyValue) members {
	m := members{at: at, inst: make(map[string]member, len(inst)), marks: make(map[string]member, len(marks))}
	for _, kv := range inst {
		m.inst[string(kv.Key)] = parse(kv)
	}
	for _, kv := range marks {
		m.marks[string(kv.Key)] = parse(kv)
	}
	return m
}

// parse reads a member. What cannot be read has applied nothing, and is waited for by its key's name.
func parse(kv *mvccpb.KeyValue) (m member) {
	if json.Unmarshal(kv.Value, &m) != nil {
		m = member{Service: "unreadable", Instance: string(kv.Key)}
	}
	return m
}

// record writes and lists in one transaction (r11). already says that the log had this number or a later one.
func (f *Fence) record(ctx context.Context, owner string, seq uint64) (rev int64, already bool, m members, err error) {
	key, value := f.logKey(owner), fmt.Sprintf("%020d", seq)
	puts := []clientv3.Op{clientv3.OpPut(key, value), clientv3.OpPut(f.logKey(headName), value)}
	gets := []clientv3.Op{clientv3.OpGet(f.instPrefix(), clientv3.WithPrefix()), clientv3.OpGet(f.markPrefix(), clientv3.WithPrefix())}
	var before members
	if f.off.listInTxn {
		if before, err = f.list(ctx); err != nil {
			return 0, false, m, err
		}
		f.at("listed")
	}
	newer := clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "<", value)}, append(slices.Clone(puts), gets...), append([]clientv3.Op{clientv3.OpGet(key)}, gets...))
	txn, err := f.cfg.Client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(append(puts, gets...)...).Else(newer).Commit()
	if err != nil {
		return 0, false, m, err
	}
	rev = txn.Header.Revision
	responses := txn.Responses
	if !txn.Succeeded {
		inner := txn.Responses[0].GetResponseTxn()
		responses = inner.GetResponses()
		if already = !inner.GetSucceeded(); already {
			rev = responses[0].GetResponseRange().GetKvs()[0].ModRevision
		}
	}
	n := len(responses)
	m = f.decode(txn.Header.Revision, responses[n-2].GetResponseRange().GetKvs(), responses[n-1].GetResponseRange().GetKvs())
	if f.off.listInTxn {
		m = before
	}
	return rev, already, m, nil
}

// list reads who there is, with etcd's quorum.
func (f *Fence) list(ctx context.Context) (members, error) {
	txn, err := f.cfg.Client.Txn(ctx).Then(clientv3.OpGet(f.instPrefix(), clientv3.WithPrefix()), clientv3.OpGet(f.markPrefix(), clientv3.WithPrefix())).Commit()
	if err != nil {
		return members{}, err
	}
	return f.decode(txn.Header.Revision, txn.Responses[0].GetResponseRange().GetKvs(), txn.Responses[1].GetResponseRange().GetKvs()), nil
}

// waiting is what a change still waits for.
type waiting struct {
	f    *Fence
	rev  int64
	keys map[string]member // that are behind, of instances
	left map[string]member // marks of those whose key is gone (r13)
	r    Result
	all  members

	burying map[string]bool // marks whose rows are being deleted
	buried  chan string     // marks of which that has ended
}

// wait waits until every key that stood has applied rev or is gone, and what is gone is done.
func (f *Fence) wait(ctx context.Context, rev int64, m members) (Result, error) {
	w := &waiting{f: f, rev: rev, keys: make(map[string]member), left: make(map[string]member), r: Result{Revision: rev}, all: m,
		burying: make(map[string]bool), buried: make(chan string, len(m.marks))}
	for key, in := range m.inst {
		if in.Applied >= rev {
			w.r.Acked++
			continue
		}
		w.keys[key] = in
	}
	for mark, in := range m.marks {
		if _, live := m.inst[f.keyOf(mark)]; !live && f.outlives(in) {
			w.left[mark] = in
			w.bury(ctx, mark)
		}
	}
	at := m.at
	for !w.done() {
		if err := w.follow(ctx, at); err == nil || ctx.Err() != nil {
			break
		}
		pause(ctx, 50*time.Millisecond)
		// The watch broke: list again. Whoever is not on the first list was born later (r11, I3).
		again, err := f.list(ctx)
		if err != nil {
			continue
		}
		at = again.at
		w.relist(ctx, again)
	}
	if w.done() {
		return w.r, nil
	}
	for _, in := range w.keys {
		w.r.Pending = append(w.r.Pending, in.String())
	}
	for _, in := range w.left {
		w.r.Pending = append(w.r.Pending, in.String())
	}
	slices.Sort(w.r.Pending)
	w.r.Pending = slices.Compact(w.r.Pending)
	return w.r, ErrPending
}

func (w *waiting) done() bool { return len(w.keys) == 0 && len(w.left) == 0 }

func (f *Fence) keyOf(mark string) string {
	return f.instPrefix() + strings.TrimPrefix(mark, f.markPrefix())
}

// outlives says whether something may take effect of a member whose key is gone. A row that this member cannot delete it cannot wait for.
func (f *Fence) outlives(in member) bool {
	return in.Class != SQLFence || f.cfg.Rows != nil && in.Place == f.cfg.Place && !f.off.row
}

// gone takes a key out; its mark, where it has one, is waited for.
func (w *waiting) gone(ctx context.Context, key string) {
	delete(w.keys, key)
	mark := w.f.markOf(key)
	if in, ok := w.all.marks[mark]; ok && w.f.outlives(in) {
		w.left[mark] = in
		w.bury(ctx, mark)
		return
	}
	w.r.Expired++
}

func (w *waiting) relist(ctx context.Context, m members) {
	for key := range w.keys {
		switch in, ok := m.inst[key]; {
		case !ok:
			w.gone(ctx, key)
		case in.Applied >= w.rev:
			w.acked(key)
		}
	}
	for mark := range w.left {
		if _, ok := m.marks[mark]; !ok {
			w.cleared(mark)
		}
	}
}

func (w *waiting) acked(key string) {
	delete(w.keys, key)
	w.r.Acked++
}

func (w *waiting) cleared(mark string) {
	delete(w.all.marks, mark)
	if _, ok := w.left[mark]; ok {
		delete(w.left, mark)
		w.r.Expired++
	}
}

// look is how often who keeps a change waiting is looked at more closely.
const look = 500 * time.Millisecond

// follow watches keys and marks from after revision at. Nil means done.
func (w *waiting) follow(whole context.Context, at int64) error {
	f := w.f
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(whole))
	defer cancel()
	inst := f.cfg.Client.Watch(ctx, f.instPrefix(), clientv3.WithPrefix(), clientv3.WithRev(at+1))
	marks := f.cfg.Client.Watch(ctx, f.markPrefix(), clientv3.WithPrefix(), clientv3.WithRev(at+1))
	tick := time.NewTicker(look)
	defer tick.Stop()
	for !w.done() {
		var r clientv3.WatchResponse
		var ok bool
		select {
		case r, ok = <-inst:
		case r, ok = <-marks:
		case mark := <-w.buried:
			delete(w.burying, mark)
			continue
		case <-tick.C:
			w.lookCloser(ctx)
			for mark := range w.left {
				w.bury(whole, mark)
			}
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		if !ok || r.Err() != nil {
			return errors.Join(errors.New("the watch ended"), r.Err())
		}
		for _, ev := range r.Events {
			key := string(ev.Kv.Key)
			if strings.HasPrefix(key, f.markPrefix()) {
				if ev.Type == clientv3.EventTypeDelete {
					w.cleared(key)
				}
				continue
			}
			if _, waited := w.keys[key]; !waited {
				continue
			}
			if ev.Type == clientv3.EventTypeDelete {
				w.gone(whole, key)
			} else if parse(ev.Kv).Applied >= w.rev {
				w.acked(key)
			}
		}
	}
	return nil
}

// bury deletes the row that a mark is about, which waits for the transactions that hold it, and then the mark. The watch tells of that.
func (w *waiting) bury(ctx context.Context, mark string) {
	in := w.left[mark]
	if in.Class != SQLFence || w.burying[mark] {
		return
	}
	w.burying[mark] = true
	go func() {
		w.f.pay(ctx, debt{row: in.Life, mark: mark})
		w.buried <- mark // there is room: each mark stands once in it
	}()
}

// lookCloser takes away the keys and marks of processes that are seen to be dead, whose stores died with them.
func (w *waiting) lookCloser(ctx context.Context) {
	f := w.f
	ctx, cancel := context.WithTimeout(ctx, look)
	defer cancel()
	here := thisProcess()
	for key, in := range w.keys {
		if in.Class == Embedded && in.Process.dead(here) {
			_, _ = f.cfg.Client.Txn(ctx).Then(clientv3.OpDelete(f.markOf(key)), clientv3.OpDelete(key)).Commit()
		}
	}
	for mark, in := range w.left {
		if in.Class == Embedded && in.Process.dead(here) {
			_, _ = f.cfg.Client.Delete(ctx, mark)
		}
	}
}
