package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"

	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/fence"
	"github.com/redoubt-ml/redoubt/pkg/observe"
	"github.com/redoubt-ml/redoubt/pkg/rule"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Recorder keeps the activity of this service until telemetry has it; *audit.Outbox is one.
type Recorder interface {
	Append(ctx context.Context, tx *sqldb.Tx, ev *audit.Event) error
	Record(ctx context.Context, ev *audit.Event) error
	RecordOn(ctx context.Context, ev *audit.Event, g audit.Ground) error
	RecordBurst(ctx context.Context, ev *audit.Event, g audit.Ground) error
	Aggregate(ev *audit.Event)
}

// Verifier verifies access tokens; *authn.Verifier is one.
type Verifier interface {
	Verify(ctx context.Context, token, audience string) (*authn.Verified, error)
	// VerifyDelivery is Verify for methods with deliver in their rule.
	VerifyDelivery(ctx context.Context, token, audience string) (*authn.Verified, error)
}

// Config of a Chain. Service, TrustDomain, Installation, Rules and Logger are required; Verifier, Engine and Recorder too, unless
// every method that is registered is public.
type Config struct {
	// Service is the name of the service, "workspace".
	Service string
	// TrustDomain of the mesh, "redoubt.local".
	TrustDomain string
	// Installation is the domain that stands in the ErrorInfo of errors, after "redoubt.".
	Installation string
	// Issuer is the audience of callers' tokens: the installation's issuer URL.
	Issuer string
	// PublicURL is the gateway's address as clients write it; proofs of possession name it (RFC 9449 htu).
	PublicURL string
	// Enrolment is set on identity's listeners for those who have no SPIFFE ID: who enrols, and clients with a certificate of their own.
	Enrolment bool

	Rules    *rule.Table
	Verifier Verifier
	Proofs   *authn.ProofChecker
	Engine   *authz.Engine
	// Fence lets what was decided take effect, or not. Nil lets everything pass: for tests of one process.
	Fence    *fence.Fence
	Recorder Recorder
	RED      *observe.RED
	Tracing  *observe.Tracing
	Logger   *slog.Logger
	Now      func() time.Time
	Limits   Limits
}

// Limits of a server; zero fields take the defaults.
type Limits struct {
	// MaxRequestBytes bounds a request message where the rule says nothing. Default 1 MiB.
	MaxRequestBytes int
	// Timeout bounds a unary call where the rule says nothing. Default 30 s.
	Timeout time.Duration
	// PerAddress and PerPrincipal are calls a second, with twice that in a burst. Defaults 2,000 and 5,000.
	PerAddress, PerPrincipal float64
	// OpenPerPrincipal is how many calls one principal may have under way at a time, streams too. Default 1,024.
	OpenPerPrincipal int
	// ConnectionAge is when a connection is asked to go, give or take a tenth; calls on it then have half of that to end. Default 20 min.
	ConnectionAge time.Duration
	// LogReads is n: one of n successful reads is logged. Default 100; 1 logs all.
	LogReads uint64
	// Slow is the time from which a call is always logged. Default 1 s.
	Slow time.Duration
}

// ConnectionLife is how long a connection stands at most.
func (l Limits) ConnectionLife() time.Duration {
	age := l.withDefaults().ConnectionAge
	return age + age/10 + age/2
}

func (l Limits) withDefaults() Limits {
	if l.MaxRequestBytes == 0 {
		l.MaxRequestBytes = 1 << 20
	}
	if l.Timeout == 0 {
		l.Timeout = 30 * time.Second
	}
	if l.ConnectionAge == 0 {
		l.ConnectionAge = 20 * time.Minute
	}
	if l.PerAddress == 0 {
		l.PerAddress = 2000
	}
	if l.PerPrincipal == 0 {
		l.PerPrincipal = 5000
	}
	if l.OpenPerPrincipal == 0 {
		l.OpenPerPrincipal = 1024
	}
	if l.LogReads == 0 {
		l.LogReads = 100
	}
	if l.Slow == 0 {
		l.Slow = time.Second
	}
	return l
}

// Chain is the one object that calls pass. It is safe for concurrent use.
type Chain struct {
	cfg       Config
	domain    string
	self      string // SPIFFE ID of this service, the audience of exchanged tokens
	validate  protovalidate.Validator
	links     []link
	addresses *edge.Rates
	callers   *edge.Rates
	suspects  *edge.Rates
	open      *edge.Open // calls under way, by principal
	reads     counter
	drained   context.Context // ends with Drain
	drain     context.CancelFunc
}

// suspectRecords is how many refusals a second are recorded of those who hold one principal's token and may not use it; twice that in a burst.
const suspectRecords = 10

// link is one step that a call passes before its message is decoded.
type link struct {
	name string
	pass func(*Call) error
}

// NewChain checks the configuration and makes a Chain.
func NewChain(cfg Config) (*Chain, error) {
	switch {
	case cfg.Service == "" || cfg.TrustDomain == "" || cfg.Installation == "":
		return nil, errors.New("rpc: Service, TrustDomain and Installation are required")
	case cfg.Rules == nil || cfg.Logger == nil:
		return nil, errors.New("rpc: Rules and Logger are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	v, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("rpc: validator: %w", err)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	c := &Chain{
		cfg: cfg, domain: "redoubt." + cfg.Installation, validate: v,
		self:      "spiffe://" + cfg.TrustDomain + "/service/" + cfg.Service,
		addresses: edge.NewRates(cfg.Limits.PerAddress),
		callers:   edge.NewRates(cfg.Limits.PerPrincipal),
		suspects:  edge.NewRates(suspectRecords),
		open:      edge.NewOpen(math.MaxInt, cfg.Limits.OpenPerPrincipal),
	}
	c.drained, c.drain = context.WithCancel(context.Background())
	// Log, fault mapping, recover and audit stand around the rest: Call.finish does them, so that a refusal by any link is recorded.
	c.links = []link{
		{"request id", (*Call).identify},
		{"trace and metrics", (*Call).traced},
		{"address limit", (*Call).limitAddress},
		{"deadline", (*Call).bound},
		{"peer identity", (*Call).peerIdentity},
		{"token", (*Call).authenticate},
		{"principal limit", (*Call).limitPrincipal},
	}
	return c, nil
}

// Registrar gives a ServiceRegistrar that puts the chain in front of every method before it reaches s. It panics, as grpc's own
// registration does, if a method has no rule or needs a link that the Config lacks: such a server must not start. Use Check
// first for an error instead.
func (c *Chain) Registrar(s grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{c, s} }

// Check reports why a service may not be registered.
func (c *Chain) Check(desc *grpc.ServiceDesc) error {
	for _, m := range desc.Methods {
		if _, err := c.method(desc.ServiceName, m.MethodName); err != nil {
			return err
		}
	}
	for _, m := range desc.Streams {
		if _, err := c.method(desc.ServiceName, m.StreamName); err != nil {
			return err
		}
	}
	return nil
}

// MaxRequestBytes is the largest request that any of the services takes; the server's own limit has to let it through.
func (c *Chain) MaxRequestBytes(services ...string) int {
	most := c.cfg.Limits.MaxRequestBytes
	for _, m := range c.cfg.Rules.Methods() {
		service, _, _ := strings.Cut(strings.TrimPrefix(m.FullName, "/"), "/")
		if slices.Contains(services, service) {
			most = max(most, int(m.Rule.GetMaxRequestBytes()))
		}
	}
	return most
}
