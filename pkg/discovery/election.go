package discovery

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Seat is an election that was won: a key that is the oldest below its election, under a lease that this process keeps alive.
type Seat struct {
	r        *Registry
	key      string
	lease    clientv3.LeaseID
	cluster  uint64
	revision int64 // at which the key was made
	stop     context.CancelFunc
	lost     chan struct{} // closed when the lease is not kept alive any more
}

// Campaign waits until this process is elected among those that campaign under the same name, "identity/outbox": the one that has
// waited longest. It ends with ctx, and with an error when etcd does not let this process stand, or its lease was lost while it waited.
// value is what operators read in etcd. The name is one or two of what names a service, with '/' between them.
func (r *Registry) Campaign(ctx context.Context, name, value string) (*Seat, error) {
	if err := checkElection(name); err != nil {
		return nil, err
	}
	s, err := r.stand(ctx, r.cfg.ElectionPrefix+"/"+name+"/", value)
	if err != nil {
		return nil, err
	}
	if err := s.wait(ctx, r.cfg.ElectionPrefix+"/"+name+"/"); err != nil {
		s.Resign()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, r.fault(ctx, err)
	}
	return s, nil
}

// stand puts this process in line.
func (r *Registry) stand(ctx context.Context, prefix, value string) (*Seat, error) {
	short, cancel := context.WithTimeout(ctx, r.cfg.DialTimeout)
	defer cancel()
	lease, err := r.client.Grant(short, seconds(r.cfg.ElectionTTL))
	if err != nil {
		return nil, r.fault(short, err)
	}
	life, stop := context.WithCancel(r.ctx)
	s := &Seat{r: r, key: prefix + leaseName(lease.ID), lease: lease.ID, stop: stop, lost: make(chan struct{})}
	alive, err := r.client.KeepAlive(life, lease.ID)
	if err != nil {
		close(s.lost)
		s.Resign()
		return nil, r.fault(short, err)
	}
	go func() {
		defer close(s.lost)
		for range alive { // until the channel is closed: the lease has ended, or stop was called
		}
	}()
	put, err := r.client.Put(short, s.key, value, clientv3.WithLease(lease.ID))
	if err != nil {
		s.Resign()
		return nil, r.fault(short, err)
	}
	s.cluster, s.revision = put.Header.ClusterId, put.Header.Revision
	return s, nil
}

func errSeatLost() error {
	return fault.Unavailable("the lease ended while the election was waited for")
}

// wait waits until no key of the election is older than this one.
func (s *Seat) wait(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		get, err := s.r.client.Get(ctx, prefix, clientv3.WithFirstCreate()...)
		if err != nil {
			return err
		}
		if len(get.Kvs) == 0 || get.Kvs[0].CreateRevision > s.revision {
			return errSeatLost()
		}
		if string(get.Kvs[0].Key) == s.key {
			return nil
		}
		watch, end := context.WithCancel(clientv3.WithRequireLeader(ctx))
		err = s.gone(watch, string(get.Kvs[0].Key), get.Header.Revision+1)
		end()
		if err != nil {
			return err
		}
	}
}

// gone waits until the key is deleted, at or after the revision.
func (s *Seat) gone(ctx context.Context, key string, from int64) error {
	events := s.r.client.Watch(ctx, key, clientv3.WithRev(from))
	for {
		select {
		case <-s.lost:
			return errSeatLost()
		case <-ctx.Done():
			return ctx.Err()
		case w, ok := <-events:
			if !ok {
				return errors.New("the watch has ended")
			}
			if err := w.Err(); err != nil {
				return err
			}
			for _, e := range w.Events {
				if e.Type == clientv3.EventTypeDelete {
					return nil
				}
			}
		}
	}
}

// Origin says which etcd elected, and at which of its revisions this process began to stand.
func (s *Seat) Origin() (cluster uint64, revision int64) { return s.cluster, s.revision }

// Held returns nil if this process was elected at some moment after the call: it asks a quorum of etcd.
func (s *Seat) Held(ctx context.Context) error {
	get, err := s.r.client.Get(ctx, s.key)
	if err != nil {
		return s.r.fault(ctx, err)
	}
	if len(get.Kvs) == 0 || get.Kvs[0].CreateRevision != s.revision || get.Header.ClusterId != s.cluster {
		return fault.Unavailable("this instance is not elected any more")
	}
	return nil
}

// Lost is closed when the lease is lost, or was given up: at the latest when it has ended by this process's own clock.
func (s *Seat) Lost() <-chan struct{} { return s.lost }

// Resign gives the seat up, if etcd answers within 2 s; else it ends with its lease.
func (s *Seat) Resign() {
	s.stop()
	<-s.lost
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.r.ctx), 2*time.Second)
	defer cancel()
	_, _ = s.r.client.Revoke(ctx, s.lease)
}
