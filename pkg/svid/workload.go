package svid

import (
	"context"
	"crypto/x509"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// WorkloadConfig is what a WorkloadServer needs. Keeper and Dir must be set.
type WorkloadConfig struct {
	Keeper *Keeper
	JWTs   *JWTs        // nil: this Workload API has no JWT-SVIDs
	Dir    string       // where the socket goes, if its path fits; usually the Keeper's
	Logger *slog.Logger // silent when nil
}

// WorkloadServer is the SPIFFE Workload API for one workload: whoever the kernel says is of its own user id gets that workload's SVIDs and key.
type WorkloadServer struct {
	workload.UnsafeSpiffeWorkloadAPIServer // so that a new RPC of the standard does not compile until it is decided on
	keeper                                 *Keeper
	jwts                                   *JWTs
	log                                    *slog.Logger
	sock                                   *socket
	server                                 *grpc.Server
	stop                                   chan struct{}
	once                                   sync.Once
	served                                 chan struct{}
}

var _ workload.SpiffeWorkloadAPIServer = (*WorkloadServer)(nil)

// NewWorkloadServer listens and serves until Close. A socket left by a process that died is replaced; one that answers is
// an error.
func NewWorkloadServer(cfg WorkloadConfig) (*WorkloadServer, error) {
	if cfg.Keeper == nil || cfg.Dir == "" {
		return nil, fault.InvalidArgument("a Workload API needs a keeper and a folder")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.JWTs != nil && cfg.JWTs.cfg.ID != cfg.Keeper.cfg.ID {
		return nil, fault.InvalidArgument("the JWT-SVIDs of a Workload API are those of its keeper's workload")
	}
	sock, err := listenSocket(cfg.Dir)
	if err != nil {
		return nil, err
	}
	w := &WorkloadServer{keeper: cfg.Keeper, jwts: cfg.JWTs, log: cfg.Logger, sock: sock, stop: make(chan struct{}), served: make(chan struct{})}
	w.server = grpc.NewServer(
		grpc.Creds(&peerCreds{log: cfg.Logger}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(64<<10),
		grpc.MaxConcurrentStreams(64),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := admitted(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := admitted(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, ss)
		}),
	)
	workload.RegisterSpiffeWorkloadAPIServer(w.server, w)
	reflection.Register(w.server)
	go func() {
		defer close(w.served)
		if err := w.server.Serve(sock.listener); err != nil {
			w.log.Error("the Workload API has stopped", "error", err)
		}
	}()
	return w, nil
}

// Addr is the address for clients: unix:///path, what SPIFFE_ENDPOINT_SOCKET takes.
func (w *WorkloadServer) Addr() string { return "unix://" + w.sock.path }

// Close ends the streams and removes the socket. Clients see UNAVAILABLE, and keep what they have.
func (w *WorkloadServer) Close() error {
	w.once.Do(func() {
		close(w.stop)
		w.server.Stop()
		<-w.served
		w.sock.remove()
	})
	return nil
}

const (
	headerKey = "workload.spiffe.io"
	apiPrefix = "/SpiffeWorkloadAPI/"

	strangerText = "no identity for this caller: this Workload API is for its own user id"
	noWITText    = "this Workload API has no WIT-SVIDs: use the X.509-SVID"
	stoppedText  = "the Workload API stops: connect again"
)

// admitted says whether a call is for this caller at all: the kernel's word first, then the standard's header.
func admitted(ctx context.Context, method string) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.PermissionDenied, strangerText)
	}
	info, ok := p.AuthInfo.(peerInfo)
	if !ok || !info.entitled {
		return status.Error(codes.PermissionDenied, strangerText)
	}
	return securityHeader(ctx, method)
}

// securityHeader is the standard's guard against requests that a confused HTTP client was led to send.
func securityHeader(ctx context.Context, method string) error {
	if len(method) < len(apiPrefix) || method[:len(apiPrefix)] != apiPrefix {
		return nil // reflection
	}
	if v := metadata.ValueFromIncomingContext(ctx, headerKey); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "metadata workload.spiffe.io: true is required")
	}
	return nil
}

// FetchX509SVID sends the SVID with its key and roots, and again with each change. While there is none it waits.
func (w *WorkloadServer) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return w.follow(stream.Context(), func(s *SVID) error {
		key, err := x509.MarshalPKCS8PrivateKey(s.Key)
		if err != nil {
			return status.Error(codes.Internal, "the key could not be encoded")
		}
		return stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId:    s.ID.String(),
			X509Svid:    concat(s.Chain),
			X509SvidKey: key,
			Bundle:      concat(s.Bundle),
		}}})
	})
}

// FetchX509Bundles sends the roots, and again with each change.
func (w *WorkloadServer) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return w.follow(stream.Context(), func(s *SVID) error {
		return stream.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{s.ID.TrustDomain().IDString(): concat(s.Bundle)}})
	})
}

func (w *WorkloadServer) follow(ctx context.Context, send func(*SVID) error) error {
	var last *SVID
	for {
		changed, s, err := w.keeper.observe()
		if err == nil && s != last {
			if err := send(s); err != nil {
				return err
			}
			last = s
		}
		select {
		case <-changed:
		case <-w.stop:
			return status.Error(codes.Unavailable, stoppedText)
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func concat(certs []*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, c.Raw...)
	}
	return b
}

// FetchWITSVID is not offered: the format is still arriving.
func (w *WorkloadServer) FetchWITSVID(*workload.WITSVIDRequest, grpc.ServerStreamingServer[workload.WITSVIDResponse]) error {
	return status.Error(codes.Unimplemented, noWITText)
}

// FetchWITBundles is not offered.
func (w *WorkloadServer) FetchWITBundles(*workload.WITBundlesRequest, grpc.ServerStreamingServer[workload.WITBundlesResponse]) error {
	return status.Error(codes.Unimplemented, noWITText)
}
