package identity

import (
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authn/password"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/leader"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
)

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
	// CertificateURL is the address, https://host:port, of the listener of ServeCertificates; "" where there is none. Identity's own certificate is valid
	// for its host then too.
	CertificateURL string
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
	// Instances says how many instances of identity there are, this one too, among which sign-ins are spread. Nil says 1.
	Instances func() int
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
	case c.CertificateURL != "" && (!validIssuer(c.CertificateURL) || c.CertificateURL[:6] != "https:"):
		return none, fault.InvalidArgument("the address for clients with certificates must be an https URL without query, fragment or a slash at its end: set service.mtls_url")
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return none, fault.InvalidArgument("the trust domain must be a host name in lower case: set mesh.trust_domain")
	}
	if err := c.CheckLives(); err != nil {
		return none, err
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

// CheckLives fills in the lives and periods that are not said, and finds those that do not go together: whoever makes a configuration asks before
// somebody starts with it.
func (c *Config) CheckLives() error {
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
			return fault.InvalidArgument("the life of %s must be positive and at most %v", l.name, l.max)
		}
	}
	if c.KeyPeriod == 0 {
		c.KeyPeriod = keyPeriod
	}
	if c.KeyAhead == 0 {
		c.KeyAhead = min(keyAhead, c.KeyPeriod)
	}
	if err := c.policy().Check(); err != nil {
		return err
	}
	if c.ConnectionLife <= 0 {
		c.ConnectionLife = rpc.Limits{}.ConnectionLife()
	}
	if c.RootPeriod != 0 {
		c.OperatorLife = min(c.OperatorLife, max(c.RootPeriod/8, c.SVIDLife))
		if err := c.checkClock(); err != nil {
			return err
		}
	}
	return nil
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
