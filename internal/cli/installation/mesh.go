package installation

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// identityFiles are what an identity in the mesh is kept as: in the svid folder of a service, and in one of an operator.
const (
	identityCert = "svid.pem"
	identityKey  = "key.pem"
	operatorCert = "operator.pem"
)

// member is an identity with which ports of the mesh are reached.
type member struct {
	cert  tls.Certificate
	td    spiffeid.TrustDomain
	roots []*x509.Certificate
	now   func() time.Time
}

// readMember reads an identity from its folder.
func readMember(dir string, now func() time.Time) (*member, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, identityCert), filepath.Join(dir, identityKey))
	if err != nil {
		return nil, fault.FailedPrecondition("there is no identity of the mesh in %s: %v", dir, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, identityCert))
	if err != nil {
		return nil, err
	}
	m := &member{cert: cert, now: now}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fault.FailedPrecondition("%s is damaged", filepath.Join(dir, identityCert))
		}
		if c.IsCA {
			m.roots = append(m.roots, c)
		}
	}
	if len(m.roots) == 0 || m.cert.Leaf == nil || len(m.cert.Leaf.URIs) != 1 {
		return nil, fault.FailedPrecondition("%s is damaged", filepath.Join(dir, identityCert))
	}
	m.td, err = spiffeid.TrustDomainFromString(m.cert.Leaf.URIs[0].Host)
	return m, err
}

// tls believes the other side if it is the service.
func (m *member) tls(service string) (*tls.Config, error) {
	want, err := svid.ServiceID(m.td, service)
	if err != nil {
		return nil, err
	}
	bundle := x509bundle.FromX509Authorities(m.td, m.roots)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{m.cert}, Time: m.now,
		InsecureSkipVerify: true, //nolint:forbidigo,gosec // a service is known by its SPIFFE ID, which VerifyConnection checks, and not by a host's name
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := svid.Verify(s.PeerCertificates, m.td, bundle, x509.ExtKeyUsageServerAuth, m.now())
			if err != nil {
				return err
			}
			if id != want {
				return fault.FailedPrecondition("the port is that of %s, not of %s", id, want)
			}
			return nil
		},
	}, nil
}

// checkHealth asks one port of the mesh whether it serves, and tells when its certificate ends.
func (m *member) checkHealth(ctx context.Context, service, addr string) (notAfter time.Time, err error) {
	cfg, err := m.tls(service)
	if err != nil {
		return notAfter, err
	}
	inner := cfg.VerifyConnection
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) > 0 {
			notAfter = s.PeerCertificates[0].NotAfter
		}
		return inner(s)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy())
	if err != nil {
		return notAfter, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return notAfter, serving(ctx, conn)
}

func serving(ctx context.Context, conn grpc.ClientConnInterface) error {
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fault.Unavailable("it says %s", r.GetStatus())
	}
	return nil
}

// operator has a certificate made for the signed-in user, into dir, 0600.
func (a verbs) operator(ctx context.Context, c *client.Client, dir string) (*member, error) {
	who, err := c.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{})
	if err != nil {
		return nil, err
	}
	td, err := trustDomain(c.Context())
	if err != nil {
		return nil, err
	}
	id, err := svid.OperatorID(td, who.GetUid())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	k, err := svid.NewKeeper(svid.KeeperConfig{Dir: dir, ID: id, Now: a.Now, Issue: func(ctx context.Context, _ crypto.Signer, csr []byte) (chain, bundle [][]byte, err error) {
		r, err := c.Operators().IssueOperatorCertificate(ctx, &identityv1.IssueOperatorCertificateRequest{Csr: csr})
		if err != nil {
			select {
			case failed <- err:
			default:
			}
			return nil, nil, err
		}
		return r.GetChain(), r.GetBundle(), nil
	}})
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx) }()
	defer func() { cancel(); <-done }()
	ready := make(chan error, 1)
	go func() { ready <- k.Ready(ctx) }()
	select {
	case err = <-ready:
	case err = <-failed: // refused: asking again does not help
	}
	if err != nil {
		return nil, err
	}
	m, err := readMember(dir, a.Now)
	if err != nil {
		return nil, err
	}
	// For tools that take a chain and nothing else.
	var chain []byte
	for _, der := range m.cert.Certificate {
		if c, err := x509.ParseCertificate(der); err == nil && !c.IsCA {
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
	}
	return m, writeFile(filepath.Join(dir, operatorCert), chain, 0o600)
}

// trustDomain is what the installation's root is for.
func trustDomain(c client.Context) (spiffeid.TrustDomain, error) {
	text := c.CAPEM
	if len(text) == 0 && c.CAFile != "" {
		var err error
		if text, err = os.ReadFile(c.CAFile); err != nil {
			return spiffeid.TrustDomain{}, err
		}
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return spiffeid.TrustDomain{}, errors.New("the context has no root of the installation; sign in with --ca")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(root.URIs) != 1 {
		return spiffeid.TrustDomain{}, errors.New("the context's root is not one of an installation; sign in with --ca")
	}
	return spiffeid.TrustDomainFromString(root.URIs[0].Host)
}
