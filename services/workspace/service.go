package workspace

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store"
)

// Migrations of the tables that this service owns.
func Migrations() sqldb.MigrationSet { return store.Migrations() }

// Config of the service. All but Leader, Limits, Heartbeat, Now and Logger is required.
type Config struct {
	// DB has the tables of Migrations, of the outbox and of the data keys.
	DB *sqldb.DB
	// Outbox takes the records of what is done outside a call: the first administrator, what Run finishes.
	Outbox *audit.Outbox
	// Own are the keys under the service's own seal, Keys those of workspaces, from keyvault.
	Own, Keys *envelope.Keyring
	Blobs     *blob.Store
	// Leader says which instance does what one alone must do. Nil only on SQLite, where one process has the database.
	Leader *leader.Leader
	// Fence has a change of access be in force everywhere before its call returns. Without one a change waits for those who are connected
	// for a while: for tests of one process.
	Fence fence.Changer
	// Engine is that of the service's own chain. The service keeps its authorization state: do not feed it from WatchAuthorization
	// too.
	Engine *authz.Engine

	Identity identityv1.PrincipalServiceClient
	Vaults   keyvaultv1.VaultServiceClient
	Runs     computev1.RunInternalServiceClient
	Ingest   telemetryv1.IngestServiceClient
	// Endpoints is inference.
	Endpoints inferencev1.InferenceInternalServiceClient

	Limits Limits
	// Heartbeat is how often a silent authorization stream says that it is alive, at most 2 s. Default 1 s.
	Heartbeat time.Duration

	Now    func() time.Time // time.Now when nil
	Logger *slog.Logger     // silent when nil
}

// Limits of snapshots; zero fields take the defaults.
type Limits struct {
	// FileBytes bounds one file. Default 1 GiB.
	FileBytes int64
	// SnapshotBytes bounds the files of a snapshot together. Default 4 GiB.
	SnapshotBytes int64
	// Entries bounds how many files a snapshot has. Default and most 100,000.
	Entries int
}

const (
	maxEntries   = 100_000
	maxHeartbeat = 2 * time.Second
	startTimeout = 30 * time.Second
)

func (c *Config) check() error {
	switch {
	case c.DB == nil || c.Outbox == nil || c.Own == nil || c.Keys == nil || c.Blobs == nil || c.Engine == nil:
		return errors.New("workspace: DB, Outbox, Own, Keys, Blobs and Engine are required")
	case c.Identity == nil || c.Vaults == nil || c.Runs == nil || c.Ingest == nil || c.Endpoints == nil:
		return errors.New("workspace: Identity, Vaults, Runs, Ingest and Endpoints are required")
	case c.Heartbeat < 0 || c.Heartbeat > maxHeartbeat:
		return errors.New("workspace: a heartbeat is at most 2 s")
	case c.Limits.FileBytes < 0 || c.Limits.SnapshotBytes < 0 || c.Limits.Entries < 0 || c.Limits.Entries > maxEntries:
		return errors.New("workspace: the limits of snapshots are not negative, and at most 100,000 entries")
	}
	if c.Limits.FileBytes == 0 {
		c.Limits.FileBytes = 1 << 30
	}
	if c.Limits.SnapshotBytes == 0 {
		c.Limits.SnapshotBytes = 4 << 30
	}
	if c.Limits.Entries == 0 {
		c.Limits.Entries = maxEntries
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Service is workspace. It is safe for concurrent use.
type Service struct {
	workspacev1.UnsafeResourceServiceServer
	workspacev1.UnsafeAccessServiceServer
	workspacev1.UnsafeAuthorizationStateServiceServer
	workspacev1.UnsafeSnapshotServiceServer

	cfg   Config
	store *store.Store
	feed  *feed

	mu     sync.Mutex
	claims map[string]int // how many calls of this process are at a workspace, by its uid
}

var (
	_ workspacev1.ResourceServiceServer           = (*Service)(nil)
	_ workspacev1.AccessServiceServer             = (*Service)(nil)
	_ workspacev1.AuthorizationStateServiceServer = (*Service)(nil)
	_ workspacev1.SnapshotServiceServer           = (*Service)(nil)
)

// New makes the service and gives Config.Engine its authorization state.
func New(cfg Config) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Leader == nil {
		var err error
		if cfg.Leader, err = leader.New(leader.Config{DB: cfg.DB, Holder: "workspace", Now: cfg.Now, Logger: cfg.Logger}); err != nil {
			return nil, err
		}
	}
	s := &Service{cfg: cfg, store: store.New(cfg.DB, cfg.Own, cfg.Now), claims: make(map[string]int)}
	s.feed = newFeed(s)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := s.feed.apply(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Register puts the service's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	workspacev1.RegisterResourceServiceServer(r, s)
	workspacev1.RegisterAccessServiceServer(r, s)
	workspacev1.RegisterAuthorizationStateServiceServer(r, s)
	workspacev1.RegisterSnapshotServiceServer(r, s)
}

const (
	settleEvery = 2 * time.Second  // between attempts to finish what was left half made
	pruneEvery  = time.Minute      // of changes and request ids
	sweepEvery  = 10 * time.Minute // of blobs that no snapshot took
)

// Run keeps the service's own engine fresh, and takes up what other instances have changed; in one of the instances it finishes what
// earlier processes left half made, and cleans up. It returns nil when ctx has ended.
func (s *Service) Run(ctx context.Context) error {
	var jobs sync.WaitGroup
	defer jobs.Wait()
	jobs.Go(func() { s.feed.progress.Run(ctx) })
	jobs.Go(func() { s.feed.settle(ctx) })
	jobs.Go(func() { _ = s.cfg.Leader.Lead(ctx, "settle", s.lead) })
	changed, stop := s.cfg.DB.Signals(store.Changed)
	defer stop()
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	for {
		if err := s.feed.apply(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.WarnContext(ctx, "the authorization state could not be read", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			s.feed.wake()
		case <-beat.C:
		}
	}
}

// lead does what one instance alone does, while it leads. A job that fails because another instance leads by now ends the leadership;
// any other failure is logged, and the job is tried again.
func (s *Service) lead(ctx context.Context, term *leader.Term) error {
	var jobs sync.WaitGroup
	every := func(period time.Duration, what string, job func(context.Context) error) {
		jobs.Go(func() {
			tick := time.NewTicker(period)
			defer tick.Stop()
			for {
				if err := job(ctx); err != nil && ctx.Err() == nil {
					s.cfg.Logger.WarnContext(ctx, what, "error", err)
				}
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		})
	}
	every(settleEvery, "a workspace is still half made or half removed", func(ctx context.Context) error { return s.settle(ctx, term.Check) })
	every(pruneEvery, "old changes could not be deleted", func(ctx context.Context) error { return s.store.Prune(ctx, term.Write) })
	every(sweepEvery, "unused blobs could not be deleted", func(ctx context.Context) error { return s.sweep(ctx, term.Write) })
	jobs.Wait()
	return nil
}

// Close ends the open streams. The database and the blobs belong to whoever opened them.
func (s *Service) Close() error {
	s.feed.close()
	return nil
}
