package telemetry

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/requests"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store"
)

// Runs is the part of compute that telemetry needs.
type Runs interface {
	DescribeRun(ctx context.Context, in *computev1.DescribeRunRequest, opts ...grpc.CallOption) (*computev1.DescribeRunResponse, error)
}

// Endpoints is the part of inference that telemetry needs.
type Endpoints interface {
	DescribeEndpoint(ctx context.Context, in *inferencev1.DescribeEndpointRequest, opts ...grpc.CallOption) (*inferencev1.DescribeEndpointResponse, error)
}

// Config of a Service. DB, Own, Keys, Runs and Endpoints are required.
type Config struct {
	// DB has the tables of Migrations, and those of envelope and audit.
	DB *sqldb.DB
	// History is the database of run history, with HistoryMigrations; nil for DB, which has its tables too.
	History *sqldb.DB
	// Own has the keys of the activity log, under the service's own seal: one for each subscription, and one for the installation.
	Own *envelope.Keyring
	// Keys has the workspaces' data keys, wrapped by keyvault, and keeps them in DB.
	Keys *envelope.Keyring
	// Leader says which instance does what one alone must do. Nil only on SQLite, where one process has the database.
	Leader *leader.Leader
	// Runs says which run a name means.
	Runs Runs
	// Endpoints says which endpoint a name means.
	Endpoints Endpoints
	// RequestRetention is how long requests to endpoints are kept; 0 means 30 days.
	RequestRetention time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger takes what an operator should know; nil discards.
	Logger *slog.Logger
}

// Migrations brings every table of telemetry into one database.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "telemetry", FS: union{store.Files, history.Migrations().FS, requests.Migrations().FS}, Dir: "migrations"}
}

// HistoryMigrations brings the tables of run history into a database of its own.
func HistoryMigrations() sqldb.MigrationSet { return history.Migrations() }

// union is file systems whose folders are read as one. Their files have different names.
type union []fs.FS

// Open implements fs.FS.
func (u union) Open(name string) (fs.File, error) {
	for _, fsys := range u[:len(u)-1] {
		if f, err := fsys.Open(name); err == nil {
			return f, nil
		}
	}
	return u[len(u)-1].Open(name)
}

// ReadDir implements fs.ReadDirFS.
func (u union) ReadDir(name string) ([]fs.DirEntry, error) {
	var all []fs.DirEntry
	for _, fsys := range u {
		entries, err := fs.ReadDir(fsys, name)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return all, nil
}

// Service is safe for concurrent use.
type Service struct {
	cfg      Config
	activity *store.Store
	history  *history.Stores
	requests *requests.Store
	feed     *feed
	runs     runCache
	stop     chan struct{} // closed when streams must end
	once     sync.Once
}

// New makes the service. Close ends it.
func New(cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Own == nil || cfg.Keys == nil || cfg.Runs == nil || cfg.Endpoints == nil {
		return nil, errors.New("telemetry: DB, Own, Keys, Runs and Endpoints are required")
	}
	if cfg.History == nil {
		cfg.History = cfg.DB
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if cfg.Leader == nil {
		if cfg.Leader, err = leader.New(leader.Config{DB: cfg.DB, Holder: "telemetry", Now: cfg.Now, Logger: cfg.Logger}); err != nil {
			return nil, err
		}
	}
	s := &Service{cfg: cfg, activity: store.New(cfg.DB, cfg.Own), stop: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := s.activity.Ready(ctx); err != nil {
		return nil, err
	}
	if s.requests, err = requests.New(requests.Config{DB: cfg.DB, Keys: cfg.Keys, Retention: cfg.RequestRetention, Now: cfg.Now, Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	if err := s.requests.Ready(ctx); err != nil {
		return nil, err
	}
	if s.history, err = history.Open(history.Config{Shared: cfg.History, Keys: cfg.Keys, Now: cfg.Now, Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	if err := s.history.Each(func(h *history.Store) error { return h.Ready(ctx) }); err != nil {
		s.history.Close()
		return nil, err
	}
	s.feed = newFeed(s.activity, cfg.Logger)
	return s, nil
}

// Register puts the service's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	telemetryv1.RegisterActivityServiceServer(r, activityServer{s: s})
	telemetryv1.RegisterIngestServiceServer(r, ingestServer{s: s})
	telemetryv1.RegisterMetricServiceServer(r, metricServer{s: s})
	telemetryv1.RegisterRequestLogServiceServer(r, requestServer{s: s})
}

// forgetEvery is how often old batch ids and old requests are removed.
const forgetEvery = time.Hour

// Run feeds the watches of the activity, and in one of the instances tidies up, until ctx ends. Then open streams end too.
func (s *Service) Run(ctx context.Context) error {
	defer s.endStreams()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.feed.run(ctx) })
	return s.cfg.Leader.Lead(ctx, "tidy", s.tidy)
}

// tidy removes what is over, while this instance leads.
func (s *Service) tidy(ctx context.Context, term *leader.Term) error {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		write := sqldb.WriteFunc(term.Write)
		if s.cfg.History != s.cfg.DB {
			write = s.cfg.History.Write // a database of its own has no terms: what is over is over, whoever removes it
		}
		err := s.history.Each(func(h *history.Store) error { return h.Forget(ctx, write) })
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.WarnContext(ctx, "old batch ids could not be removed; they are tried again", "error", err)
		}
		if err := s.requests.Sweep(ctx, term.Write); err != nil && ctx.Err() == nil {
			s.cfg.Logger.WarnContext(ctx, "old requests could not be removed; they are tried again", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) endStreams() { s.once.Do(func() { close(s.stop) }) }

// Close ends open streams and refuses further batches; those in a transaction are finished first. Databases are not closed.
func (s *Service) Close() error {
	s.endStreams()
	s.history.Close()
	return nil
}
