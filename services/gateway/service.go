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
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

// Config of the gateway. Rules, Peers, Certificate, Installation and Logger are required.
type Config struct {
	Rules *rule.Table
	// Peers are the connections to the services, by name. Every public method's service must be among them.
	Peers map[string]grpc.ClientConnInterface
	// Certificate is the public one, asked for at each handshake, so that it can change while serving.
	Certificate func() (*tls.Certificate, error)
	// Installation is the domain that stands in the ErrorInfo of errors.
	Installation string
	// MaxMessageBytes bounds one message in either direction. Default 40 MiB.
	MaxMessageBytes int
	// WriteTimeout is how long a client may leave an answer unread. Default 30 s.
	WriteTimeout time.Duration
	// HandshakeTimeout is how long a TLS handshake may take. Default 10 s.
	HandshakeTimeout time.Duration
	// PublicTimeout is how long a call of a public method may take, its message included: nobody answers for a caller who has not
	// signed in, and what he has sent of a message is kept until the rest has come. Default 30 s.
	PublicTimeout time.Duration
	// BodyGrace is how long the body of an HTTP request may take whatever its pace. Default 30 s.
	BodyGrace time.Duration
	Now       func() time.Time
	Logger    *slog.Logger
}

// tooLargeBy is how far a message may be above the limit and still be refused with our reason. What is larger still is not read at
// all: gRPC refuses it, with the code alone.
const tooLargeBy = 4 << 20

// Service is the gateway.
type Service struct {
	cfg    Config
	routes map[string]string // full method → service
	public map[string]bool   // of routes, those that need no caller
	names  []string          // public gRPC services
	grpc   *grpc.Server
	http   *http.Server
	health *health.Server
}

// New makes the gateway.
func New(cfg Config) (*Service, error) {
	if cfg.Rules == nil || cfg.Certificate == nil || cfg.Installation == "" || cfg.Logger == nil {
		return nil, errors.New("gateway: Rules, Certificate, Installation and Logger are required")
	}
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = 40 << 20
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = 30 * time.Second
	}
	if cfg.PublicTimeout == 0 {
		cfg.PublicTimeout = 30 * time.Second
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Service{cfg: cfg, routes: make(map[string]string), public: make(map[string]bool), health: health.NewServer()}
	if err := s.route(); err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(handshaken{}),
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(s.forward),
		grpc.MaxRecvMsgSize(cfg.MaxMessageBytes+tooLargeBy), grpc.MaxSendMsgSize(cfg.MaxMessageBytes),
		grpc.MaxConcurrentStreams(256), grpc.MaxHeaderListSize(64<<10),
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
	// its own deadline (deadlined).
	s.http = &http.Server{
		Handler: routes, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
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
		if _, ok := s.cfg.Peers[service]; !ok {
			return fmt.Errorf("gateway: %s belongs to service %q, for which there is no connection", full, service)
		}
		s.routes[full], s.public[full] = service, m.Rule.GetPublic()
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
	go func() { errs <- s.grpc.Serve(grpcConns) }()
	go func() { errs <- s.http.Serve(httpConns) }()
	go func() { errs <- s.accept(ctx, l, grpcConns, httpConns) }()
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	s.health.Shutdown()
	_ = l.Close()
	s.stop()
	_ = grpcConns.Close()
	_ = httpConns.Close()
	if asked := ctx.Err() != nil; asked || errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil //nolint:nilerr // it was asked to stop
	}
	return err
}

// stop lets calls finish for a while, and then cuts them.
func (s *Service) stop() {
	done := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(done) }()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
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
