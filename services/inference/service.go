package inference

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/inference/internal/endpoints"
	"github.com/redoubt-ml/redoubt/services/inference/internal/models"
	"github.com/redoubt-ml/redoubt/services/inference/internal/requestlog"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// Migrations of the tables that this service owns.
func Migrations() sqldb.MigrationSet { return store.Migrations() }

// Config of the service. All but CertificateFile, KeyFile, Now and Logger is required.
type Config struct {
	DB     *sqldb.DB
	Outbox *audit.Outbox
	// Own are the service's own keys; Keys are those of workspaces.
	Own, Keys *envelope.Keyring
	Blobs     *blob.Store
	Engine    *authz.Engine
	// Dir is the state folder.
	Dir string

	Replicas    computev1.ReplicaServiceClient
	Computes    computev1.ComputeServiceClient
	Runs        computev1.RunServiceClient
	RunInternal computev1.RunInternalServiceClient
	Snapshots   workspacev1.SnapshotServiceClient
	Ingest      telemetryv1.IngestServiceClient
	// RequestLog takes what was asked of endpoints; until it has, that is spooled in Dir.
	RequestLog telemetryv1.RequestLogServiceClient
	// Instance is the name of this instance.
	Instance string
	// OnRequestsDropped is told how many more requests could not be spooled, for a counter; nil tells nobody.
	OnRequestsDropped func(n int64)
	// OnUnknownEndpoint is told of each request to what is no endpoint, which has no record, for a counter; nil tells nobody.
	OnUnknownEndpoint func()

	// ScoringURL is the address of the scoring listener as clients write it, https://host:port; ReplicaAddress is host:port at which
	// agents reach the replica listener.
	ScoringURL, ReplicaAddress string
	// Certificate is what the scoring listener shows, asked for at each handshake; CertificateFile and KeyFile in its place, where
	// they are set, as PEM, read again when they change.
	Certificate              func() (*tls.Certificate, error)
	CertificateFile, KeyFile string
	// Edge bounds the connections of the scoring listener; OnRefused is told of those that got no further, for a counter; nil tells nobody.
	Edge      edge.Limits
	OnRefused func(edge.Refusal)
	// MeshTLS is the server side of the mesh's mutual TLS, for the replica listener; TrustDomain is the mesh's.
	MeshTLS     func(svid.Authorize) *tls.Config
	TrustDomain string
	// ConnectionAge is for how long a connection of a replica stands. Default 20 min.
	ConnectionAge time.Duration

	Now    func() time.Time
	Logger *slog.Logger
}

func (c *Config) check() error {
	switch {
	case c.DB == nil || c.Outbox == nil || c.Own == nil || c.Keys == nil || c.Blobs == nil || c.Engine == nil || c.Dir == "":
		return errors.New("inference: DB, Outbox, Own, Keys, Blobs, Engine and Dir are required")
	case c.Replicas == nil || c.Computes == nil || c.Runs == nil || c.RunInternal == nil || c.Snapshots == nil || c.Ingest == nil || c.RequestLog == nil:
		return errors.New("inference: the peers are required")
	case c.ScoringURL == "" || c.ReplicaAddress == "" || c.Certificate == nil || c.MeshTLS == nil || c.TrustDomain == "":
		return errors.New("inference: ScoringURL, ReplicaAddress, Certificate, MeshTLS and TrustDomain are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// openTimeout bounds what New waits for a key.
const openTimeout = 15 * time.Second

// Service is the inference service.
type Service struct {
	models    *models.Service
	serving   *serving.Server
	endpoints *endpoints.Service
	requests  *requestlog.Log
	holders   holders // of requests
}

// New makes the service.
func New(cfg Config) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Service{}
	var err error
	if s.models, err = models.New(models.Config{
		DB: cfg.DB, Own: cfg.Own, Keys: cfg.Keys, Blobs: cfg.Blobs, Runs: cfg.Runs, Now: cfg.Now, Logger: cfg.Logger,
	}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if s.requests, err = requestlog.Open(ctx, requestlog.Config{
		Dir: filepath.Join(cfg.Dir, "requests"), Own: cfg.Own, Client: cfg.RequestLog, Instance: cfg.Instance, OnDropped: cfg.OnRequestsDropped,
		Now: cfg.Now, Logger: cfg.Logger,
	}); err != nil {
		return nil, err
	}
	if s.serving, err = serving.New(serving.Config{
		Certificate: cfg.Certificate, CertificateFile: cfg.CertificateFile, KeyFile: cfg.KeyFile, MeshTLS: cfg.MeshTLS, TrustDomain: cfg.TrustDomain, ReplicaAge: cfg.ConnectionAge,
		Edge: cfg.Edge, OnRefused: cfg.OnRefused, Installation: cfg.TrustDomain, Log: s.requests, OnUnknown: cfg.OnUnknownEndpoint, Now: cfg.Now, Logger: cfg.Logger,
	}); err != nil {
		return nil, errors.Join(err, s.requests.Close())
	}
	s.endpoints, err = endpoints.New(endpoints.Config{
		DB: cfg.DB, Outbox: cfg.Outbox, Keys: cfg.Keys, Engine: cfg.Engine, Listener: s.serving, Models: s.models, Replicas: cfg.Replicas,
		Computes: cfg.Computes, Snapshots: cfg.Snapshots, ScoringURL: cfg.ScoringURL, ReplicaAddress: cfg.ReplicaAddress, Now: cfg.Now, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, errors.Join(err, s.requests.Close())
	}
	return s, nil
}

// Register puts the service's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	s.models.Register(r)
	s.endpoints.Register(r)
	s.serving.Register(r)
}

// Run does what goes on beside calls, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.holders.hold(s.requests)()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.requests.Relay(ctx) })
	g.Go(func() error { return s.models.Run(ctx) })
	g.Go(func() error { return s.endpoints.Run(ctx) })
	return g.Wait()
}

// Serve opens the service's own listeners until ctx ends: scoring for strangers, replicas for workers. What endpoints there are is
// known before the first connection is taken. It closes both.
func (s *Service) Serve(ctx context.Context, scoring, replicas net.Listener) error {
	defer s.holders.hold(s.requests)()
	if err := s.endpoints.Load(ctx); err != nil {
		_ = scoring.Close()
		_ = replicas.Close()
		return err
	}
	return s.serving.Serve(ctx, scoring, replicas)
}

// Close gives the spool of the request log back, or leaves it to Run and Serve where they have not ended yet: their last request is still
// logged. The database is closed by whoever opened it.
func (s *Service) Close() error { return s.holders.close(s.requests) }

// holders are those who still use something that is to be closed. The zero value is ready.
type holders struct {
	mu sync.Mutex
	n  int
}

// hold keeps c open until what it returns is called; the last one closes it.
func (h *holders) hold(c io.Closer) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.n--; h.n == 0 {
			_ = c.Close()
		}
	}
}

// close closes c, unless somebody holds it.
func (h *holders) close(c io.Closer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n > 0 {
		return nil
	}
	return c.Close()
}
