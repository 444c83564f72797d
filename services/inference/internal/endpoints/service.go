package endpoints

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/models"
	"github.com/redoubt-ml/redoubt/services/inference/internal/replicas"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store"
)

// Listener is what serves endpoints: serving.Server.
type Listener interface {
	replicas.Listener
	Set(e *serving.Endpoint)
	Remove(endpointUID string)
}

// Models is what deployments need of models.
type Models interface {
	// Resolve says which version a name means: by number, alias or "latest".
	Resolve(ctx context.Context, workspaceUID string, name resource.Name) (models.Version, error)
	// Hold keeps a version from being deleted, and Release lets go of all that a user holds.
	Hold(ctx context.Context, tx *sqldb.Tx, versionUID, userUID, userName string) error
	Release(ctx context.Context, tx *sqldb.Tx, userUID string) error
	// Purge removes the models of a workspace, in the transaction that removes all else of it.
	Purge(ctx context.Context, tx *sqldb.Tx, workspaceUID string) error
}

// Config of the part. All but the durations is required.
type Config struct {
	DB        *sqldb.DB
	Outbox    *audit.Outbox
	Keys      *envelope.Keyring
	Engine    *authz.Engine
	Listener  Listener
	Models    Models
	Replicas  computev1.ReplicaServiceClient
	Computes  computev1.ComputeServiceClient
	Snapshots workspacev1.SnapshotServiceClient
	// ScoringURL and ReplicaAddress are as in inference.Config.
	ScoringURL, ReplicaAddress string
	// Backoff, Slow and Settled are as in replicas.Config.
	Backoff, Slow, Settled time.Duration

	Now    func() time.Time
	Logger *slog.Logger
}

// Service is endpoints and deployments. It is safe for concurrent use.
type Service struct {
	cfg   Config
	store *store.Store
	locks locks
	news  news

	keepers *replicas.Keepers

	mu    sync.Mutex
	dirty map[string]string // endpoint → workspace: what the listener has to be told anew
}

// New makes it.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.DB == nil || cfg.Outbox == nil || cfg.Keys == nil || cfg.Engine == nil || cfg.Now == nil || cfg.Logger == nil:
		return nil, errors.New("endpoints: DB, Outbox, Keys, Engine, Now and Logger are required")
	case cfg.Listener == nil || cfg.Models == nil || cfg.Replicas == nil || cfg.Computes == nil || cfg.Snapshots == nil || cfg.ScoringURL == "" || cfg.ReplicaAddress == "":
		return nil, errors.New("endpoints: the listener, the models, the peers and the addresses are required")
	}
	s := &Service{cfg: cfg, store: store.New(cfg.DB, cfg.Keys), dirty: make(map[string]string)}
	var err error
	s.keepers, err = replicas.New(replicas.Config{
		Store: s.store, Listener: cfg.Listener, Compute: cfg.Replicas, Address: cfg.ReplicaAddress, Change: s.change, Release: cfg.Models.Release,
		Record: s.record, Changed: s.news.changed, Backoff: cfg.Backoff, Slow: cfg.Slow, Settled: cfg.Settled, Now: cfg.Now, Logger: cfg.Logger,
	})
	return s, err
}

// Register puts the methods on a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	inferencev1.RegisterEndpointServiceServer(r, api{s: s})
	inferencev1.RegisterInferenceInternalServiceServer(r, internal{s: s})
}

type api struct {
	inferencev1.UnsafeEndpointServiceServer
	s *Service
}

var _ inferencev1.EndpointServiceServer = api{}

// absent gives the one answer for what is not there.
func absent(err error, name string) error {
	if fault.Is(err, codes.NotFound) {
		return rpc.NotFound(name)
	}
	return err
}

// reader gives the queries of a workspace outside a transaction.
func (s *Service) reader(ctx context.Context, workspace string) (store.Endpoints, error) {
	key, err := s.store.Key(ctx, workspace)
	if err != nil {
		return store.Endpoints{}, err
	}
	return s.store.Endpoints(s.store.Reader(), key), nil
}

// endpoint finds the endpoint that a name of it, or of what stands in it, means.
func (s *Service) endpoint(ctx context.Context, call *rpc.Call) (*store.Endpoint, error) {
	name, ok := call.Scope.Name.Ancestor(resource.KindEndpoint)
	if !ok {
		return nil, fault.Internal(nil, "a call about an endpoint names none")
	}
	x, err := s.reader(ctx, call.Scope.WorkspaceUID)
	if err != nil {
		return nil, err
	}
	e, err := x.Find(ctx, name.ID())
	return e, absent(err, name.String())
}

// change runs fn in a transaction about one endpoint, and when it is committed tells the listener what the endpoint is now. Changes of
// an endpoint follow one another. When change returns nil, no request that begins later is decided by what was before.
func (s *Service) change(ctx context.Context, workspace, endpoint string, fn func(ctx context.Context, tx *sqldb.Tx, x store.Endpoints) error) error {
	key, err := s.store.Key(ctx, workspace)
	if err != nil {
		return err
	}
	defer s.locks.lock(endpoint)()
	var next *serving.Endpoint
	built := false
	err = s.store.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		x := s.store.Endpoints(tx, key)
		if err := fn(ctx, tx, x); err != nil {
			return err
		}
		var err error
		if next, err = s.view(ctx, x, endpoint); err != nil {
			return err
		}
		built = true
		return nil
	})
	switch {
	case err == nil:
		s.tell(endpoint, next)
	case built:
		// It may be committed all the same. Until it is known, the endpoint is closed.
		s.cfg.Listener.Remove(endpoint)
		if e := s.reload(context.WithoutCancel(ctx), workspace, endpoint); e != nil {
			s.cfg.Logger.ErrorContext(ctx, "an endpoint is closed until it can be read again", "endpoint_uid", endpoint, "error", e)
			s.soil(workspace, endpoint)
		}
	}
	return err
}

// reloadLimit bounds the reading of one endpoint.
const reloadLimit = 10 * time.Second

// reload tells the listener what is stored of an endpoint. The caller holds its lock.
func (s *Service) reload(ctx context.Context, workspace, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, reloadLimit)
	defer cancel()
	key, err := s.store.Key(ctx, workspace)
	if err != nil {
		return err
	}
	return s.store.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		e, err := s.view(ctx, s.store.Endpoints(tx, key), endpoint)
		if err == nil {
			s.tell(endpoint, e)
		}
		return err
	})
}

func (s *Service) tell(uid string, e *serving.Endpoint) {
	if e == nil {
		s.cfg.Listener.Remove(uid)
		return
	}
	s.cfg.Listener.Set(e)
}

// soil notes that the listener does not know what is stored of an endpoint.
func (s *Service) soil(workspace, endpoint string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty[endpoint] = workspace
}

// clean tells the listener of the endpoints that it could not be told of.
func (s *Service) clean(ctx context.Context) error {
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = make(map[string]string)
	s.mu.Unlock()
	var failed []error
	for endpoint, workspace := range dirty {
		if err := s.again(ctx, workspace, endpoint); err != nil {
			s.soil(workspace, endpoint)
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func (s *Service) again(ctx context.Context, workspace, endpoint string) error {
	defer s.locks.lock(endpoint)()
	return s.reload(ctx, workspace, endpoint)
}

// view is what the listener has to know of an endpoint, nil if that is nothing any more.
func (s *Service) view(ctx context.Context, x store.Endpoints, uid string) (*serving.Endpoint, error) {
	e, err := x.Get(ctx, uid)
	if fault.Is(err, codes.NotFound) || err == nil && e.Deleting {
		return nil, nil //nolint:nilnil // nothing to tell but that it is gone
	}
	if err != nil {
		return nil, err
	}
	v := &serving.Endpoint{
		UID: e.UID, WorkspaceUID: e.Workspace, Name: e.Body.GetName(), Kind: e.Body.GetKind(), Auth: e.Body.GetAuth(), Deployments: make(map[string]*serving.Deployment),
	}
	keys := []serving.Credential{{Hash: hash(e.Primary), Label: "key-primary"}, {Hash: hash(e.Secondary), Label: "key-secondary"}}
	switch v.Auth {
	case inferencev1.Endpoint_AUTH_KEY:
		v.Credentials = keys
	case inferencev1.Endpoint_AUTH_TOKEN:
		tokens, err := x.Tokens(ctx, uid, s.cfg.Now())
		if err != nil {
			return nil, err
		}
		for _, t := range tokens {
			v.Credentials = append(v.Credentials, serving.Credential{Hash: t.Hash, Label: "token", Principal: t.Principal, Expires: t.Expires})
		}
		v.Others = keys
	}
	deployments, err := x.DeploymentsOf(ctx, uid)
	if err != nil {
		return nil, err
	}
	for _, d := range deployments {
		if d.Deleting {
			continue
		}
		rows, err := x.Replicas(ctx, d.UID)
		if err != nil {
			return nil, err
		}
		v.Deployments[d.ID()] = served(d, rows)
		if p := e.Body.GetTraffic()[d.ID()]; p > 0 {
			v.Traffic = append(v.Traffic, serving.Share{Deployment: d.ID(), Percent: int(p)})
		}
		if p := e.Body.GetMirror()[d.ID()]; p > 0 {
			v.Mirror = &serving.Share{Deployment: d.ID(), Percent: int(p)}
		}
	}
	return v, nil
}

// served is what the listener has to know of a deployment. A replica that is on its way is among those that take requests: it takes
// them from when its first worker is there.
func served(d *store.Deployment, rows []*store.Replica) *serving.Deployment {
	out := &serving.Deployment{
		ID: d.ID(), UID: d.UID, QueueLength: int(d.Spec.GetQueueLength()), MaxBodyBytes: d.Spec.GetMaxBodyBytes(), Timeout: d.Spec.GetRequestTimeout().AsDuration(),
	}
	if n, err := resource.Parse(d.Spec.GetModel()); err == nil {
		out.Model, out.ModelVersion = n.Parent().ID(), n.ID()
	}
	for _, r := range rows {
		if r.RunUID != "" && replicas.Active(r) {
			out.Replicas = append(out.Replicas, r.RunUID)
		}
	}
	return out
}

// locks are those of endpoints by uid.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	mu sync.Mutex
	n  int
}

// lock takes the lock of one key, and gives what lets go of it.
func (l *locks) lock(key string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[string]*lock)
	}
	k := l.held[key]
	if k == nil {
		k = &lock{}
		l.held[key] = k
	}
	k.n++
	l.mu.Unlock()
	k.mu.Lock()
	return func() {
		k.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.n--; k.n == 0 {
			delete(l.held, key)
		}
	}
}

// news tells waiting streams that a deployment has changed. It holds an entry only while somebody waits.
type news struct {
	mu sync.Mutex
	m  map[string]chan struct{}
}

// next gives a channel that is closed at the next change. Take it before reading, so that no change is missed.
func (n *news) next(uid string) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil {
		n.m = make(map[string]chan struct{})
	}
	c, ok := n.m[uid]
	if !ok {
		c = make(chan struct{})
		n.m[uid] = c
	}
	return c
}

func (n *news) changed(uid string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c, ok := n.m[uid]; ok {
		close(c)
		delete(n.m, uid)
	}
}
