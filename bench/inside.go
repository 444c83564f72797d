package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// nanoseconds is the time that one fn takes, over a round.
func nanoseconds(each time.Duration, fn func() error) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		begin, n := time.Now(), 0
		for time.Since(begin) < each && ctx.Err() == nil {
			for range 64 {
				if err := fn(); err != nil {
					return 0, err
				}
				n++
			}
		}
		return float64(time.Since(begin)) / float64(n), ctx.Err()
	}
}

// goal is a peer that is a number.
func goal(v float64) func(context.Context) (float64, error) {
	return func(context.Context) (float64, error) { return v, nil }
}

func here(ctx context.Context) (*world, func(), error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	w, err := newWorld(ctx, dir)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, nil, err
	}
	return w, func() { w.close(); _ = os.RemoveAll(dir) }, nil
}

// decisionFigure is one question to the engine with its name resolved, in an installation of 10,000 assignments.
func decisionFigure(ctx context.Context, o options) error {
	w, done, err := here(ctx)
	if err != nil {
		return err
	}
	defer done()
	name, err := resource.Parse(run1)
	if err != nil {
		return err
	}
	o.each /= 4
	v, r, err := o.paired(ctx, nanoseconds(o.each, func() error {
		scope, ok := w.engine.Resolve(name)
		if !ok || !w.engine.Decide(authz.Query{Principal: caller, Action: "telemetry/metrics/read", Scope: scope}).Allowed {
			return fmt.Errorf("the caller was refused")
		}
		return nil
	}), goal(1000))
	if err != nil {
		return err
	}
	o.print("decision", v, "ns", r, "the goal of 1,000 ns; 10,000 assignments")
	return nil
}

// tokenFigure is the check of a token that was seen before, beside the whole one with its signature.
func tokenFigure(ctx context.Context, o options) error {
	w, done, err := here(ctx)
	if err != nil {
		return err
	}
	defer done()
	o.each /= 4
	cached := func() error { _, err := w.verifier.Verify(ctx, w.token, issuer); return err }
	// A verifier that knows no token.
	whole := func() error {
		v, err := authn.New(authn.Config{Issuer: issuer, Keys: w.keys, Revocations: w.engine.Revocations(), CacheSize: 1})
		if err != nil {
			return err
		}
		_, err = v.Verify(ctx, w.token, issuer)
		return err
	}
	v, r, err := o.paired(ctx, nanoseconds(o.each, cached), nanoseconds(o.each, whole))
	if err != nil {
		return err
	}
	o.print("token-check", v, "ns", r, "the check with its signature, by a verifier that has not seen the token; goal 1,000 ns")
	return nil
}

// auditFigure is how many durable records a second 64 callers get, beside one caller.
func auditFigure(ctx context.Context, o options) error {
	w, done, err := here(ctx)
	if err != nil {
		return err
	}
	defer done()
	records := func(callers int) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			var n atomic.Int64
			var failed atomic.Pointer[error]
			var wg sync.WaitGroup
			begin := time.Now()
			for range callers {
				wg.Go(func() {
					for time.Since(begin) < o.each && failed.Load() == nil {
						if err := w.outbox.Record(ctx, event()); err != nil {
							failed.CompareAndSwap(nil, &err)
						}
						n.Add(1)
					}
				})
			}
			wg.Wait()
			if e := failed.Load(); e != nil {
				return 0, *e
			}
			return float64(n.Load()) / time.Since(begin).Seconds(), nil
		}
	}
	v, r, err := o.paired(ctx, records(64), records(1))
	if err != nil {
		return err
	}
	o.print("audit-record", v, "records/s", r, "one caller whose every record is a commit of its own; 64 callers, SQLite, sealed and on disk")
	return nil
}

func event() *audit.Event {
	return &audit.Event{
		Uid: resource.NewUID("evt"), Time: timestamppb.Now(), Service: "telemetry", Method: "/redoubt.keyvault.v1.SecretService/AccessSecret",
		Action: "keyvault/secrets/access", Principal: caller, PrincipalType: "user", Scope: run1, ScopeUid: "ws_1", SubscriptionUid: "sub_1", WorkspaceUid: "ws_1",
		Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: "OK", RequestId: "4bf92f3577b34da6a3ce929d0e0e4736", Peer: "spiffe://" + domain + "/service/gateway", Count: 1,
	}
}

// startFigure is a new installation from nothing until every service answers, beside the etcd in it alone.
func startFigure(ctx context.Context, o options) error {
	ours := func(ctx context.Context) (float64, error) {
		dir, err := os.MkdirTemp("", "bench")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		log, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return 0, err
		}
		defer log.Close()
		begin := time.Now()
		in, err := node.Up(ctx, node.UpConfig{Data: filepath.Join(dir, "data"), Listen: "127.0.0.1:0", Log: node.Log{Level: "error"}, Options: node.Options{LogWriter: log}})
		if err != nil {
			return 0, err
		}
		took := time.Since(begin)
		in.Stop()
		return took.Seconds(), nil
	}
	alone := func(ctx context.Context) (float64, error) {
		dir, err := os.MkdirTemp("", "bench")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		begin := time.Now()
		n, err := etcdnode.Start(ctx, etcdnode.Config{Dir: dir})
		if err != nil {
			return 0, err
		}
		took := time.Since(begin)
		return took.Seconds(), n.Close()
	}
	o.rounds = min(o.rounds, 3)
	v, r, err := o.paired(ctx, ours, alone)
	if err != nil {
		return err
	}
	o.print("start", v, "s", r, "its embedded etcd alone; a new installation with all services, from nothing, with fsync")
	return nil
}
