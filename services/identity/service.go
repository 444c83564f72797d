package identity

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/login"
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
	// TrustDomain of the mesh, "redoubt.local".
	TrustDomain string
	// Issuer is the issuer URL of tokens, and the audience of those that are for the installation. It is used byte for byte, and is
	// https, or http on a loopback address.
	Issuer string
	// EnrolAddress is the host:port of the enrolment listener, as join tokens name it.
	EnrolAddress string
	// Services are those that may enrol. Default: all of a mesh.
	Services []string

	// Password is the cost of password hashes.
	Password password.Config
	// Lives of what is issued. Defaults and bounds: tokens 1 h (at most 24 h), run tokens 10 min (at most 10 min), SVIDs 1 h (at
	// most 24 h), certificates of operators 8 h (at most 8 h), the root 10 years.
	TokenLife, RunTokenLife, SVIDLife, OperatorLife, RootLife time.Duration
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

	cfg       Config
	td        spiffeid.TrustDomain
	box       *box
	store     *store.Store
	hasher    hasher
	guard     *login.Guard
	keys      *tokenKeys
	verifier  *authn.Verifier
	authority atomic.Pointer[svid.Authority]
	feed      *feed
}

var (
	_ identityv1.SignInServiceServer    = (*Service)(nil)
	_ identityv1.DirectoryServiceServer = (*Service)(nil)
	_ identityv1.TokenServiceServer     = (*Service)(nil)
	_ identityv1.PrincipalServiceServer = (*Service)(nil)
	_ identityv1.EnrolmentServiceServer = (*Service)(nil)
	_ identityv1.AgentServiceServer     = (*Service)(nil)
	_ identityv1.OperatorServiceServer  = (*Service)(nil)
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
	s.keys = &tokenKeys{now: cfg.Now}
	if err := s.openKeys(ctx); err != nil {
		return nil, err
	}
	s.verifier, err = authn.New(authn.Config{Issuer: cfg.Issuer, Keys: s.keys, Revocations: cfg.Engine.Revocations(), Now: cfg.Now, MaxLifetime: maxTokenLife})
	if err != nil {
		return nil, fault.Internal(err, "identity: the verifier could not be made")
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
}

// RegisterEnrolment registers enrolment, for the listener with svid.EnrolServerCredentials and nothing else.
func (s *Service) RegisterEnrolment(r grpc.ServiceRegistrar) {
	identityv1.RegisterEnrolmentServiceServer(r, s)
}

// Verifier verifies tokens for identity's own chain: with its own keys and its own revocations.
func (s *Service) Verifier() *authn.Verifier { return s.verifier }

// KeySet is the published keys.
func (s *Service) KeySet() authn.KeySet { return s.keys }

// Run does what must happen from time to time, until ctx ends: it keeps the engine's security state alive, takes up keys that
// another replica has made, and deletes what is over. It returns nil when ctx has ended.
func (s *Service) Run(ctx context.Context) error {
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	const rarely = 60 // heartbeats
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		}
		if err := s.feed.apply(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "the security state could not be read", "error", err)
		}
		if n%rarely != 0 {
			continue
		}
		if err := s.openKeys(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "the signing keys could not be read", "error", err)
		}
		now := s.cfg.Now()
		err := s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return s.store.Purge(ctx, tx, now) })
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.ErrorContext(ctx, "what is over could not be deleted", "error", err)
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

// secure runs a change of what is valid: a revocation, a membership. When it returns nil, identity itself honours the change, and
// the open streams are on their way with it.
func (s *Service) secure(ctx context.Context, fn func(ctx context.Context, tx *sqldb.Tx) error) error {
	err := s.cfg.DB.Write(ctx, fn)
	// Also after an error: of a commit whose result was lost, the database knows better.
	s.feed.wake()
	if err != nil {
		return err
	}
	// The change stands; whoever asked may be gone.
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return s.feed.apply(short)
}
