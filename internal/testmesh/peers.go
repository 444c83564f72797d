package testmesh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/pkg/svid/jointoken"
)

// Domain is the trust domain of a mesh that was not given another.
var Domain = spiffeid.RequireTrustDomainFromString("redoubt.local")

// Enrolment connects to the enrolment listener with a key, as a new instance of a service, and gives what its join token says.
func (m *Mesh) Enrolment(t testing.TB, service string, key *ecdsa.PrivateKey) (*grpc.ClientConn, jointoken.Token) {
	t.Helper()
	s, err := m.Nodes["identity"].Identity().CreateServiceJoin(t.Context(), service, "test", time.Hour)
	must(t, err)
	join, err := jointoken.Parse(s)
	must(t, err)
	id, err := svid.ServiceID(Domain, "identity")
	must(t, err)
	cfg, err := svid.EnrolClientTLS(svid.Enrolment{Server: id, Pins: []string{join.Pin}, Key: key})
	must(t, err)
	return dial(t, join.Address, cfg), join
}

// Peer connects to a service as another service does: with a certificate of a second instance of it, which is made once.
func (m *Mesh) Peer(t testing.TB, from, to string) *grpc.ClientConn {
	t.Helper()
	own := m.certificate(t, from)
	var roots []*x509.Certificate
	for rest := m.CA; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		must(t, err)
		roots = append(roots, c)
	}
	bundle := x509bundle.FromX509Authorities(Domain, roots)
	return dial(t, m.Nodes[to].MeshAddr(), &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*own}, InsecureSkipVerify: true, //nolint:gosec // the SPIFFE ID is checked instead of a name
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := svid.Verify(cs.PeerCertificates, Domain, bundle, x509.ExtKeyUsageServerAuth, time.Now())
			return err
		},
	})
}

func (m *Mesh) certificate(t testing.TB, service string) *tls.Certificate {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if c, ok := m.certs[service]; ok {
		return c
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "test"}}, key)
	must(t, err)
	conn, join := m.Enrolment(t, service, key)
	r, err := identityv1.NewEnrolmentServiceClient(conn).Issue(t.Context(), &identityv1.IssueRequest{Service: service, Instance: "test", Csr: csr, JoinToken: join.Secret.RevealString()})
	must(t, err)
	if m.certs == nil {
		m.certs = make(map[string]*tls.Certificate)
	}
	m.certs[service] = &tls.Certificate{Certificate: r.GetChain(), PrivateKey: key}
	return m.certs[service]
}

func dial(t testing.TB, addr string, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
