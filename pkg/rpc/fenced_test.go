package rpc

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fence"
)

// etcd is one member of its own.
func etcd(t *testing.T) *clientv3.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, err := etcdnode.Start(ctx, etcdnode.Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	ok(t, err)
	t.Cleanup(func() { _ = n.Close() })
	conf, err := n.ClientTLS("test")
	ok(t, err)
	c, err := clientv3.New(clientv3.Config{Endpoints: n.Endpoints(), TLS: conf, Logger: zap.NewNop()})
	ok(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// fenced is a lab whose service is a member of the fence.
func fenced(t *testing.T, c *clientv3.Client, join bool) *lab {
	t.Helper()
	f, err := fence.New(fence.Config{
		Client: c, Service: "telemetry", Instance: "a", Class: fence.SQL, Owners: []string{authz.Identity, authz.Workspace}, Prefix: "test/" + t.Name(),
	})
	ok(t, err)
	l := newLab(t, func(cfg *Config) { cfg.Fence = f })
	if !join {
		return l
	}
	l.fence.Store(f)
	f.Delivered(authz.Identity, l.sec)
	f.Delivered(authz.Workspace, l.seq)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	short, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ok(t, f.Ready(short))
	return l
}

// inForce has everything that the lab's engine was told be in force, as a revoker does before it answers.
func (l *lab) inForce() {
	l.t.Helper()
	for owner, seq := range map[string]uint64{authz.Identity: l.sec, authz.Workspace: l.seq} {
		_, err := l.fence.Load().Change(l.t.Context(), owner, seq)
		ok(l.t, err)
	}
}

// TestFence holds that what was decided before a change takes no effect after it (A3).
func TestFence(t *testing.T) {
	c := etcd(t)
	read := func(l *lab) error {
		_, err := telemetryv1.NewMetricServiceClient(l.gateway()).GetRunData(bearer(l.t, l.token(owner)), &telemetryv1.GetRunDataRequest{Run: run})
		return err
	}
	for name, tc := range lost() {
		if name == "the token ended" { // no change of the state
			continue
		}
		t.Run("an answer/"+name, func(t *testing.T) {
			l := fenced(t, c, true)
			ok(t, read(l))
			l.h.unary = func(context.Context) error { tc.do(l); l.inForce(); return nil }
			refusedAs(t, read(l), tc.code, tc.reason)
		})
		t.Run("a commit/"+name, func(t *testing.T) {
			l := fenced(t, c, true)
			var committed atomic.Bool
			l.h.unary = func(ctx context.Context) error {
				tc.do(l)
				l.inForce()
				return Finish(context.WithoutCancel(ctx), func() error { committed.Store(true); return nil })
			}
			refusedAs(t, read(l), tc.code, tc.reason)
			if committed.Load() {
				t.Error("it was committed")
			}
		})
	}
	t.Run("what the call asked besides", func(t *testing.T) {
		l := fenced(t, c, true)
		l.h.unary = func(ctx context.Context) error {
			if !From(ctx).May("workspace/workspaces/read", false, mustName(t, ws2)) {
				return errors.New("he may")
			}
			l.assign(&workspacev1.WatchAuthorizationResponse{Removed: []string{"ws_2"}})
			l.inForce()
			return nil
		}
		refusedAs(t, read(l), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	})
	t.Run("what the call holds", func(t *testing.T) {
		l := fenced(t, c, true)
		held := errors.New("")
		var asked atomic.Int64
		l.h.unary = func(ctx context.Context) error {
			err := From(ctx).Hold(func() error {
				if asked.Add(1) > 1 {
					return held
				}
				return nil
			})
			ok(t, err)
			l.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{Sid: "ses_another"}}})
			l.inForce()
			return nil
		}
		refusedAs(t, read(l), codes.Internal, faultv1.Reason_INTERNAL_FAULT)
	})
	t.Run("another one's change", func(t *testing.T) {
		l := fenced(t, c, true)
		committed := 0
		l.h.unary = func(ctx context.Context) error {
			l.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{Sid: "ses_another"}}})
			l.inForce()
			return Finish(ctx, func() error { committed++; return nil })
		}
		ok(t, read(l))
		if committed != 1 {
			t.Errorf("committed %d times", committed)
		}
	})
	t.Run("no fence, no decision", func(t *testing.T) {
		l := fenced(t, c, false)
		refusedAs(t, read(l), codes.Unavailable, faultv1.Reason_FENCE_LOST)
		if l.h.ran.Load() != 0 {
			t.Error("the handler ran")
		}
		_, err := identityv1.NewSignInServiceClient(l.gateway()).SignIn(t.Context(), &identityv1.SignInRequest{User: "u", Password: "p"})
		ok(t, err) // asks nobody's rights
	})
}

// TestFenceSlowReader holds that a reader who does not read neither keeps a change from being in force, nor gets what was decided before it
// (A3, r5).
func TestFenceSlowReader(t *testing.T) {
	l := fenced(t, etcd(t), true)
	ended := make(chan error, 1)
	var sent atomic.Int64
	l.h.watch = func(_ *telemetryv1.WatchMetricsRequest, s grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
		big := &telemetryv1.WatchMetricsResponse{}
		for range 2000 {
			big.Metrics = append(big.Metrics, &telemetryv1.Metric{Key: "a metric with a name that takes its place", Value: 1, Step: 1})
		}
		for {
			if err := s.Send(big); err != nil {
				ended <- err
				return err
			}
			sent.Add(1)
		}
	}
	s, err := telemetryv1.NewMetricServiceClient(l.gateway()).WatchMetrics(bearer(t, l.token(owner)), &telemetryv1.WatchMetricsRequest{Run: run})
	ok(t, err)
	_, err = s.Recv()
	ok(t, err)
	for before := int64(-1); before != sent.Load(); time.Sleep(time.Second) { // until it is stuck
		before = sent.Load()
	}
	l.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{Sid: "ses_another"}}})
	l.inForce() // although nobody reads
	select {
	case err := <-ended:
		t.Fatalf("cut by a change of another one's: %v", err)
	default:
	}
	l.secure(&identityv1.WatchSecurityResponse{Revocations: []*identityv1.Revocation{{Sid: "ses_" + owner}}})
	l.inForce()
	refusedAs(t, <-ended, codes.Unauthenticated, faultv1.Reason_TOKEN_REVOKED)
}
