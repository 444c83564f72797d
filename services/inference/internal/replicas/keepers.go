package replicas

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// Listener is where workers connect.
type Listener interface {
	Expect(runUID, workspaceUID, deploymentUID string)
	Forget(runUID string)
	Ready(runUID string) int
	Changed() <-chan struct{}
	Drain(ctx context.Context, runUID string) error
}

// Config of Keepers. All but the durations is required.
type Config struct {
	Store    *store.Store
	Listener Listener
	Compute  computev1.ReplicaServiceClient
	// Address is where agents reach the listener, host:port.
	Address string
	// Change runs a transaction about an endpoint, after which the listener knows what is committed.
	Change func(ctx context.Context, workspace, endpoint string, fn func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints) error) error
	// Release lets go of the model version that Holder's name holds.
	Release func(ctx context.Context, tx *sqldb.Tx, holder string) error
	// Record writes into the activity log what is done with a deployment.
	Record func(ctx context.Context, tx *sqldb.Tx, d *store.Deployment, action string, details map[string]string) error
	// Changed is told of a deployment that looks different.
	Changed func(deployment string)
	// Backoff is how long the first failed start of a replica is waited for, doubled up to Slow, which is how often a deployment is tried
	// that has been given up. Defaults 1 s, 1 min.
	Backoff, Slow time.Duration
	// Settled is how long replicas have to answer before earlier failures are forgotten. Default 30 s.
	Settled time.Duration

	Now    func() time.Time
	Logger *slog.Logger
}

// Keepers look after deployments. They are safe for concurrent use.
type Keepers struct {
	cfg Config

	mu      sync.Mutex
	keepers map[string]*keeper // by deployment
	run     context.Context    // of Run; nil outside it
	jobs    sync.WaitGroup
}

// New makes keepers. They look after nothing before Run.
func New(cfg Config) (*Keepers, error) {
	if cfg.Store == nil || cfg.Listener == nil || cfg.Compute == nil || cfg.Address == "" || cfg.Change == nil || cfg.Release == nil || cfg.Record == nil ||
		cfg.Changed == nil || cfg.Now == nil || cfg.Logger == nil {
		return nil, errors.New("replicas: all of Config but the durations is required")
	}
	for d, v := range map[*time.Duration]time.Duration{&cfg.Backoff: time.Second, &cfg.Slow: time.Minute, &cfg.Settled: 30 * time.Second} {
		if *d == 0 {
			*d = v
		}
	}
	return &Keepers{cfg: cfg, keepers: make(map[string]*keeper)}, nil
}

// Holder is under which name a generation of a deployment holds its model version.
func Holder(deployment string, generation int64) string {
	return deployment + "." + strconv.FormatInt(generation, 10)
}

// Run looks after every deployment until ctx ends.
func (s *Keepers) Run(ctx context.Context) error {
	s.mu.Lock()
	s.run = ctx
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.run = nil
		s.mu.Unlock()
		s.jobs.Wait()
	}()
	again := time.NewTicker(againAfter)
	defer again.Stop()
	for found := false; ; {
		if !found {
			err := s.find(ctx)
			if found = err == nil; err != nil && ctx.Err() == nil {
				s.cfg.Logger.WarnContext(ctx, "the deployments cannot be looked after yet", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.cfg.Listener.Changed():
			s.lookAll()
		case <-again.C:
		}
	}
}

// find begins to look after every deployment that there is.
func (s *Keepers) find(ctx context.Context) error {
	list, err := s.cfg.Store.AllDeployments(ctx)
	if err != nil {
		return err
	}
	for _, at := range list {
		s.Look(at.Workspace, at.UID)
	}
	return nil
}

// Look makes sure that somebody looks after a deployment, and now.
func (s *Keepers) Look(workspace, uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || s.run.Err() != nil {
		return // whoever runs next looks after all
	}
	k := s.keepers[uid]
	if k == nil {
		ctx, cancel := context.WithCancel(s.run)
		k = &keeper{
			s: s, workspace: workspace, uid: uid, poked: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
			seen: make(map[string]sight), draining: make(map[string]bool),
		}
		s.keepers[uid] = k
		s.jobs.Go(func() {
			defer cancel()
			k.run(ctx)
		})
	}
	k.poke()
}

// lookAll pokes everybody: workers came or went.
func (s *Keepers) lookAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keepers {
		k.poke()
	}
}

// Leave ends the looking after the deployments of a workspace. When it returns, nothing of them is changed any more.
func (s *Keepers) Leave(ctx context.Context, workspace string) error {
	s.mu.Lock()
	var left []*keeper
	for _, k := range s.keepers {
		if k.workspace == workspace {
			k.cancel()
			left = append(left, k)
		}
	}
	s.mu.Unlock()
	for _, k := range left {
		select {
		case <-k.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
