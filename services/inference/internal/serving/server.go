package serving

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/front"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// Config of a Server. Certificate, MeshTLS, TrustDomain, Log, Installation and Logger are required.
type Config struct {
	// Certificate is what the scoring listener shows, asked for at each handshake.
	Certificate func() (*tls.Certificate, error)
	// CertificateFile and KeyFile, as PEM, are shown in its place where they are set, and read again when they change.
	CertificateFile, KeyFile string
	// MeshTLS makes the server side of the mesh's mutual TLS, for the replica listener.
	MeshTLS func(svid.Authorize) *tls.Config
	// TrustDomain is that of the replicas' identities.
	TrustDomain string
	// Log takes the record of each request.
	Log Log
	// Installation is the domain that stands in the ErrorInfo of errors, after "redoubt.".
	Installation string
	// Version is told to clients that ask for it. Default that of the program, "devel" where it has none.
	Version string
	// Tracing may be nil: then no span is recorded.
	Tracing *observe.Tracing

	// MaxInFlightBytes bounds the bodies that are in memory at a time. Default 512 MiB.
	MaxInFlightBytes int64
	// MaxConnections of the scoring listener, and of one address. Defaults 8,192 and half of MaxConnections.
	MaxConnections, MaxConnectionsPerAddress int
	// MaxMirrored is how many copies for mirrors may be under way; others are not made. Default 32.
	MaxMirrored int
	// BodyGrace is how long a body may take besides a second for each 256 KiB of it. Default 10 s.
	BodyGrace time.Duration
	// WriteTimeout is how long a client may leave what it is sent unread. Default 30 s.
	WriteTimeout time.Duration
	// NoWorkerGrace is how long requests wait for a deployment that has just lost its last worker. Default 2 s.
	NoWorkerGrace time.Duration

	// IntN gives a number from 0 to n-1, for the split of the traffic. Default math/rand/v2's. Safe for concurrent use.
	IntN   func(n int) int
	Now    func() time.Time
	Logger *slog.Logger
}

// Server answers the requests to endpoints. It is safe for concurrent use.
type Server struct {
	cfg  Config
	pool *pool.Pool

	setting sync.Mutex // of Set and Remove, one at a time
	byUID   sync.Map   // string → *endpoint
	byName  sync.Map   // full name → uid

	inFlight atomic.Int64 // bytes
	mirrored chan struct{}
	mirrors  sync.WaitGroup
	unknown  atomic.Int64
	bodies   sync.Pool // *pool.Body
	records  sync.Pool // *record
	unzips   sync.Pool // *gzip.Reader
	copies   sync.Pool // *[]byte

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
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 8192
	}
	if cfg.MaxConnectionsPerAddress == 0 {
		cfg.MaxConnectionsPerAddress = max(cfg.MaxConnections/2, 1)
	}
	if cfg.MaxMirrored == 0 {
		cfg.MaxMirrored = 32
	}
	if cfg.BodyGrace == 0 {
		cfg.BodyGrace = 10 * time.Second
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = 30 * time.Second
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
		if cfg.Certificate, err = front.Files(cfg.CertificateFile, cfg.KeyFile, cfg.Now, cfg.Logger); err != nil {
			return nil, err
		}
	}
	p, err := pool.New(pool.Config{TLS: cfg.MeshTLS, TrustDomain: cfg.TrustDomain, Grace: cfg.NoWorkerGrace, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, pool: p, mirrored: make(chan struct{}, cfg.MaxMirrored)}
	s.bodies.New = func() any { return pool.NewBody(smallBody) }
	s.records.New = func() any { return newRecord() }
	s.unzips.New = func() any { return new(gzip.Reader) }
	s.copies.New = func() any { b := make([]byte, copySize); return &b }
	s.grpc = newOIPServers(s)
	return s, nil
}

// Set makes e what the listener knows of the endpoint. When it returns, no request that begins later sees the earlier state, and none
// that is still on its way to a worker gets there by a credential that e does not have.
func (s *Server) Set(e *Endpoint) {
	s.setting.Lock()
	defer s.setting.Unlock()
	fresh := newEndpoint(e)
	for _, d := range e.Deployments {
		s.pool.Configure(d.UID, d.Replicas, d.QueueLength)
	}
	old, _ := s.endpoint(e.UID)
	s.byUID.Store(e.UID, fresh)
	if old != nil && old.Name != e.Name {
		s.byName.CompareAndDelete(old.Name, e.UID)
	}
	s.byName.Store(e.Name, e.UID)
	s.retire(old, fresh)
}

// Remove forgets an endpoint. When it returns, a request that begins later finds none.
func (s *Server) Remove(endpointUID string) {
	s.setting.Lock()
	defer s.setting.Unlock()
	old, ok := s.endpoint(endpointUID)
	if !ok {
		return
	}
	s.byUID.Delete(endpointUID)
	s.byName.CompareAndDelete(old.Name, endpointUID)
	s.retire(old, nil)
}

// retire ends the queues of deployments that are no longer there. It comes after the new state stands, so that who waited in one finds
// where to go.
func (s *Server) retire(old, fresh *endpoint) {
	if old == nil {
		return
	}
	for _, d := range old.Deployments {
		if fresh == nil || fresh.Deployments[d.ID] == nil || fresh.Deployments[d.ID].UID != d.UID {
			s.pool.Retire(d.UID)
		}
	}
}

func (s *Server) endpoint(uid string) (*endpoint, bool) {
	v, ok := s.byUID.Load(uid)
	if !ok {
		return nil, false
	}
	e, ok := v.(*endpoint)
	return e, ok
}

func (s *Server) endpointNamed(name string) (*endpoint, bool) {
	uid, ok := s.byName.Load(name)
	if !ok {
		return nil, false
	}
	u, _ := uid.(string)
	return s.endpoint(u)
}

// Expect lets the workers of a replica connect from now on.
func (s *Server) Expect(runUID, workspaceUID, deploymentUID string) {
	s.pool.Expect(runUID, workspaceUID, deploymentUID)
}

// Forget closes the connections of a replica and takes no more. What it was answering is cut.
func (s *Server) Forget(runUID string) { s.pool.Forget(runUID) }

// Ready is how many workers of a replica are connected.
func (s *Server) Ready(runUID string) int { return s.pool.Ready(runUID) }

// Changed has a token after workers came or went.
func (s *Server) Changed() <-chan struct{} { return s.pool.Changed() }

// Drain returns when no request is on a replica's connections any more. Take it out of its deployment by Set first.
func (s *Server) Drain(ctx context.Context, runUID string) error { return s.pool.Drain(ctx, runUID) }

// Unknown is how many requests named an endpoint that is none. They have no workspace, and so no record.
func (s *Server) Unknown() int64 { return s.unknown.Load() }
