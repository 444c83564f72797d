package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// connections is how many each client has.
const connections = 4

// load is some callers of one server.
type load struct {
	conns   []*grpc.ClientConn
	callers int
	headers metadata.MD // nil: neither metadata nor a deadline
	each    time.Duration
}

func (p *process) load(addr string, callers int, headers metadata.MD, each time.Duration) (*load, error) {
	l := &load{callers: callers, headers: headers, each: each}
	for range connections {
		c, err := p.dial(addr)
		if err != nil {
			l.close()
			return nil, err
		}
		l.conns = append(l.conns, c)
	}
	return l, nil
}

func (l *load) close() {
	for _, c := range l.conns {
		_ = c.Close()
	}
}

// round is calls a second over one round. Any error ends it: a figure of failing calls would be a good one.
func (l *load) round(ctx context.Context) (float64, error) {
	var calls atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	var over atomic.Bool
	begin := time.Now()
	timer := time.AfterFunc(l.each, func() { over.Store(true) })
	defer timer.Stop()
	for i := range l.callers {
		client := telemetryv1.NewMetricServiceClient(l.conns[i%len(l.conns)])
		wg.Go(func() {
			req := &telemetryv1.GetRunDataRequest{Run: run1}
			for n := int64(0); ; n++ {
				if over.Load() || failed.Load() != nil {
					calls.Add(n)
					return
				}
				if err := l.call(ctx, client, req); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(calls.Load()) / time.Since(begin).Seconds(), nil
}

func (l *load) call(ctx context.Context, client telemetryv1.MetricServiceClient, req *telemetryv1.GetRunDataRequest) error {
	if l.headers != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(metadata.NewOutgoingContext(ctx, l.headers), 10*time.Second)
		defer cancel()
	}
	_, err := client.GetRunData(ctx, req)
	return err
}

func headers(token string) metadata.MD {
	return metadata.Pairs("authorization", "Bearer "+token, "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
}

func chainSameHeaders(ctx context.Context, o options) error {
	return chainFigure(ctx, o, "chain-same-headers", func(token string) metadata.MD { return headers(token) }, "bare mTLS grpc-go whose client sends the same metadata and deadline")
}

func chainNoHeaders(ctx context.Context, o options) error {
	return chainFigure(ctx, o, "chain-no-headers", func(string) metadata.MD { return nil }, "bare mTLS grpc-go whose client sends neither metadata nor deadline")
}

// chainFigure calls the whole chain beside a server that has none.
func chainFigure(ctx context.Context, o options, name string, peerHeaders func(token string) metadata.MD, beside string) error {
	ours, err := start(ctx, o, "chain")
	if err != nil {
		return err
	}
	bare, err := start(ctx, o, "bare")
	if err != nil {
		return err
	}
	for _, callers := range []int{16, 64} {
		a, err := ours.load(ours.Addr, callers, headers(ours.Token), o.each)
		if err != nil {
			return err
		}
		b, err := bare.load(bare.Addr, callers, peerHeaders(ours.Token), o.each)
		if err != nil {
			return err
		}
		v, r, err := o.paired(ctx, a.round, b.round)
		a.close()
		b.close()
		if err != nil {
			return err
		}
		o.print(name, v, "calls/s", r, fmt.Sprintf("%s, %d callers, GOGC=%s", beside, callers, o.gogc))
	}
	if err := bare.stop(); err != nil {
		return err
	}
	return ours.stop()
}

// gatewayFigure calls through the gateway beside calling the service directly.
func gatewayFigure(ctx context.Context, o options) error {
	p, err := start(ctx, o, "gateway")
	if err != nil {
		return err
	}
	through, err := p.load(p.hello.Gateway, 16, headers(p.Token), o.each)
	if err != nil {
		return err
	}
	defer through.close()
	direct, err := p.load(p.Addr, 16, headers(p.Token), o.each)
	if err != nil {
		return err
	}
	defer direct.close()
	v, r, err := o.paired(ctx, through.round, direct.round)
	if err != nil {
		return err
	}
	o.print("gateway", v, "calls/s", r, "the same calls to the service directly, 16 callers; gateway and service share a process")
	return p.stop()
}
