package serving

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/flow"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// What the listener has to be told of endpoints, and tells.
type (
	// Endpoint is what is known of one endpoint.
	Endpoint = flow.Endpoint
	// Credential is a key or a token.
	Credential = flow.Credential
	// Share is a deployment's part of the requests.
	Share = flow.Share
	// Deployment is what is known of one deployment.
	Deployment = flow.Deployment
	// Log takes the record of each request.
	Log = flow.Log
)

// Config of a Server. Certificate, MeshTLS, TrustDomain, Log, Installation and Logger are required.
type Config struct {
	// Certificate is what the scoring listener shows, asked for at each handshake.
	Certificate func() (*tls.Certificate, error)
	// CertificateFile and KeyFile, as PEM, are shown in its place where they are set, and read again when they change.
	CertificateFile, KeyFile string
	// MeshTLS makes the server side of the mesh's mutual TLS, for the replica listener.
	MeshTLS func(svid.Authorize) *tls.Config
	// ReplicaAge is for how long a connection of a replica stands (pool.Config.Age).
	ReplicaAge time.Duration
	// TrustDomain is that of the replicas' identities.
	TrustDomain string
	// Log takes the record of each request.
	Log Log
	// OnUnknown is told of each request to what is no endpoint; nil tells nobody. It must not block.
	OnUnknown func()
	// Installation is the domain that stands in the ErrorInfo of errors, after "redoubt.".
	Installation string
	// Version is told to clients that ask for it. Default that of the program, "devel" where it has none.
	Version string
	// Tracing may be nil: then no span is recorded.
	Tracing *observe.Tracing

	// MaxInFlightBytes bounds the bodies that are in memory at a time. Default 512 MiB.
	MaxInFlightBytes int64
	// Edge bounds the connections of the scoring listener.
	Edge edge.Limits
	// OnRefused is told of connections that got no further; nil tells nobody. It must not block.
	OnRefused func(edge.Refusal)
	// MaxMirrored is how many copies for mirrors may be under way; others are not made. Default 32.
	MaxMirrored int
	// BodyGrace is how long a body may take besides a second for each 256 KiB of it. Default 10 s.
	BodyGrace time.Duration
	// NoWorkerGrace is how long requests wait for a deployment that has just lost its last worker. Default 2 s.
	NoWorkerGrace time.Duration

	// IntN gives a number from 0 to n-1, for the split of the traffic. Default math/rand/v2's. Safe for concurrent use.
	IntN   func(n int) int
	Now    func() time.Time
	Logger *slog.Logger
}

// Server answers the requests to endpoints. It is safe for concurrent use.
type Server struct {
	*flow.Way

	cfg  Config
	pool *pool.Pool
	grpc *oipServers
}

// New makes a Server. It listens nowhere: see Serve.
func New(cfg Config) (*Server, error) {
	if cfg.Certificate == nil || cfg.MeshTLS == nil || cfg.TrustDomain == "" || cfg.Log == nil || cfg.Installation == "" || cfg.Logger == nil {
		return nil, errors.New("serving: Certificate, MeshTLS, TrustDomain, Log, Installation and Logger are required")
	}
	if cfg.MaxInFlightBytes == 0 {
		cfg.MaxInFlightBytes = 512 << 20
	}
	if cfg.MaxMirrored == 0 {
		cfg.MaxMirrored = 32
	}
	if cfg.BodyGrace == 0 {
		cfg.BodyGrace = 10 * time.Second
	}
	if cfg.Edge.WriteTimeout == 0 {
		cfg.Edge.WriteTimeout = 30 * time.Second
	}
	if cfg.IntN == nil {
		cfg.IntN = rand.IntN
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Version == "" {
		cfg.Version = "devel"
		if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
			cfg.Version = b.Main.Version
		}
	}
	if cfg.Tracing == nil {
		var err error
		if cfg.Tracing, err = observe.NewTracing(context.Background(), observe.TraceConfig{Service: "inference"}); err != nil {
			return nil, err
		}
	}
	if cfg.CertificateFile != "" {
		var err error
		if cfg.Certificate, err = edge.Files("the scoring listener", cfg.CertificateFile, cfg.KeyFile, cfg.Now, cfg.Logger); err != nil {
			return nil, err
		}
	}
	p, err := pool.New(pool.Config{TLS: cfg.MeshTLS, TrustDomain: cfg.TrustDomain, Grace: cfg.NoWorkerGrace, Age: cfg.ReplicaAge, Now: cfg.Now, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	if cfg.OnUnknown == nil {
		cfg.OnUnknown = func() {}
	}
	s := &Server{cfg: cfg, pool: p, Way: flow.New(flow.Config{
		Pool: p, Log: cfg.Log, OnUnknown: cfg.OnUnknown, Tracing: cfg.Tracing, MaxInFlightBytes: cfg.MaxInFlightBytes, MaxMirrored: cfg.MaxMirrored, BodyGrace: cfg.BodyGrace,
		IntN: cfg.IntN, Now: cfg.Now, Logger: cfg.Logger,
	})}
	s.grpc = newOIPServers(s)
	return s, nil
}
