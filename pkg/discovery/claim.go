package discovery

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Owner is who has a service's store, where one process alone has it.
type Owner struct {
	// Place tells one store from another, and from a copy of it. It is compared, and says nothing to people.
	Place string `json:"place"`
	// Instance, Host and Dir say to people where it is.
	Instance string `json:"instance"`
	Host     string `json:"host"`
	Dir      string `json:"dir"`
}

// Claim is the word that a service's only store is the one at its place, kept in etcd under a lease.
type Claim struct {
	r     *Registry
	key   string
	value string
	owner Owner

	cancel  context.CancelFunc
	stopped chan struct{}
	lost    chan error
}

// Claim has the store of a service claimed for this process. It waits while etcd is away, and while the claim of another place may be one
// that a dead process has left, for which it takes two leases' lives at most. A claim of the same place is that of the process before
// this one, and is taken over. The claim is kept until Close, also over an etcd that was away or has lost its data.
//
// Errors: FAILED_PRECONDITION where another store is the service's; ctx's when it ends.
func (r *Registry) Claim(ctx context.Context, service string, o Owner) (*Claim, error) {
	if err := checkName(service); err != nil {
		return nil, err
	}
	value, err := json.Marshal(o)
	if err != nil {
		return nil, fault.Internal(err, "the owner of a store could not be written down")
	}
	c := &Claim{r: r, key: r.cfg.OwnerPrefix + "/" + service, value: string(value), owner: o, stopped: make(chan struct{}), lost: make(chan error, 1)}
	lease, err := c.win(ctx)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(r.ctx)
	c.cancel = cancel
	go c.run(life, lease)
	return c, nil
}

// Lost gives the error when another store has become the service's. The process must not serve any more.
func (c *Claim) Lost() <-chan error { return c.lost }

// Close gives the claim up, if etcd answers within 2 s; else it ends with its lease.
func (c *Claim) Close() {
	c.cancel()
	<-c.stopped
}

// win tries until the claim is had, or refused.
func (c *Claim) win(ctx context.Context) (clientv3.LeaseID, error) {
	var since time.Time // from when on another place's claim is known
	for failures := 0; ; {
		lease, other, err := c.try(ctx)
		switch {
		case ctx.Err() != nil:
			c.r.revokeLease(lease)
			return 0, ctx.Err()
		case err != nil:
			failures++
			c.r.cfg.Logger.Warn("the store cannot be claimed yet: nothing is served until it is", "key", c.key, "error", c.r.fault(ctx, err))
		case other == nil:
			return lease, nil
		case since.IsZero():
			since, failures = c.r.cfg.Now(), 1
			c.r.cfg.Logger.Warn("the service's store is claimed by another process: waiting for whether it lives", "instance", other.Instance, "host", other.Host, "dir", other.Dir)
		case c.r.cfg.Now().Sub(since) > 2*c.r.cfg.LeaseTTL:
			return 0, fault.FailedPrecondition("another process has this service's store: instance %s on %s, in %s. Two SQLite stores of one service would know different things, so this one does not serve. "+
				"Stop that one, or keep the service in PostgreSQL, where instances share a store", other.Instance, other.Host, other.Dir)
		}
		select {
		case <-time.After(pause(max(1, failures))):
		case <-ctx.Done():
		}
	}
}

// try claims once. other is who has it, where that is another place.
func (c *Claim) try(ctx context.Context) (lease clientv3.LeaseID, other *Owner, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.r.cfg.DialTimeout)
	defer cancel()
	grant, err := c.r.client.Grant(ctx, seconds(c.r.cfg.LeaseTTL))
	if err != nil {
		return 0, nil, err
	}
	defer func() {
		if err != nil || other != nil {
			c.r.revokeLease(grant.ID)
		}
	}()
	put := clientv3.OpPut(c.key, c.value, clientv3.WithLease(grant.ID))
	txn, err := c.r.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(c.key), "=", 0)).Then(put).Else(clientv3.OpGet(c.key)).Commit()
	if err != nil || txn.Succeeded {
		return grant.ID, nil, err
	}
	kv := txn.Responses[0].GetResponseRange().GetKvs()[0]
	var before Owner
	if err := json.Unmarshal(kv.Value, &before); err != nil {
		return 0, nil, errors.New("what stands at " + c.key + " is no claim")
	}
	if before.Place != c.owner.Place {
		return 0, &before, nil
	}
	txn, err = c.r.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(c.key), "=", kv.ModRevision)).Then(put).Commit()
	if err == nil && !txn.Succeeded {
		err = errors.New("another process of this store claims it at the same time")
	}
	return grant.ID, nil, err
}

// run keeps the claim, and makes it again after its lease was lost.
func (c *Claim) run(ctx context.Context, lease clientv3.LeaseID) {
	defer close(c.stopped)
	for {
		err := c.keep(ctx, lease)
		if ctx.Err() != nil {
			c.r.revokeLease(lease)
			return
		}
		if fault.Is(err, codes.FailedPrecondition) {
			c.lost <- err
			return
		}
		c.r.cfg.Logger.Warn("the claim of the store is made again", "key", c.key, "error", err)
		if lease, err = c.win(ctx); err != nil {
			if ctx.Err() == nil {
				c.lost <- err
			}
			return
		}
	}
}

// keep keeps the lease alive, and looks whether the claim is still this process's.
func (c *Claim) keep(ctx context.Context, lease clientv3.LeaseID) error {
	keep, stop := context.WithCancel(ctx)
	defer stop()
	alive, err := c.r.client.KeepAlive(keep, lease)
	if err != nil {
		return err
	}
	look := time.NewTicker(c.r.cfg.Resync)
	defer look.Stop()
	for {
		select {
		case _, ok := <-alive:
			if !ok {
				return errLeaseLost
			}
		case <-look.C:
			if err := c.look(ctx, lease); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look reads the claim. That etcd does not answer says nothing: the lease tells, if it lasts.
func (c *Claim) look(ctx context.Context, lease clientv3.LeaseID) error {
	ctx, cancel := context.WithTimeout(ctx, c.r.cfg.DialTimeout)
	defer cancel()
	got, err := c.r.client.Get(ctx, c.key)
	switch {
	case err != nil:
		return nil
	case len(got.Kvs) == 0:
		return errors.New("it was removed by somebody else")
	case clientv3.LeaseID(got.Kvs[0].Lease) != lease:
		return fault.FailedPrecondition("another process has taken this service's store: %s. This one does not serve any more", got.Kvs[0].Value)
	}
	return nil
}

// revokeLease ends a lease and what is under it, if etcd answers within 2 s.
func (r *Registry) revokeLease(lease clientv3.LeaseID) {
	if lease == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 2*time.Second)
	defer cancel()
	_, _ = r.client.Revoke(ctx, lease)
}
