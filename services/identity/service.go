package identity

import (
	"cmp"
	"context"
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
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/clients"
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
	clients   *clients.Cache
	basis     *audit.Basis // identity's security state
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
	if cfg.Password.Logger == nil {
		cfg.Password.Logger = cfg.Logger
	}
	hasher, err := password.New(cfg.Password)
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, td: td, box: box, store: store.New(box), hasher: hasher, guard: login.NewGuard(login.Limits{Guards: cfg.Instances}), clients: clients.New(0),
	}
	s.basis = audit.NewBasis(s.store.Number)
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
		Issuer: cfg.Issuer, CertificateURL: cfg.CertificateURL, DB: cfg.DB, Store: s.store, Box: box, Verifier: s.verifier, Keys: s.keys, Signer: s.keys.signer, Mint: s.mint,
		BySecret: s.clientBySecret, ByKey: s.clientByKey, ByCertificate: s.clientByCertificate, MintFor: s.mintFor,
		Secure: s.secure, May: s.may, Homes: s.homes, Arrive: s.arrive, Left: s.left, Relying: federation.New(cfg.Now), TokenLife: cfg.TokenLife, Proofs: cfg.Proofs, Now: cfg.Now,
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

// Passwords says how many hashes wait or are computed, and what the workers that compute them did.
func (s *Service) Passwords() password.Stats { return s.hasher.Stats() }

// Close ends the open security streams and the workers. The database belongs to whoever opened it.
func (s *Service) Close() error {
	s.feed.close()
	s.hasher.Close()
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
