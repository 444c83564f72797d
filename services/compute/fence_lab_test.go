package compute

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/sqldb/sqldbtest"
)

// etcd is one member of its own.
func etcd(t *testing.T) *clientv3.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, err := etcdnode.Start(ctx, etcdnode.Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	must(t, err)
	t.Cleanup(func() { _ = n.Close() })
	conf, err := n.ClientTLS("test")
	must(t, err)
	c, err := clientv3.New(clientv3.Config{Endpoints: n.Endpoints(), TLS: conf, Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// newFenced is a lab whose service is a member of the fence. between happens between what it decides about a run that is to start and the
// commit, and is in force then.
func newFenced(t *testing.T, c *clientv3.Client, between func(l *lab)) *lab {
	t.Helper()
	cfg := sqldbtest.SQLite(t, envelope.Migrations(), audit.Migrations(), Migrations())
	cfg.Finish = rpc.Finish
	db, err := sqldb.Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	l := newStill(t, db)
	l.fence, err = fence.New(fence.Config{
		Client: c, Service: "compute", Instance: "a", Class: fence.SQL, Owners: []string{authz.Identity, authz.Workspace}, Prefix: "test/" + t.Name(),
	})
	must(t, err)
	l.fence.Delivered(authz.Identity, l.sec)
	l.fence.Delivered(authz.Workspace, l.seq)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.fence.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	short, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	must(t, l.fence.Ready(short))
	l.cfg.Decide = func(ctx context.Context, check func() error) (context.Context, func(), error) {
		decided, release, err := rpc.Decide(ctx, l.fence, check)
		must(t, err)
		between(l)
		l.inForce()
		return decided, release, err
	}
	l.restart()
	l.serve()
	return l
}

// inForce has everything that the engine was told be in force, as a revoker does before it answers.
func (l *lab) inForce() {
	l.t.Helper()
	for owner, seq := range map[string]uint64{authz.Identity: l.sec, authz.Workspace: l.seq} {
		l.fence.Delivered(owner, seq)
		_, err := l.fence.Change(l.t.Context(), owner, seq)
		must(l.t, err)
	}
}

// over has the security stream say that a user's account was disabled or deleted now.
func (l *lab) over(user string) {
	l.t.Helper()
	l.sec++
	must(l.t, l.engine.ApplySecurity(&identityv1.WatchSecurityResponse{Seq: l.sec, Revocations: []*identityv1.Revocation{{
		Subject: "usr_" + user, IssuedUntil: timestamppb.New(l.now()), ExpireTime: timestamppb.New(l.now().Add(24 * time.Hour)),
	}}}))
}

// events is what the service has told the activity log.
func (l *lab) events() []*audit.Event {
	l.t.Helper()
	outbox := l.cfg.Outbox
	must(l.t, outbox.Flush(l.t.Context()))
	var out []*audit.Event
	ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
	defer cancel()
	err := outbox.Relay(ctx, func(ctx context.Context, events []*audit.Event) (int64, error) {
		out = append(out, events...)
		stored := events[len(events)-1].GetSeq()
		if depth, err := outbox.Depth(ctx); err != nil || depth == int64(len(events)) {
			defer cancel()
			return stored, err
		}
		return stored, nil
	})
	if err != nil && ctx.Err() == nil {
		l.t.Fatal(err)
	}
	return out
}
