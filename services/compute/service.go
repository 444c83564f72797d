package compute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/agents"
	"github.com/redoubt-ml/redoubt/services/compute/internal/driver"
	"github.com/redoubt-ml/redoubt/services/compute/internal/outputs"
	"github.com/redoubt-ml/redoubt/services/compute/internal/queue"
	"github.com/redoubt-ml/redoubt/services/compute/internal/replicas"
	"github.com/redoubt-ml/redoubt/services/compute/internal/runs"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/targets"
	"github.com/redoubt-ml/redoubt/services/compute/internal/tracking"
)

// Migrations of the tables that this service owns.
func Migrations() sqldb.MigrationSet { return store.Migrations() }

// Config of the service. DB, Outbox, Own, Keys, Blobs, Engine, the peers, Dir, Gateway, PublicURL and CA are required.
type Config struct {
	DB     *sqldb.DB
	Outbox *audit.Outbox
	// Own are the service's own keys; Keys are those of workspaces.
	Own, Keys *envelope.Keyring
	Blobs     *blob.Store
	Engine    *authz.Engine
	// Decide decides something on a view of the fence, and again at each commit in the context that comes back; as rpc.Decide. Nil is without
	// a fence: for tests.
	Decide    func(ctx context.Context, check func() error) (decided context.Context, release func(), err error)
	Tokens    identityv1.TokenServiceClient
	Agents    identityv1.AgentServiceClient
	Snapshots workspacev1.SnapshotServiceClient
	RunData   RunData
	// Dir is the state folder; the local target's runs have folders below Dir/runs.
	Dir string
	// Gateway is the host:port that agents dial, PublicURL the URL that their proofs name, CA gives the roots to believe there now, as PEM.
	Gateway, PublicURL string
	CA                 func() ([]byte, error)
	// AgentCommand starts an agent on this machine. Empty is this binary with "agent".
	AgentCommand []string
	// NoLocalTargets refuses local targets: nothing is started on the service's own machine.
	NoLocalTargets bool
	// Python finds the Python of this machine, for the agents that are started here; nil lets each of them look.
	Python func(context.Context) (Interpreter, error)
	// Driver places agents for local targets; nil is the one that starts AgentCommand.
	Driver Driver
	// ConnectionAge is after what time connections are asked to go; 0 is long.
	ConnectionAge time.Duration
	// Instance is this instance's name, and Leader elects one of all that share the database. Leader is required by Run.
	Instance string
	Leader   *leader.Leader
	// Heartbeat is how often agents report. Default 2 s.
	Heartbeat time.Duration
	// Silence is how long a run's agent may be silent before the run is lost; it covers the restart of what lies between. Default 15 s, or
	// three heartbeats where that is longer.
	Silence time.Duration
	// StartWait is how long a run waits whose start is kept up by a token of the platform's that is refused: clocks are apart. Default 30 min.
	StartWait time.Duration
	// StartGrace is how long an agent may take to ask for its assignment. Default 60 s.
	StartGrace time.Duration
	// CancelGrace is how long a cancelled run may take to report; its token opens only what delivers in that time. Default 30 s.
	CancelGrace time.Duration
	// LostGrace is how long the agent of a run that was given up for its silence may still deliver what it has. Default 4 min, which is less than
	// what is left of a token that is renewed at half of its ten minutes. Below 0 is not at all; at most authn.MaxDelivery.
	LostGrace time.Duration
	// MaxLogBytes and MaxOutputBytes bound what one run may leave; MaxOutputs how many files. Defaults 64 MiB, 1 GiB, 1,000.
	MaxLogBytes, MaxOutputBytes int64
	MaxOutputs                  int64

	Now    func() time.Time
	Logger *slog.Logger
}

func (c *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Heartbeat, 2*time.Second)
	set(&c.Silence, max(15*time.Second, 3*c.Heartbeat))
	set(&c.StartWait, 30*time.Minute)
	set(&c.StartGrace, time.Minute)
	set(&c.CancelGrace, 30*time.Second)
	set(&c.LostGrace, 4*time.Minute)
	if c.MaxLogBytes == 0 {
		c.MaxLogBytes = 64 << 20
	}
	if c.MaxOutputBytes == 0 {
		c.MaxOutputBytes = 1 << 30
	}
	if c.MaxOutputs == 0 {
		c.MaxOutputs = 1000
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Decide == nil {
		c.Decide = func(ctx context.Context, check func() error) (context.Context, func(), error) {
			return rpc.Decide(ctx, nil, check)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// What Config speaks of.
type (
	// Driver places agents on a target.
	Driver = driver.Driver
	// Placement is what an agent is started with.
	Placement = driver.Placement
	// Interpreter is where a machine's Python lives.
	Interpreter = driver.Interpreter
	// RunData is what a search asks telemetry.
	RunData = tracking.RunData
)

// Service is the compute service.
type Service struct {
	cfg    Config
	store  *store.Store
	queue  *queue.Queue
	local  *driver.Local // nil where Config has a driver
	bounds tracking.Bounds
}

// New makes the service.
func New(cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Outbox == nil || cfg.Keys == nil || cfg.Blobs == nil || cfg.Engine == nil {
		return nil, errors.New("compute: DB, Outbox, Keys, Blobs and Engine are required")
	}
	if cfg.Tokens == nil || cfg.Agents == nil || cfg.Snapshots == nil || cfg.RunData == nil || cfg.Gateway == "" || cfg.PublicURL == "" || cfg.CA == nil || cfg.Dir == "" {
		return nil, errors.New("compute: the peers, Dir, Gateway, PublicURL and CA are required")
	}
	if cfg.CancelGrace > authn.MaxDelivery || cfg.LostGrace > authn.MaxDelivery {
		return nil, fmt.Errorf("compute: CancelGrace and LostGrace are at most %v", authn.MaxDelivery)
	}
	cfg.defaults()
	s := &Service{cfg: cfg, store: store.New(cfg.DB, cfg.Keys, cfg.Logger), bounds: tracking.Bounds{Answer: 24 << 20, Kept: 32 << 20}}
	if cfg.Driver == nil {
		var err error
		s.local, err = driver.NewLocal(driver.LocalConfig{Dir: filepath.Join(cfg.Dir, "runs"), Command: cfg.AgentCommand, Python: cfg.Python, Now: cfg.Now, Logger: cfg.Logger})
		if err != nil {
			return nil, err
		}
		s.cfg.Driver = s.local
	}
	s.queue = queue.New(queue.Config{
		Store: s.store, Driver: s.cfg.Driver, Outbox: cfg.Outbox, Engine: cfg.Engine, Decide: cfg.Decide, Tokens: cfg.Tokens, Agents: cfg.Agents, Snapshots: cfg.Snapshots,
		Gateway: cfg.Gateway, PublicURL: cfg.PublicURL, CA: cfg.CA, NoLocalTargets: cfg.NoLocalTargets, Instance: cfg.Instance, Leader: cfg.Leader,
		Heartbeat: cfg.Heartbeat, Silence: cfg.Silence, StartWait: cfg.StartWait, StartGrace: cfg.StartGrace, CancelGrace: cfg.CancelGrace, LostGrace: cfg.LostGrace,
		Now: cfg.Now, Logger: cfg.Logger,
	})
	return s, nil
}

// Register puts the service's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	cfg := s.cfg
	files := outputs.New(outputs.Config{Store: s.store, Blobs: cfg.Blobs, Most: cfg.MaxOutputs, MaxBytes: cfg.MaxOutputBytes, Now: cfg.Now, Logger: cfg.Logger})
	run := runs.Config{
		Store: s.store, Queue: s.queue, Outputs: files, Blobs: cfg.Blobs, Snapshots: cfg.Snapshots, Now: cfg.Now,
	}
	track := tracking.Config{Store: s.store, Outputs: files, RunData: cfg.RunData, Bounds: &s.bounds, Now: cfg.Now}
	computev1.RegisterComputeServiceServer(r, targets.New(targets.Config{Store: s.store, Queue: s.queue, NoLocalTargets: cfg.NoLocalTargets, ConnectionAge: cfg.ConnectionAge, Now: cfg.Now}))
	computev1.RegisterRunServiceServer(r, runs.New(run))
	computev1.RegisterRunInternalServiceServer(r, runs.NewInternal(run))
	computev1.RegisterExperimentServiceServer(r, tracking.NewExperiments(track))
	computev1.RegisterTrackingServiceServer(r, tracking.New(track))
	computev1.RegisterAgentRunServiceServer(r, agents.New(agents.Config{
		Store: s.store, Queue: s.queue, Outputs: files, Heartbeat: cfg.Heartbeat, MaxLogBytes: cfg.MaxLogBytes, Now: cfg.Now, Logger: cfg.Logger,
	}))
	computev1.RegisterReplicaServiceServer(r, replicas.New(replicas.Config{Store: s.store, Queue: s.queue, Engine: cfg.Engine, Now: cfg.Now}))
}

// Run carries the queue until ctx ends. Config has a Leader.
func (s *Service) Run(ctx context.Context) error {
	if s.cfg.Leader == nil {
		return errors.New("compute: Leader is required")
	}
	return s.queue.Run(ctx)
}

// Close waits for what goes on beside the calls. The database is closed by whoever opened it.
func (s *Service) Close() error {
	if s.local != nil {
		s.local.Close()
	}
	return nil
}
