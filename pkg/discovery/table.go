package discovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// table is the process's picture of the prefix, kept by one watch. What it knows it keeps while etcd is away.
type table struct {
	r    *Registry
	once sync.Once
	done chan struct{}
	kick chan struct{}

	mu       sync.Mutex
	loaded   bool
	err      error // why it is not loaded yet
	cluster  uint64
	revision int64
	current  map[string]Instance // by key
	held     map[string]Instance // gone with etcd's data, not by their lease's end: kept for a while
	heldTill time.Time
	services map[string][]Instance
	changed  chan struct{}
}

func newTable(r *Registry) *table {
	return &table{r: r, done: make(chan struct{}), kick: make(chan struct{}, 1), changed: make(chan struct{}), current: map[string]Instance{}}
}

type view struct {
	loaded   bool
	err      error
	services map[string][]Instance
	changed  <-chan struct{}
}

func (t *table) view() view {
	t.mu.Lock()
	defer t.mu.Unlock()
	return view{t.loaded, t.err, t.services, t.changed}
}

// start follows etcd from the first use on.
func (t *table) start() { t.once.Do(func() { go t.run() }) }

func (t *table) stop() {
	t.once.Do(func() { close(t.done) })
	<-t.done
}

// reload has everything read again soon: somebody has seen that the watch may be behind.
func (t *table) reload() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

func (t *table) run() {
	defer close(t.done)
	ctx := t.r.ctx
	for failures := 0; ctx.Err() == nil; {
		if err := t.follow(ctx); err != nil {
			failures++
			t.failed(ctx, err)
			select {
			case <-time.After(pause(failures)):
			case <-ctx.Done():
			}
			continue
		}
		failures = 0
	}
}

// pause is the wait after n failures: half of it is random, and 3 s at most.
func pause(n int) time.Duration {
	d := 3 * time.Second
	if n < 6 {
		d = 100 * time.Millisecond << (n - 1)
	}
	return d/2 + rand.N(d/2+1)
}

// follow reads everything and then watches, until it is time to read everything again (nil) or something fails.
func (t *table) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	patience := t.r.cfg.DialTimeout
	if !t.view().loaded {
		patience = min(patience, time.Second) // callers wait, and want to be told what for
	}
	read, stop := context.WithTimeout(ctx, patience)
	resp, err := t.r.client.Get(read, t.r.cfg.Prefix+"/", clientv3.WithPrefix())
	stop()
	if err != nil {
		return err
	}
	again := time.NewTimer(t.replace(resp))
	defer again.Stop()
	// Without WithRequireLeader a member that is cut off would keep a watch silently open.
	events := t.r.client.Watch(clientv3.WithRequireLeader(ctx), t.r.cfg.Prefix+"/", clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			return nil
		case <-t.kick:
			return nil
		case w, ok := <-events:
			if !ok {
				return errors.New("the watch has ended")
			}
			if err := w.Err(); err != nil {
				return err
			}
			t.apply(w)
		}
	}
}

// replace takes a full read. When etcd has lost its data, what was known is held until its owners had the time to register
// again. It returns when to read everything again.
func (t *table) replace(resp *clientv3.GetResponse) time.Duration {
	next := make(map[string]Instance, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		if in, ok := t.r.parse(kv.Key, kv.Value); ok {
			next[string(kv.Key)] = in
		}
	}
	grace := 2 * t.r.cfg.LeaseTTL
	now := t.r.cfg.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loaded && (resp.Header.ClusterId != t.cluster || resp.Header.Revision < t.revision) {
		t.r.cfg.Logger.Warn("etcd has lost its data: what was registered is kept for a while", "instances", len(t.current), "for", grace)
		t.held, t.heldTill = t.current, now.Add(grace)
	}
	t.cluster, t.revision, t.current = resp.Header.ClusterId, resp.Header.Revision, next
	t.publish()
	wait := t.r.cfg.Resync*3/4 + rand.N(t.r.cfg.Resync/2+1)
	if len(t.held) > 0 {
		wait = min(wait, t.heldTill.Sub(now)+10*time.Millisecond)
	}
	return wait
}

func (t *table) apply(w clientv3.WatchResponse) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.revision = max(t.revision, w.Header.Revision)
	for _, e := range w.Events {
		key := string(e.Kv.Key)
		delete(t.current, key)
		if e.Type == clientv3.EventTypePut {
			if in, ok := t.r.parse(e.Kv.Key, e.Kv.Value); ok {
				t.current[key] = in
			}
		}
	}
	t.publish()
}

// publish makes a new picture of current and held. The caller has the lock.
func (t *table) publish() {
	if len(t.held) > 0 && !t.r.cfg.Now().Before(t.heldTill) {
		t.held = nil
	}
	all := make(map[string]Instance, len(t.current)+len(t.held))
	for key, in := range t.held {
		all[key] = in
	}
	for key, in := range t.current {
		all[key] = in
	}
	t.loaded, t.err, t.services = true, nil, byService(all)
	t.signal()
}

func (t *table) signal() {
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *table) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	err = t.r.fault(ctx, err)
	t.r.cfg.Logger.Warn("etcd cannot be watched: what is known is kept", "error", err)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.loaded {
		t.err = err
		t.signal()
	}
}
