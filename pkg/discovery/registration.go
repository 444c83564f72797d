package discovery

import (
	"context"
	"errors"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Registration is one instance's entry, kept in etcd until Close.
type Registration struct {
	r       *Registry
	in      Instance
	since   time.Time
	cancel  context.CancelFunc
	stopped chan struct{}

	mu      sync.Mutex
	lease   clientv3.LeaseID // 0 while there is none
	err     error
	changed chan struct{}
}

// Register announces the instance and waits until it stands in etcd. When ctx ends first, nothing is left behind and the
// error says what is in the way.
func (r *Registry) Register(ctx context.Context, service, instance, addr string) (*Registration, error) {
	g, err := r.Announce(service, instance, addr)
	if err != nil {
		return nil, err
	}
	if err := g.Ready(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Announce has the instance registered as soon as etcd answers and kept so, and does not wait. Two processes must not share
// the name of an instance.
func (r *Registry) Announce(service, instance, addr string) (*Registration, error) {
	for _, name := range []string{service, instance} {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	if err := checkAddr(addr); err != nil {
		return nil, err
	}
	if r.ctx.Err() != nil {
		return nil, fault.FailedPrecondition("the registry is closed")
	}
	g := &Registration{r: r, since: r.cfg.Now(), in: Instance{Service: service, Name: instance, Addr: addr}, stopped: make(chan struct{}), changed: make(chan struct{})}
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(r.ctx)
	go g.run(ctx)
	return g, nil
}

// Ready waits until the instance stands in etcd.
func (g *Registration) Ready(ctx context.Context) error {
	for {
		g.mu.Lock()
		lease, why, changed := g.lease, g.err, g.changed
		g.mu.Unlock()
		if lease != 0 {
			return nil
		}
		select {
		case <-changed:
		case <-g.stopped:
			return fault.FailedPrecondition("the registration is closed")
		case <-ctx.Done():
			if why == nil {
				why = ctx.Err()
			}
			why = g.r.fault(ctx, why)
			return fault.Wrap(why, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
				"%s could not be registered: %s", g.in.Service, message(why))
		}
	}
}

// Close takes the entry out of etcd, if etcd answers within 2 s; else it ends with its lease.
func (g *Registration) Close() {
	g.cancel()
	<-g.stopped
}

func (g *Registration) run(ctx context.Context) {
	defer close(g.stopped)
	defer g.set(0, nil)
	for failures := 0; ctx.Err() == nil; {
		held, err := g.hold(ctx)
		if ctx.Err() != nil {
			return
		}
		g.set(0, err)
		failures++
		what := "an instance could not be registered yet"
		if held {
			failures, what = 1, "the registration is gone from etcd and is made again"
			g.r.table.reload() // whatever took the lease may have taken more
		}
		g.r.cfg.Logger.Warn(what, "service", g.in.Service, "instance", g.in.Name, "error", err)
		select {
		case <-time.After(pause(failures)):
		case <-ctx.Done():
		}
	}
}

func (g *Registration) set(lease clientv3.LeaseID, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lease, g.err = lease, err
	close(g.changed)
	g.changed = make(chan struct{})
}

var errLeaseLost = errors.New("the lease is gone")

// hold registers under a new lease and keeps that until it is lost or ctx ends. It reports whether it ever stood.
func (g *Registration) hold(ctx context.Context) (held bool, err error) {
	lease, err := g.put(ctx)
	defer func() {
		if lease != 0 && (!held || ctx.Err() != nil) { // one that was lost ends by itself
			g.r.revokeLease(lease)
		}
	}()
	if err != nil {
		return false, err
	}
	keep, stop := context.WithCancel(ctx)
	defer stop()
	alive, err := g.r.client.KeepAlive(keep, lease)
	if err != nil {
		return false, g.r.fault(ctx, err)
	}
	g.set(lease, nil)
	look := time.NewTicker(g.r.cfg.Resync)
	defer look.Stop()
	for {
		select {
		case _, ok := <-alive:
			if !ok {
				return true, errLeaseLost
			}
		case <-look.C:
			if g.missing(ctx, lease) {
				return true, errors.New("the entry was removed by somebody else")
			}
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

func (g *Registration) key() string { return g.r.target(g.in.Service) + "/" + g.in.Name }

func (g *Registration) put(ctx context.Context) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, g.r.cfg.DialTimeout)
	defer cancel()
	lease, err := g.r.client.Grant(ctx, seconds(g.r.cfg.LeaseTTL))
	if err != nil {
		return 0, g.r.fault(ctx, err)
	}
	names, err := endpoints.NewManager(g.r.client, g.r.target(g.in.Service))
	if err != nil {
		return lease.ID, fault.Internal(err, "the naming of etcd could not be used")
	}
	if err := names.AddEndpoint(ctx, g.key(), endpoints.Endpoint{Addr: g.in.Addr, Metadata: about{Version: g.r.cfg.Version, Since: g.since.Unix()}}, clientv3.WithLease(lease.ID)); err != nil {
		return lease.ID, g.r.fault(ctx, err)
	}
	return lease.ID, nil
}

// missing reports whether the entry was taken away under a lease that still lives.
func (g *Registration) missing(ctx context.Context, lease clientv3.LeaseID) bool {
	ctx, cancel := context.WithTimeout(ctx, g.r.cfg.DialTimeout)
	defer cancel()
	resp, err := g.r.client.Get(ctx, g.key())
	if err != nil {
		return false // the lease tells, if this lasts
	}
	if len(resp.Kvs) == 0 {
		return true
	}
	if clientv3.LeaseID(resp.Kvs[0].Lease) != lease {
		g.r.cfg.Logger.Error("another process registers the same instance: give each its own name", "service", g.in.Service, "instance", g.in.Name)
	}
	return false
}
