package discovery

import (
	"fmt"
	"slices"

	"google.golang.org/grpc"
	_ "google.golang.org/grpc/health" // the client side of health checking, which healthCheckConfig turns on
	"google.golang.org/grpc/resolver"
)

// Scheme is that of targets which this package resolves.
const Scheme = "etcd"

// Target is the dial target of a service: "etcd:///compute".
func Target(service string) string { return Scheme + ":///" + service }

// ServiceConfig is how services are called: in turn over the instances that say they are healthy; with a wait for one, up
// to the caller's deadline, so that the order in which services start is nobody's business; and again where the answer was
// UNAVAILABLE, but not when much of what was sent lately has failed. Creates are safe to repeat by their request_id.
const ServiceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": ""},
  "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
  "methodConfig": [{
    "name": [{}],
    "waitForReady": true,
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.05s",
      "maxBackoff": "1s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// DialOptions is what every connection inside the mesh takes beside its credentials: Resolver, ServiceConfig, no HTTP
// proxy from the environment, and short waits between attempts to connect.
func (r *Registry) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithResolvers(r.Resolver()),
		grpc.WithDefaultServiceConfig(ServiceConfig),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		connectParams(r.cfg.DialTimeout),
	}
}

// Resolver finds the instances of Target's service, for grpc.WithResolvers.
func (r *Registry) Resolver() resolver.Builder { return builder{r} }

type builder struct{ r *Registry }

func (builder) Scheme() string { return Scheme }

// Build returns at once, whether or not etcd answers.
func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	service := target.Endpoint()
	if err := checkName(service); err != nil {
		return nil, err
	}
	b.r.table.start()
	w := &follower{r: b.r, cc: cc, service: service, stop: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w, nil
}

// follower tells one channel of one service's instances.
type follower struct {
	r          *Registry
	cc         resolver.ClientConn
	service    string
	stop, done chan struct{}
}

func (f *follower) run() {
	defer close(f.done)
	var last []Instance
	told := false
	for {
		view := f.r.table.view()
		now := view.services[f.service]
		switch {
		case !view.loaded && view.err != nil:
			f.cc.ReportError(view.err)
		case view.loaded && (!told || !slices.Equal(now, last)):
			f.tell(now, !told)
			last, told = now, true
		}
		select {
		case <-view.changed:
		case <-f.stop:
			return
		case <-f.r.ctx.Done():
			return
		}
	}
}

func (f *follower) tell(now []Instance, first bool) {
	if len(now) == 0 {
		defer f.cc.ReportError(fmt.Errorf("no instance of %s is registered: start it, or see its log", f.service))
		if first {
			return // an empty state would hide the error
		}
	}
	state := resolver.State{Endpoints: make([]resolver.Endpoint, 0, len(now))}
	for _, in := range now {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: in.Addr}}})
	}
	// The balancer's complaint about an empty list is not news: the next state comes by itself.
	_ = f.cc.UpdateState(state)
}

// ResolveNow implements resolver.Resolver: gRPC asks when a connection broke, and the watch tells the rest.
func (f *follower) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (f *follower) Close() {
	close(f.stop)
	<-f.done
}
