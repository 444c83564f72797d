package identity

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/factor"
	"github.com/redoubt-ml/redoubt/services/identity/internal/federation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
	"github.com/redoubt-ml/redoubt/services/identity/internal/provider"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// Name of the service.
const Name = "identity"

// Migrations is the schema of identity's own tables.
func Migrations() sqldb.MigrationSet { return store.Migrations() }

// Config of the service. DB, Outbox, Own, Engine, TrustDomain and Issuer are required.
type Config struct {
	// DB has the tables of Migrations, of the outbox and of the data keys.
	DB *sqldb.DB
	// Outbox takes the records of what is done outside a call: the first administrator, join tokens of services.
	Outbox *audit.Outbox
	// Own is the keyring under identity's own seal.
	Own *envelope.Keyring
	// Engine is that of identity's own chain. The service keeps its security state: do not feed it from WatchSecurity too.
	Engine *authz.Engine
	// Leader says which instance does what one alone must do. Nil only on SQLite, where one process has the database.
	Leader *leader.Leader
	// Fence has a change be in force everywhere before its call returns. Without one a change waits for other instances for a while: for
	// tests of one process.
	Fence fence.Changer
	// Proofs are the used proofs of possession that all instances remember; nil where there is one.
	Proofs authn.SharedProofs
	// TrustDomain of the mesh, "redoubt.local".
	TrustDomain string
	// Issuer is the issuer URL of tokens, and the audience of those that are for the installation. It is used byte for byte, and is
	// https, or http on a loopback address.
	Issuer string
	// PublicHosts are further names and addresses, beside the issuer's, at which strangers reach the gateway and the scoring listener.
	PublicHosts []string
	// EnrolAddress is the host:port of the enrolment listener, as join tokens name it.
	EnrolAddress string
	// ServiceRoots are the roots that services chain to where another authority issues their SVIDs: runs and operators are told of them beside those of
	// identity, which issues for those two alone then. Nil where identity issues for services too.
	ServiceRoots func() []*x509.Certificate
	// Consumers lets issuers of that class be entered, and their people in. Guests of other organisations need no setting but their issuer.
	Consumers bool
	// Services are those that may enrol. Default: all of a mesh.
	Services []string

	// Password is the cost of password hashes.
	Password password.Config
	// Lives of what is issued. Defaults and bounds: tokens 1 h (at most 24 h), run tokens 10 min (at most 10 min), SVIDs 1 h (at
	// most 24 h), certificates of operators 8 h (at most 8 h), the root 10 years.
	TokenLife, RunTokenLife, SVIDLife, OperatorLife, RootLife time.Duration
	// KeyPeriod is how long a key signs tokens, KeyAhead how long it is published before. Defaults 30 days and 1 h.
	KeyPeriod, KeyAhead time.Duration
	// RootPeriod is how long a root signs before another one follows by the clock (rotation.Clock). 0: roots change by orders alone. With it
	// certificates of operators live for an eighth of it at most.
	RootPeriod time.Duration
	// Instance tells instances of identity apart among those who hold certificates.
	Instance string
	// ConnectionLife is how long a connection between services stands at most. Default: that of rpc.Limits.
	ConnectionLife time.Duration
	// FollowWithin is how long an order about roots waits for those who have to follow. Default and at most 5 s.
	FollowWithin time.Duration
	// Heartbeat is how often a silent security stream says that it is alive, at most 2 s. Default 1 s.
	Heartbeat time.Duration

	Now    func() time.Time // time.Now when nil
	Logger *slog.Logger     // silent when nil
}

const (
	exchangedLife = 5 * time.Minute  // of tokens made by ExchangeToken and ActAs, at most
	revokedFor    = 24 * time.Hour   // how long a revocation is kept: longer than any token lives
	maxRunLife    = 10 * time.Minute // of a run token
	maxTokenLife  = 24 * time.Hour
	maxSVIDLife   = 24 * time.Hour
	maxOperator   = 8 * time.Hour
	tenYears      = 10 * 365 * 24 * time.Hour
	startTimeout  = 30 * time.Second
	keyPeriod     = 30 * 24 * time.Hour
	keyAhead      = time.Hour // longer than anybody keeps the key set
)

var meshServices = []string{"compute", "gateway", "identity", "inference", "keyvault", "telemetry", "workspace"}

// publicServices show strangers their certificates: those have the public host's names too.
var publicServices = []string{rpc.Gateway, "inference"}

func (c *Config) check() (spiffeid.TrustDomain, error) {
	var none spiffeid.TrustDomain
	switch {
	case c.DB == nil || c.Outbox == nil || c.Own == nil || c.Engine == nil:
		return none, fault.Internal(nil, "identity: DB, Outbox, Own and Engine are required")
	case !validIssuer(c.Issuer):
		return none, fault.InvalidArgument("the issuer must be an https URL without query, fragment or a slash at its end: set public_url")
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return none, fault.InvalidArgument("the trust domain must be a host name in lower case: set mesh.trust_domain")
	}
	for _, l := range []struct {
		name        string
		life        *time.Duration
		normal, max time.Duration
	}{
		{"tokens", &c.TokenLife, time.Hour, maxTokenLife}, {"run tokens", &c.RunTokenLife, maxRunLife, maxRunLife},
		{"SVIDs", &c.SVIDLife, time.Hour, maxSVIDLife}, {"certificates of operators", &c.OperatorLife, maxOperator, maxOperator},
		{"the root", &c.RootLife, tenYears, 10 * tenYears}, {"heartbeats", &c.Heartbeat, time.Second, 2 * time.Second},
	} {
		if *l.life == 0 {
			*l.life = l.normal
		}
		if *l.life < 0 || *l.life > l.max {
			return none, fault.InvalidArgument("the life of %s must be positive and at most %v", l.name, l.max)
		}
	}
	if c.KeyPeriod == 0 {
		c.KeyPeriod = keyPeriod
	}
	if c.KeyAhead == 0 {
		c.KeyAhead = min(keyAhead, c.KeyPeriod)
	}
	if err := c.policy().Check(); err != nil {
		return none, err
	}
	if c.ConnectionLife <= 0 {
		c.ConnectionLife = rpc.Limits{}.ConnectionLife()
	}
	if c.RootPeriod != 0 {
		c.OperatorLife = min(c.OperatorLife, max(c.RootPeriod/8, c.SVIDLife))
		if err := c.checkClock(); err != nil {
			return none, err
		}
	}
	if c.FollowWithin <= 0 || c.FollowWithin > followWithin {
		c.FollowWithin = followWithin
	}
	if c.Services == nil {
		c.Services = meshServices
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return td, nil
}

// policy is how signing keys rotate.
func (c *Config) policy() rotation.Policy {
	return rotation.Policy{Period: c.KeyPeriod, Ahead: c.KeyAhead, Life: max(c.TokenLife, c.RunTokenLife, exchangedLife)}
}

// validIssuer accepts what OpenID Connect does: https, no query, no fragment. Plain http is for tests on the own machine.
func validIssuer(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || s[len(s)-1] == '/' {
		return false
	}
	if u.Scheme == "http" {
		ip := net.ParseIP(u.Hostname())
		return ip != nil && ip.IsLoopback()
	}
	return u.Scheme == "https"
}

// Service is identity. It is safe for concurrent use.
type Service struct {
	identityv1.UnsafeSignInServiceServer
	identityv1.UnsafeDirectoryServiceServer
	identityv1.UnsafeTokenServiceServer
	identityv1.UnsafePrincipalServiceServer
	identityv1.UnsafeEnrolmentServiceServer
	identityv1.UnsafeAgentServiceServer
	identityv1.UnsafeOperatorServiceServer
	identityv1.UnsafeKeyServiceServer
	identityv1.UnsafeApplicationServiceServer
	identityv1.UnsafeFactorServiceServer
	identityv1.UnsafeFederationServiceServer
	identityv1.UnsafeAccountServiceServer
	identityv1.UnsafeWorkloadIdentityServiceServer

	cfg       Config
	td        spiffeid.TrustDomain
	box       *box
	store     *store.Store
	hasher    hasher
	guard     *login.Guard
	keys      *tokenKeys
	svidKeys  atomic.Pointer[[]store.SigningKey] // sign JWT-SVIDs, as they were last read
	policy    rotation.Policy
	opening   sync.Mutex // one openKeys at a time
	verifier  *authn.Verifier
	authority atomic.Pointer[authority]
	turned    turn // when it is another one
	feed      *feed
	provider  *provider.Provider
	webauthn  *factor.Keys // nil where the issuer's address has no name
}

var (
	_ identityv1.SignInServiceServer    = (*Service)(nil)
	_ identityv1.DirectoryServiceServer = (*Service)(nil)
	_ identityv1.TokenServiceServer     = (*Service)(nil)
	_ identityv1.PrincipalServiceServer = (*Service)(nil)
	_ identityv1.EnrolmentServiceServer = (*Service)(nil)
	_ identityv1.AgentServiceServer     = (*Service)(nil)
	_ identityv1.OperatorServiceServer  = (*Service)(nil)
	_ identityv1.KeyServiceServer       = (*Service)(nil)

	_ identityv1.ApplicationServiceServer = (*Service)(nil)
	_ identityv1.FactorServiceServer      = (*Service)(nil)
	_ identityv1.FederationServiceServer  = (*Service)(nil)

	_ identityv1.WorkloadIdentityServiceServer = (*Service)(nil)
)

// New makes the service. The first time it makes the signing key and the root of the mesh; later it opens them, and fails if they
// cannot be opened. It brings Config.Engine's security state up to date.
func New(cfg Config) (*Service, error) {
	td, err := cfg.check()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if cfg.Leader == nil {
		if cfg.Leader, err = leader.New(leader.Config{DB: cfg.DB, Holder: Name, Now: cfg.Now, Logger: cfg.Logger}); err != nil {
			return nil, err
		}
	}
	box, err := openBox(ctx, cfg.Own)
	if err != nil {
		return nil, err
	}
	hasher, err := password.New(cfg.Password)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, td: td, box: box, store: store.New(box), hasher: hasher, guard: login.NewGuard(login.Limits{}),
	}
	s.keys, s.policy = &tokenKeys{now: cfg.Now}, cfg.policy()
	if err := s.openKeys(ctx); err != nil {
		return nil, err
	}
	s.verifier, err = authn.New(authn.Config{Issuer: cfg.Issuer, Keys: s.keys, Revocations: cfg.Engine.Revocations(), Now: cfg.Now, MaxLifetime: maxTokenLife})
	if err != nil {
		return nil, fault.Internal(err, "identity: the verifier could not be made")
	}
	if s.webauthn, _, err = factor.NewKeys(cfg.Issuer); err != nil {
		return nil, err
	}
	s.provider, err = provider.New(provider.Config{
		Issuer: cfg.Issuer, DB: cfg.DB, Store: s.store, Box: box, Verifier: s.verifier, Keys: s.keys, Signer: s.keys.signer, Mint: s.mint,
		Secure: s.secure, May: s.may, Homes: s.homes, Arrive: s.arrive, Relying: federation.New(cfg.Now), TokenLife: cfg.TokenLife, Proofs: cfg.Proofs, Now: cfg.Now,
		SignIn: func(ctx context.Context, req *identityv1.SignInRequest, finish login.Finish) (login.Asked, error) {
			return s.signIn(ctx, req, forPages, finish)
		},
		Continue: func(ctx context.Context, req *identityv1.ContinueSignInRequest, finish login.Finish) ([]string, error) {
			return s.continueSignIn(ctx, req, forPages, finish)
		},
		AskKey: s.askKey, BeginKey: s.beginKey, AddKey: s.addKeyOfBrowser,
	})
	if err != nil {
		return nil, fault.Internal(err, "identity: the provider could not be made")
	}
	s.feed = newFeed(s)
	if err := s.feed.apply(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Register registers everything but enrolment, which has a listener of its own.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	identityv1.RegisterSignInServiceServer(r, s)
	identityv1.RegisterDirectoryServiceServer(r, s)
	identityv1.RegisterTokenServiceServer(r, s)
	identityv1.RegisterPrincipalServiceServer(r, s)
	identityv1.RegisterAgentServiceServer(r, s)
	identityv1.RegisterOperatorServiceServer(r, s)
	identityv1.RegisterKeyServiceServer(r, s)
	identityv1.RegisterApplicationServiceServer(r, s)
	identityv1.RegisterFactorServiceServer(r, s)
	identityv1.RegisterFederationServiceServer(r, s)
	identityv1.RegisterAccountServiceServer(r, s)
	identityv1.RegisterProviderServiceServer(r, s.provider)
	identityv1.RegisterWorkloadIdentityServiceServer(r, s)
}

// may reports whether a principal has an action at the installation.
func (s *Service) may(principal, action string) bool {
	if s.cfg.Engine.Fresh(s.cfg.Now()) != nil {
		return false
	}
	scope, ok := s.cfg.Engine.Resolve(resource.RootName())
	return ok && s.cfg.Engine.Decide(authz.Query{Principal: principal, Action: action, Scope: scope}).Allowed
}

// RegisterEnrolment registers enrolment, for the listener with svid.EnrolServerCredentials and nothing else.
func (s *Service) RegisterEnrolment(r grpc.ServiceRegistrar) {
	identityv1.RegisterEnrolmentServiceServer(r, s)
}

// Verifier verifies tokens for identity's own chain: with its own keys and its own revocations.
func (s *Service) Verifier() *authn.Verifier { return s.verifier }

// KeySet is the published keys.
func (s *Service) KeySet() authn.KeySet { return s.keys }

// rarely is how often, in heartbeats, keys are read again and what is over is deleted.
const rarely = 60

// Run does what must happen from time to time, until ctx ends: it keeps the engine's security state alive, takes up what other
// instances have changed, and keys that they have made; and in one of the instances it deletes what is over. It returns nil when
// ctx has ended.
func (s *Service) Run(ctx context.Context) error {
	var jobs sync.WaitGroup
	defer jobs.Wait()
	jobs.Go(func() { s.feed.progress.Run(ctx) })
	jobs.Go(func() { s.feed.settle(ctx) })
	jobs.Go(func() { _ = s.cfg.Leader.Lead(ctx, "purge", s.purge) })
	jobs.Go(func() { _ = s.cfg.Leader.Lead(ctx, "keys", s.keepKeys) })
	if s.cfg.RootPeriod > 0 {
		jobs.Go(func() { _ = s.cfg.Leader.Lead(ctx, "authorities", s.keepAuthorities) })
	}
	changed, stop := s.cfg.DB.Signals(store.Changed)
	defer stop()
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			s.feed.wake()
		case <-beat.C:
			n++
		}
		if err := s.feed.apply(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "the security state could not be read", "error", err)
		}
		if n%rarely != 0 {
			continue
		}
		n++
		if err := s.openKeys(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "the signing keys could not be read", "error", err)
		}
	}
}

// purge deletes what is over, while this instance leads.
func (s *Service) purge(ctx context.Context, term *leader.Term) error {
	tick := time.NewTicker(rarely * s.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := s.cfg.Now()
		if err := term.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return s.store.Purge(ctx, tx, now) }); err != nil {
			return err
		}
	}
}

// Close ends the open security streams. The database belongs to whoever opened it.
func (s *Service) Close() error {
	s.feed.close()
	return nil
}

// service reports whether a mesh service has this name.
func (s *Service) service(name string) bool { return slices.Contains(s.cfg.Services, name) }

// secure runs a change of what is valid: a revocation, a membership. When it returns nil, nothing takes effect any more, in any service,
// that was decided before the change. CHANGE_PENDING says that the change stands and that this is not known.
func (s *Service) secure(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error {
	err := s.cfg.DB.Write(ctx, fn)
	// Also after an error: of a commit whose result was lost, the database knows better.
	s.feed.wake()
	if code := fault.Code(err); err != nil && code != codes.NotFound && code != codes.AlreadyExists && code != codes.FailedPrecondition {
		return err
	}
	// The change stands; whoever asked may be gone.
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if e := s.feed.apply(short); e != nil {
		return cmp.Or(err, e)
	}
	// A change that is found to be done may be one that is pending still: who repeats it waits too.
	if e := s.feed.everywhere(ctx); e != nil {
		return e
	}
	return err
}
