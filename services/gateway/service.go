package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/rest"
)

// Config of the gateway. Rules, Peers, Certificate, Installation, PublicURL and Logger are required.
type Config struct {
	Rules *rule.Table
	// Peers are the connections to the services, by name. Every public method's service must be among them.
	Peers map[string]grpc.ClientConnInterface
	// Certificate is the mesh's, asked for at each handshake, so that it can change while serving.
	Certificate func() (*tls.Certificate, error)
	// CertificateFile and KeyFile, as PEM, are shown in its place where they are set, and read again when they change. Who asks for a name that
	// only the mesh's certificate has is shown that one.
	CertificateFile, KeyFile string
	// Installation is the domain that stands in the ErrorInfo of errors.
	Installation string
	// PublicURL is the installation's address as browsers know it: the issuer.
	PublicURL string
	// MaxMessageBytes bounds one message in either direction. Default 40 MiB.
	MaxMessageBytes int
	// Edge bounds the connections, Calls what is asked for on them.
	Edge  edge.Limits
	Calls Calls
	// Foreign are services of others that are passed on besides what the rules open. No installation has any: the tests of the wire do.
	Foreign []Foreign
	// OnRefused is told of connections that got no further; nil tells nobody. It must not block.
	OnRefused func(edge.Refusal)
	// PublicTimeout is how long a call of a public method may take, its message included: nobody answers for a caller who has not
	// signed in, and what he has sent of a message is kept until the rest has come. Default 30 s.
	PublicTimeout time.Duration
	// Grace is how long calls under way may take when the gateway is stopped. Default 10 s.
	Grace time.Duration
	// BodyGrace is how long the body of an HTTP request may take whatever its pace. Default 30 s.
	BodyGrace time.Duration
	// Tracing records the calls; nil records none.
	Tracing *observe.Tracing
	Now     func() time.Time
	Logger  *slog.Logger
}

// tooLargeBy is how far a message may be above the limit and still be refused with our reason. What is larger still is not read at
// all: gRPC refuses it, with the code alone.
const tooLargeBy = 4 << 20

// Foreign is a gRPC service that has no rules of ours.
type Foreign struct {
	// Service is its full name, Peer which of Config.Peers has it.
	Service, Peer string
	// Metadata are the keys that pass to it besides the usual ones.
	Metadata []string
}

// Calls bounds what is asked for. Zero fields take the defaults.
type Calls struct {
	// PerConnection is how many calls an HTTP/2 connection may have under way. Default 256.
	PerConnection uint32
	// Open is how many calls may be under way, in all and of one address. Defaults 4,000 and half of Open.
	Open, OpenPerAddress int
	// Unfinished is how many calls of public methods, whose callers nobody knows, may be waited for to send their message, in all and of one
	// address: of more, the oldest ends. Defaults 256 and a quarter of it.
	Unfinished, UnfinishedPerAddress int
	// PerSecond is how many calls may begin in a second from one address, with twice that in a burst. Default 2,000, as in the services.
	PerSecond float64
}

func (c Calls) withDefaults() Calls {
	if c.PerConnection == 0 {
		c.PerConnection = 256
	}
	if c.Open == 0 {
		c.Open = 4000
	}
	if c.OpenPerAddress == 0 {
		c.OpenPerAddress = max(c.Open/2, 1)
	}
	if c.Unfinished == 0 {
		c.Unfinished = 256
	}
	if c.UnfinishedPerAddress == 0 {
		c.UnfinishedPerAddress = max(c.Unfinished/4, 1)
	}
	if c.PerSecond == 0 {
		c.PerSecond = 2000
	}
	return c
}

// Windows of HTTP/2, in bytes, on both sides of the gateway. They are fixed: what a stream holds of what its other end does not take is at
// most its window and the message that is on its way.
const (
	callerWindow  = 1 << 20
	serviceWindow = 256 << 10
	connWindow    = 4 << 20
)

// PeerOptions are how the connections in Config.Peers are to be made, so that one call which is not read does not fill memory.
func PeerOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithInitialWindowSize(serviceWindow), grpc.WithInitialConnWindowSize(connWindow)}
}

// Service is the gateway.
type Service struct {
	cfg   Config
	tls   *tls.Config
	rates *edge.Rates // calls, by address
	// refused are calls beyond that, by address: with as many again, and a burst of two seconds, who asks for more than twice his rate is cut.
	refused *edge.Rates
	// begun are streams, by address: half as many again as calls. What is more is cut before the server looks at it.
	begun  *edge.Rates
	punish atomic.Pointer[punished]
	open   *edge.Open        // calls under way, by address
	unsent *edge.Waiting     // those whose message has not come yet
	routes map[string]string // full method → service
	public map[string]bool   // of routes, those that need no caller
	watch  map[string]bool   // of routes, those without an end of their own
	names  []string          // public gRPC services
	grpc   *grpc.Server
	http   *http.Server
	rest   *rest.Handler
	health *health.Server

	drained context.Context // ends when the gateway is to stop
	drain   context.CancelFunc
	late    context.Context // of HTTP requests: ends a while after that
	cut     context.CancelFunc
}

// New makes the gateway.
func New(cfg Config) (*Service, error) {
	if cfg.Rules == nil || cfg.Certificate == nil || cfg.Installation == "" || cfg.PublicURL == "" || cfg.Logger == nil {
		return nil, errors.New("gateway: Rules, Certificate, Installation, PublicURL and Logger are required")
	}
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = 40 << 20
	}
	if cfg.PublicTimeout == 0 {
		cfg.PublicTimeout = 30 * time.Second
	}
	if cfg.Grace == 0 {
		cfg.Grace = 10 * time.Second
	}
	cfg.Calls = cfg.Calls.withDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	peers := make(map[string]grpc.ClientConnInterface, len(cfg.Peers))
	for name, p := range cfg.Peers {
		peers[name] = onward.Traced(p, cfg.Tracing)
	}
	cfg.Peers = peers
	s := &Service{
		cfg: cfg, rates: edge.NewRates(cfg.Calls.PerSecond), refused: edge.NewRates(cfg.Calls.PerSecond), begun: edge.NewRates(max(1.5*cfg.Calls.PerSecond, leastStreams)), open: edge.NewOpen(cfg.Calls.Open, cfg.Calls.OpenPerAddress),
		unsent: edge.NewWaiting(cfg.Calls.Unfinished, cfg.Calls.UnfinishedPerAddress),
		routes: make(map[string]string), public: make(map[string]bool), watch: make(map[string]bool), health: health.NewServer(),
	}
	s.drained, s.drain = context.WithCancel(context.Background())
	s.late, s.cut = context.WithCancel(context.Background())
	if err := s.route(); err != nil {
		return nil, err
	}
	shown := edge.Mesh(cfg.Certificate)
	if cfg.CertificateFile != "" {
		own, err := edge.Files("the gateway", cfg.CertificateFile, cfg.KeyFile, cfg.Now, cfg.Logger)
		if err != nil {
			return nil, err
		}
		shown = edge.Either(own, cfg.Certificate)
	}
	s.tls = s.tlsConfig(shown)
	s.grpc = grpc.NewServer(
		grpc.Creds(handshaken{s.guard}),
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(s.forward),
		grpc.MaxRecvMsgSize(cfg.MaxMessageBytes+tooLargeBy), grpc.MaxSendMsgSize(cfg.MaxMessageBytes),
		grpc.MaxConcurrentStreams(cfg.Calls.PerConnection), grpc.MaxHeaderListSize(64<<10),
		grpc.InitialWindowSize(callerWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.InTapHandle(s.tap), grpc.StreamInterceptor(s.counted), grpc.UnaryInterceptor(s.countedUnary),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: 15 * time.Minute}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	opts := reflection.ServerOptions{Services: listed(s.names), DescriptorResolver: protoregistry.GlobalFiles}
	grpc_reflection_v1.RegisterServerReflectionServer(s.grpc, reflection.NewServerV1(opts))
	grpc_reflection_v1alpha.RegisterServerReflectionServer(s.grpc, reflection.NewServer(opts)) // older grpcurl asks for it
	routes, err := s.routesHTTP(context.Background())
	if err != nil {
		return nil, err
	}
	// No timeout for the whole of a request: uploads may be long. Bodies keep pace (package intake), and each write of an answer has
	// its own deadline (package edge).
	s.http = &http.Server{
		Handler: s.limited(routes), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
		// What is still under way after half of the grace is most likely a watch.
		BaseContext: func(net.Listener) context.Context { return s.late },
	}
	return s, nil
}

// listed are the services that reflection shows.
type listed []string

// GetServiceInfo implements reflection.ServiceInfoProvider.
func (l listed) GetServiceInfo() map[string]grpc.ServiceInfo {
	m := make(map[string]grpc.ServiceInfo, len(l))
	for _, n := range l {
		m[n] = grpc.ServiceInfo{}
	}
	return m
}

// route makes the table of what strangers may reach.
func (s *Service) route() error {
	for _, m := range s.cfg.Rules.Methods() {
		full := m.FullName
		service, ok := strings.CutPrefix(full, "/redoubt.")
		if !ok || !onward.Open(m) {
			continue
		}
		service, _, _ = strings.Cut(service, ".")
		if service == "maintenance" { // every service's own, for operators who reach its port
			continue
		}
		if _, ok := s.cfg.Peers[service]; !ok {
			return fmt.Errorf("gateway: %s belongs to service %q, for which there is no connection", full, service)
		}
		s.routes[full], s.public[full], s.watch[full] = service, m.Rule.GetPublic(), rpc.Watch(m)
		name := strings.TrimPrefix(full[:strings.LastIndexByte(full, '/')], "/")
		if len(s.names) == 0 || s.names[len(s.names)-1] != name {
			s.names = append(s.names, name)
		}
	}
	if len(s.routes) == 0 {
		return errors.New("gateway: no rule lets a stranger in; were the contracts loaded?")
	}
	s.names = append(s.names, healthpb.Health_ServiceDesc.ServiceName, grpc_reflection_v1.ServerReflection_ServiceDesc.ServiceName)
	return nil
}

// Serve takes connections from l until ctx ends: it finishes the handshake itself, then hands HTTP/2 clients that speak nothing
// else to gRPC, and the others to HTTP. It closes l.
func (s *Service) Serve(ctx context.Context, l net.Listener) error {
	grpcConns, httpConns := newQueue(l.Addr()), newQueue(l.Addr())
	errs := make(chan error, 3)
	go func() { errs <- s.http.Serve(httpConns) }()
	outside := edge.Listen(l, edge.Config{TLS: s.tls, Limits: s.cfg.Edge, Refused: s.cfg.OnRefused, Logger: s.cfg.Logger})
	s.punish.Store(&punished{outside.Punish})
	go func() { errs <- s.grpc.Serve(grpcConns) }()
	go func() { errs <- sort(outside, grpcConns, httpConns) }()
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	s.health.Shutdown()
	_ = outside.Close()
	s.stop()
	_ = grpcConns.Close()
	_ = httpConns.Close()
	if asked := ctx.Err() != nil; asked || errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil //nolint:nilerr // it was asked to stop
	}
	return err
}

// Drain says that this gateway is about to stop: its health, and the answers to HTTP requests, which close their connections. Calls are
// still taken, until Serve's context ends.
func (s *Service) Drain() {
	s.health.Shutdown()
	s.http.SetKeepAlivesEnabled(false)
}

// stop ends watches, sends GOAWAY, lets calls finish within the grace, and then cuts them.
func (s *Service) stop() {
	s.Drain()
	s.drain()
	defer s.cut()
	defer time.AfterFunc(s.cfg.Grace/2, s.cut).Stop()
	done := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(done) }()
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Grace)
	defer cancel()
	_ = s.http.Shutdown(ctx)
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		_ = s.http.Close()
		<-done
	}
}
