package compute

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/blob"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
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
	Tokens    identityv1.TokenServiceClient
	Agents    identityv1.AgentServiceClient
	Snapshots workspacev1.SnapshotServiceClient
	RunData   RunData
	// Dir is the state folder; the local target's runs have folders below Dir/runs.
	Dir string
	// Gateway is the host:port that agents dial, PublicURL the URL that their proofs name, CA the roots to believe there, as PEM.
	Gateway, PublicURL string
	CA                 []byte
	// AgentCommand starts an agent on this machine. Empty is this binary with "agent".
	AgentCommand []string
	// Python finds the Python of this machine, for the agents that are started here; nil lets each of them look.
	Python func(context.Context) (Interpreter, error)
	// Driver places agents for local targets; nil is the one that starts AgentCommand.
	Driver Driver
	// Heartbeat is how often agents report; silent for three times that, a run is lost. Default 2 s.
	Heartbeat time.Duration
	// StartGrace is how long an agent may take to ask for its assignment. Default 60 s.
	StartGrace time.Duration
	// CancelGrace is how long a cancelled run may take to report. Default 30 s.
	CancelGrace time.Duration
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
	set(&c.StartGrace, time.Minute)
	set(&c.CancelGrace, 30*time.Second)
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
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Service is the compute service.
type Service struct {
	cfg    Config
	store  *store.Store
	driver Driver
	news   *news
	queue  chan struct{} // something may be startable
	bounds searchBounds
}

// New makes the service.
func New(cfg Config) (*Service, error) {
	if cfg.DB == nil || cfg.Outbox == nil || cfg.Keys == nil || cfg.Blobs == nil || cfg.Engine == nil {
		return nil, errors.New("compute: DB, Outbox, Keys, Blobs and Engine are required")
	}
	if cfg.Tokens == nil || cfg.Agents == nil || cfg.Snapshots == nil || cfg.RunData == nil || cfg.Gateway == "" || cfg.PublicURL == "" || len(cfg.CA) == 0 || cfg.Dir == "" {
		return nil, errors.New("compute: the peers, Dir, Gateway, PublicURL and CA are required")
	}
	cfg.defaults()
	s := &Service{cfg: cfg, store: store.New(cfg.DB, cfg.Keys, cfg.Logger), driver: cfg.Driver, news: newNews(), queue: make(chan struct{}, 1), bounds: searchBounds{answer: 24 << 20, kept: 32 << 20}}
	if s.driver == nil {
		d, err := newLocal(localConfig{Dir: filepath.Join(cfg.Dir, "runs"), Command: cfg.AgentCommand, Python: cfg.Python, Now: cfg.Now, Logger: cfg.Logger})
		if err != nil {
			return nil, err
		}
		s.driver = d
	}
	return s, nil
}

// Register puts the service's methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	computev1.RegisterComputeServiceServer(r, computes{s: s})
	computev1.RegisterRunServiceServer(r, runs{s: s})
	computev1.RegisterExperimentServiceServer(r, experiments{s: s})
	computev1.RegisterTrackingServiceServer(r, tracking{s: s})
	computev1.RegisterAgentRunServiceServer(r, agents{s: s})
	computev1.RegisterRunInternalServiceServer(r, internal{s: s})
	computev1.RegisterReplicaServiceServer(r, replicas{s: s})
}

// Close waits for what goes on beside the calls. The database is closed by whoever opened it.
func (s *Service) Close() error {
	if l, ok := s.driver.(*local); ok {
		l.pythons.wait()
	}
	return nil
}

// record is the audit record of the call that ctx belongs to.
func record(details ...string) store.Record {
	return func(ctx context.Context, tx *sqldb.Tx) error { return rpc.From(ctx).Audit(ctx, tx, details...) }
}

// absent gives the one answer for what is not there.
func absent(err error, name string) error {
	if fault.Is(err, codes.NotFound) {
		return rpc.NotFound(name)
	}
	return err
}

// run finds the run that a call is about.
func (s *Service) run(ctx context.Context, name string) (*store.Run, error) {
	call := rpc.From(ctx)
	r, err := s.store.Run(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID())
	return r, absent(err, name)
}

// page opens a page token, and gives what seals the next one.
func (s *Service) page(ctx context.Context, workspace, query, token string) (store.Cursor, func(cur store.Cursor, got, limit int) (string, error), error) {
	key, err := s.store.Key(ctx, workspace)
	if err != nil {
		return store.Cursor{}, nil, err
	}
	next := func(cur store.Cursor, got, limit int) (string, error) {
		if got < limit {
			return "", nil
		}
		return key.SealPage(query, cur.Bytes())
	}
	if token == "" {
		return store.Cursor{}, next, nil
	}
	b, err := key.OpenPage(query, token)
	if err != nil {
		return store.Cursor{}, nil, err
	}
	cur, err := envelope.ParseCursor(b)
	return cur, next, err
}

// news tells waiting streams that something about a run or a target has changed. It holds an entry only while somebody waits.
type news struct {
	mu sync.Mutex
	m  map[string]*waiters
}

// waiters are those who wait for one change.
type waiters struct {
	changed chan struct{}
	n       int
}

func newNews() *news { return &news{m: make(map[string]*waiters)} }

// next gives a channel that is closed at the next change. Take it before reading, so that no change is missed, and leave when it is
// not waited for any more.
func (n *news) next(uid string) (changed <-chan struct{}, leave func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, ok := n.m[uid]
	if !ok {
		w = &waiters{changed: make(chan struct{})}
		n.m[uid] = w
	}
	w.n++
	return w.changed, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if w.n--; w.n == 0 && n.m[uid] == w {
			delete(n.m, uid)
		}
	}
}

func (n *news) changed(uid string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w, ok := n.m[uid]; ok {
		close(w.changed)
		delete(n.m, uid)
	}
}

// each calls look now and after each change, until it is done or fails, or ctx ends.
func (n *news) each(ctx context.Context, uid string, look func() (done bool, err error)) error {
	for {
		changed, leave := n.next(uid)
		done, err := look()
		if !done && err == nil {
			select {
			case <-changed:
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		leave()
		if done || err != nil {
			return err
		}
	}
}

// wake makes the queue look again.
func (s *Service) wake() {
	select {
	case s.queue <- struct{}{}:
	default:
	}
}
