package svid

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// SourceConfig is what a Source needs. Addr and TrustDomain must be set.
type SourceConfig struct {
	// Addr of a Workload API: WorkloadServer.Addr, or a SPIRE agent's (unix:///run/spire/sockets/agent.sock).
	Addr        string
	TrustDomain spiffeid.TrustDomain
	// Workload is the one SVID that is taken of those that the Workload API gives: another's Workload API may have several for a process. The
	// zero ID takes the first.
	Workload spiffeid.ID
	// OnHandshakeError, if set, is called for each handshake that failed on a connection of these credentials. It must be
	// quick and safe for concurrent use.
	OnHandshakeError func(error)

	Now    func() time.Time // time.Now when nil
	Logger *slog.Logger     // silent when nil
}

// Source gives a service its side of mutual TLS: its own SVID and the roots, always those of the moment. It is safe for
// concurrent use. Close it last, after the servers and connections that use it.
type Source struct {
	cfg   SourceConfig
	x     *workloadapi.X509Source
	stand conns
	stop  chan struct{}
	once  sync.Once
	swept sync.WaitGroup

	issuers atomic.Pointer[[]*x509.Certificate] // of Delegate
}

// NewSource waits until the Workload API has given a first SVID, or ctx ends.
func NewSource(ctx context.Context, cfg SourceConfig) (*Source, error) {
	if cfg.Addr == "" || cfg.TrustDomain.IsZero() {
		return nil, fault.InvalidArgument("a source needs the address of a Workload API and a trust domain")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	options := []workloadapi.X509SourceOption{workloadapi.WithClientOptions(
		workloadapi.WithAddr(cfg.Addr),
		workloadapi.WithLogger(spiffeLog{cfg.Logger}),
		workloadapi.WithBackoffStrategy(workloadBackoff{}),
		workloadapi.WithDialOptions(grpc.WithNoProxy()),
	)}
	if !cfg.Workload.IsZero() {
		options = append(options, workloadapi.WithDefaultX509SVIDPicker(one(cfg.Workload)))
	}
	x, err := workloadapi.NewX509Source(ctx, options...)
	if err != nil {
		return nil, fault.Wrap(err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE,
			"the Workload API has given no SVID: see that the workload is enrolled")
	}
	s := &Source{cfg: cfg, x: x, stop: make(chan struct{})}
	if !cfg.Workload.IsZero() {
		if err := s.await(ctx); err != nil {
			_ = x.Close()
			return nil, err
		}
	}
	if own, err := s.svid(); err != nil || !own.ID.MemberOf(cfg.TrustDomain) {
		_ = x.Close()
		return nil, fault.FailedPrecondition("the Workload API's SVID is not of trust domain %s: correct mesh.trust_domain", cfg.TrustDomain)
	}
	s.swept.Go(s.sweep)
	return s, nil
}

// sweep closes what hangs on a root that has left the bundle.
func (s *Source) sweep() {
	for {
		select {
		case <-s.x.Updated():
			s.closeGone()
		case <-s.stop:
			return
		}
	}
}

func (s *Source) closeGone() {
	if n := s.stand.sweep(s.cfg.Now(), s.verify); n > 0 {
		s.cfg.Logger.Warn("connections were closed whose root is not believed any more", "connections", n)
	}
}

// Close ends the connection to the Workload API. Handshakes fail afterwards.
func (s *Source) Close() error {
	s.once.Do(func() { close(s.stop) })
	s.swept.Wait()
	return s.x.Close()
}

// ID is the identity that this side shows, or the zero ID after Close.
func (s *Source) ID() spiffeid.ID {
	own, err := s.svid()
	if err != nil {
		return spiffeid.ID{}
	}
	return own.ID
}

// NotAfter is when the SVID of the moment ends: for an alarm before it does.
func (s *Source) NotAfter() time.Time {
	own, err := s.svid()
	if err != nil {
		return time.Time{}
	}
	return own.Certificates[0].NotAfter
}

// Authorize says whether a peer with a valid SVID of the own trust domain may connect.
type Authorize func(spiffeid.ID) error

// One allows the peer with this ID only.
func One(want spiffeid.ID) Authorize {
	return func(id spiffeid.ID) error {
		if want.IsZero() || id != want {
			return fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "the peer is %s, not %s", id, want)
		}
		return nil
	}
}

// Member allows every service and operator of the trust domain: for servers, whose chain decides per method. A run's SVID comes from
// a machine that runs strangers' code, so it connects nowhere but where Run is asked for.
func Member() Authorize {
	return func(id spiffeid.ID) error {
		if got, _ := ParseID(id.String()); got.Kind != KindService && got.Kind != KindOperator {
			return fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "the peer is %s, and only services and operators connect here", id)
		}
		return nil
	}
}

// Run allows the agents of runs: for inference's listener for replicas, which looks at which run it is.
func Run() Authorize {
	return func(id spiffeid.ID) error {
		if got, _ := ParseID(id.String()); got.Kind != KindRun {
			return fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "the peer is %s, and only agents of runs connect here", id)
		}
		return nil
	}
}

// ServerTLS is the server side of mutual TLS: 1.3, the client's SVID checked, allow asked. A nil allow refuses everyone.
func (s *Source) ServerTLS(allow Authorize) *tls.Config {
	c := s.tls(allow, x509.ExtKeyUsageClientAuth)
	c.ClientAuth = tls.RequireAnyClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate() }
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		kept := s.stand.kept(hello.Conn)
		if kept == nil {
			return nil, nil //nolint:nilnil // what crypto/tls takes for "this one"
		}
		mine := c.Clone()
		mine.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := c.VerifyConnection(cs); err != nil {
				return err
			}
			// Noted first and judged again then: a root that goes in between is seen by one of the two.
			s.stand.shown(kept, cs.PeerCertificates)
			return s.judge(cs.PeerCertificates)
		}
		return mine, nil
	}
	return c
}

// ClientTLS is the client side. allow pins the server: One(…). A nil allow refuses everyone.
func (s *Source) ClientTLS(allow Authorize) *tls.Config {
	c := s.tls(allow, x509.ExtKeyUsageServerAuth)
	c.InsecureSkipVerify = true //nolint:forbidigo // a server is known by its SPIFFE ID, which VerifyConnection checks, and not by a host's name
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.certificate() }
	return c
}

func (s *Source) tls(allow Authorize, peerUsage x509.ExtKeyUsage) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       s.cfg.Now,
		// No resumption, on either side: a ticket would carry an old verdict past the end of a root.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := s.verify(cs.PeerCertificates, peerUsage, s.cfg.Now())
			if err != nil {
				return err
			}
			if allow == nil {
				return fault.New(codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED, "no peer is allowed here")
			}
			return allow(id)
		},
	}
}

var errOwnEnded = errors.New("svid: the own SVID has ended and no new one has come")

func (s *Source) certificate() (*tls.Certificate, error) {
	own, err := s.svid()
	if err != nil {
		return nil, err
	}
	if !s.cfg.Now().Before(own.Certificates[0].NotAfter) {
		return nil, errOwnEnded
	}
	c := &tls.Certificate{PrivateKey: own.PrivateKey, Leaf: own.Certificates[0]}
	for _, x := range own.Certificates {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c, nil
}

// ServerCredentials is ServerTLS for a gRPC server; handlers read the peer with PeerFrom. Without an argument every Member
// may connect, and the chain decides; with some, who all of them allow.
func (s *Source) ServerCredentials(allow ...Authorize) credentials.TransportCredentials {
	if len(allow) == 0 {
		allow = []Authorize{Member()}
	}
	return s.credentials(s.ServerTLS(all(allow[0], allow[1:])))
}

// ClientCredentials is ClientTLS for a gRPC client that speaks to server and nobody else.
func (s *Source) ClientCredentials(server spiffeid.ID, allow ...Authorize) credentials.TransportCredentials {
	return s.credentials(s.ClientTLS(all(One(server), allow)))
}

func all(first Authorize, rest []Authorize) Authorize {
	return func(id spiffeid.ID) error {
		if err := first(id); err != nil {
			return err
		}
		for _, a := range rest {
			if err := a(id); err != nil {
				return err
			}
		}
		return nil
	}
}

func (s *Source) credentials(c *tls.Config) credentials.TransportCredentials {
	return &creds{TransportCredentials: credentials.NewTLS(c), timeout: handshakeTimeout, onError: s.cfg.OnHandshakeError, wrap: peerOf, stand: &s.stand, judge: s.judge}
}

// judge is whether a chain still leads to a root of the bundle.
func (s *Source) judge(chain []*x509.Certificate) error {
	_, err := s.verify(chain, x509.ExtKeyUsageAny, s.cfg.Now())
	return err
}

// workloadBackoff is short: the socket is on this machine.
type workloadBackoff struct{}

func (workloadBackoff) NewBackoff() workloadapi.Backoff { return &doubling{} }

type doubling struct{ d time.Duration }

func (b *doubling) Next() time.Duration {
	b.d = min(max(2*b.d, 50*time.Millisecond), 2*time.Second)
	return b.d
}

func (b *doubling) Reset() { b.d = 0 }
