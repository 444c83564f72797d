package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/discovery"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity"
	"github.com/redoubt-ml/redoubt/services/workspace"
)

// Options are what a program sets and a file does not.
type Options struct {
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// LogWriter takes the log; nil means the standard error output.
	LogWriter io.Writer
	// Password is the cost of password hashes, and where they are computed; zero is the default, in this process.
	Password password.Config
	// Limits of every server; zero is the default.
	Limits rpc.Limits
	// Listeners that are open already, by service, so that ports can be known before anything starts. "identity-enrol" is the
	// enrolment listener, "inference-scoring" and "inference-replicas" are those of inference.
	Listeners map[string]net.Listener
	// Postgres is the connection string in place of the one in the configuration's file: who makes an installation sees its files at
	// other paths than the process that uses them.
	Postgres redact.Secret
}

// Node is one service that runs, and everything below it.
type Node struct {
	name    string
	cfg     Config
	opts    Options
	log     *slog.Logger
	metrics *observe.Metrics
	health  *health.Server
	addr    string
	inside  string // the gateway's own port in the mesh

	scoring, replicas net.Listener // of the node "inference"
	blobs             *blob.Store  // nil where the service keeps none

	identity  *identity.Service  // of the node "identity"
	count     atomic.Int64       // of identity's instances
	workspace *workspace.Service // of the node "workspace"

	state        *state // nil in the gateway
	mesh         *mesh
	own          atomic.Pointer[holder] // of the mesh, as soon as there is one
	registration *discovery.Registration

	chain  *rpc.Chain // nil until it serves
	drains []func()   // ask parts to send their callers elsewhere, while they still answer
	ends   []func()   // end listeners, each within the grace; run at the same time

	ctx    context.Context // ends when the node stops
	cancel context.CancelFunc
	failed chan error
	stops  []func() // run in reverse order
	once   sync.Once

	tokenStays sync.Once // says so once
}

// Start builds one service and runs it. It returns when the service answers, which may wait for identity, or when ctx ends. The
// service itself goes on until Stop.
func Start(ctx context.Context, cfg Config, opts Options) (*Node, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = systemClock
	}
	if opts.Limits.ConnectionAge == 0 {
		opts.Limits.ConnectionAge = cfg.Mesh.ConnectionAge
	}
	if err := refuseHalfRestored(cfg.Service.Dir, filepath.Dir(cfg.Service.Dir)); err != nil {
		return nil, err
	}
	n := newNode(ctx, cfg, opts)
	if err := os.MkdirAll(cfg.Service.Dir, 0o700); err != nil {
		n.Stop()
		return nil, fmt.Errorf("the state folder of %s cannot be made: %w", n.name, err)
	}
	if err := n.start(ctx); err != nil {
		n.Stop()
		return nil, fmt.Errorf("%s does not start: %w", n.name, err)
	}
	return n, nil
}

// Addr is where the service listens in the mesh.
func (n *Node) Addr() string { return n.addr }

// MeshAddr is where the service listens inside the mesh. It is another one than Addr in the gateway only.
func (n *Node) MeshAddr() string {
	if n.inside != "" {
		return n.inside
	}
	return n.addr
}

// Metrics are the counters of this node, as its metrics port shows them.
func (n *Node) Metrics() prometheus.Gatherer { return n.metrics.Gatherer() }

// Failed gives the error of a part that ended by itself.
func (n *Node) Failed() <-chan error { return n.failed }

// Identity is the service itself on the node "identity", else nil: for making the first administrator and join tokens.
func (n *Node) Identity() *identity.Service { return n.identity }

// Workspace is the service itself on the node "workspace", else nil: for giving the first administrator his role.
func (n *Node) Workspace() *workspace.Service { return n.workspace }

// Ready waits until the service decides from fresh state, under the fence, and stands in etcd.
func (n *Node) Ready(ctx context.Context) error {
	if n.state != nil {
		if err := n.decides(ctx, n.state, n.failed); err != nil {
			return err
		}
	}
	return n.registration.Ready(ctx)
}

// decides waits until the service decides from fresh state, under the fence, or a part of it has failed.
func (n *Node) decides(ctx context.Context, st *state, failed <-chan error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := st.engine.Fresh(n.opts.Now())
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return err
		case err := <-failed:
			return err
		case <-tick.C:
		}
	}
	f, err := st.fence.get(ctx)
	if err != nil {
		return err
	}
	return f.Ready(ctx)
}

// roots are the mesh's roots as this node knows them.
func (n *Node) roots() []*x509.Certificate { return n.mesh.own.Bundle() }

// CA are the roots that this node believes now, as PEM.
func (n *Node) CA() []byte { return pemOf(n.roots()) }

// SVID is the certificate of the node as it is now, nil if it has none.
func (n *Node) SVID() *svid.SVID {
	s, err := n.mesh.own.Current()
	if err != nil {
		return nil
	}
	return s
}

// Stop ends the service. It leaves etcd and says that it does not serve; where another instance can take the calls it waits until
// clients have heard of it. Then watches end, connections are told to go, and calls under way finish within the grace. Last of all
// everything is closed in reverse order.
func (n *Node) Stop() {
	n.once.Do(func() {
		n.leave()
		for i := len(n.stops) - 1; i >= 0; i-- {
			n.stops[i]()
		}
		n.cancel()
	})
}

func (n *Node) onStop(f func()) { n.stops = append(n.stops, f) }

// background runs a part of the node until it stops. A part that ends earlier with an error ends the process.
func (n *Node) background(what string, f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(n.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil && ctx.Err() == nil {
			n.log.Error("a part of the service ended", "part", what, "error", err)
			select {
			case n.failed <- fmt.Errorf("%s: %s: %w", n.name, what, err):
			default:
			}
		}
	}()
	n.onStop(func() { cancel(); <-done })
}

// listen opens a port, or takes the one that is open already.
func (n *Node) listen(key, addr string) (net.Listener, error) {
	if l, ok := n.opts.Listeners[key]; ok {
		return l, nil
	}
	l, err := (&net.ListenConfig{}).Listen(n.ctx, "tcp", addr)
	if err != nil {
		return nil, portError(addr, err)
	}
	return l, nil
}

func portError(addr string, err error) error {
	return fault.FailedPrecondition("cannot listen on %s: %v; is another redoubt running, or another program on that port?", addr, errors.Unwrap(err))
}

// leave sends callers elsewhere, and ends the listeners.
func (n *Node) leave() {
	others := false
	if n.registration != nil {
		n.registration.Close()
		ctx, cancel := context.WithTimeout(n.ctx, time.Second)
		all, err := n.mesh.registry.List(ctx)
		cancel()
		others = err != nil || len(all[n.name]) > 0
	}
	n.health.Shutdown()
	for _, drain := range n.drains {
		drain()
	}
	if others {
		<-time.After(n.cfg.Service.Drain)
	}
	if n.chain != nil {
		n.chain.Drain()
	}
	var wg sync.WaitGroup
	for _, end := range n.ends {
		wg.Go(end)
	}
	wg.Wait()
}

// serve runs a gRPC server with health and reflection until the node stops.
func (n *Node) serve(what string, s *grpc.Server, l net.Listener) {
	n.background(what, func(context.Context) error {
		if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	n.ends = append(n.ends, func() {
		done := make(chan struct{})
		go func() { s.GracefulStop(); close(done) }()
		t := time.NewTimer(n.cfg.Service.Grace)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			s.Stop()
			<-done
		}
	})
}

// standard adds health and reflection, under the rules of the overlay.
func (n *Node) standard(chain *rpc.Chain, s *grpc.Server) {
	healthpb.RegisterHealthServer(chain.Registrar(s), n.health)
	reflection.Register(reflected{chain.Registrar(s), s})
}

// reflected registers through the chain and lists what the server has.
type reflected struct {
	grpc.ServiceRegistrar
	s *grpc.Server
}

// GetServiceInfo implements reflection.GRPCServer.
func (r reflected) GetServiceInfo() map[string]grpc.ServiceInfo { return r.s.GetServiceInfo() }

// path is a file or folder in the service's state.
func (n *Node) path(elem ...string) string {
	return filepath.Join(append([]string{n.cfg.Service.Dir}, elem...)...)
}

func newHealth() *health.Server {
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING) // until everything is there
	return h
}
