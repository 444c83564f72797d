package matrix

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/pkg/svid/jointoken"
)

var td = spiffeid.RequireTrustDomainFromString("redoubt.local")

func spiffe(kind, name string) string { return td.IDString() + "/" + kind + "/" + name }

// caller is one who calls: over which connection, and with what in his hands.
type caller struct {
	// peer is the SPIFFE ID that the service sees.
	peer string
	// conn connects to a service.
	conn func(t *testing.T, service string) *grpc.ClientConn
	// auth is the metadata that a call of a method carries.
	auth func(t *testing.T, method string) []string
	// uid is whom a record names, "" for one that nobody knows.
	uid string
	// renew gives the same caller with credentials of his own for one call that uses them up.
	renew func(t *testing.T) caller
}

func (c caller) anonymous() bool {
	return c.uid == "" && (!strings.Contains(c.peer, "/service/") || c.peer == spiffe("service", "gateway"))
}

func nothing(*testing.T, string) []string { return nil }

func bearer(token string) func(*testing.T, string) []string {
	return func(*testing.T, string) []string { return []string{"authorization", "Bearer " + token} }
}

// dpop sends a token that is bound to a key, with a proof of that key.
func dpop(token string, key *authn.Prover) func(*testing.T, string) []string {
	return func(t *testing.T, method string) []string {
		proof, err := key.Proof("POST", mesh.URL+method, token, "")
		if err != nil {
			t.Fatal(err)
		}
		return []string{"authorization", "DPoP " + token, "dpop", proof}
	}
}

// outside gives a caller who comes through the gateway.
func outside(uid string, auth func(*testing.T, string) []string) caller {
	return caller{peer: spiffe("service", "gateway"), uid: uid, auth: auth, conn: func(*testing.T, string) *grpc.ClientConn { return gatewayConn() }}
}

var gatewayConn = sync.OnceValue(func() *grpc.ClientConn { return dial(strings.TrimPrefix(mesh.URL, "https://"), mesh.TLS()) })

// dial connects without waiting. Connections live as long as the test binary.
func dial(addr string, cfg *tls.Config, opts ...grpc.DialOption) *grpc.ClientConn {
	c, err := grpc.NewClient("passthrough:///"+addr, append(opts, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy(), grpc.WithDisableServiceConfig())...)
	if err != nil {
		panic(err)
	}
	return c
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func csr(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "matrix"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func roots() []*x509.Certificate {
	var out []*x509.Certificate
	for rest := mesh.CA; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return out
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			panic(err)
		}
		out = append(out, c)
	}
}

// clientTLS is the client side of a connection into the mesh, with the certificate or without one.
func clientTLS(server string, own *tls.Certificate) *tls.Config {
	bundle := x509bundle.FromX509Authorities(td, roots())
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true, // the SPIFFE ID is checked instead of a name
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := svid.Verify(cs.PeerCertificates, td, bundle, x509.ExtKeyUsageServerAuth, time.Now())
			if err == nil && id.String() != spiffe("service", server) {
				err = fmt.Errorf("the server is %s", id)
			}
			return err
		},
	}
	if own != nil {
		cfg.Certificates = []tls.Certificate{*own}
	}
	return cfg
}

// enrolment is a connection to the enrolment listener with a key, and what a join token says.
func enrolment(t *testing.T, service string, key *ecdsa.PrivateKey) (*grpc.ClientConn, jointoken.Token) {
	t.Helper()
	s, err := mesh.Nodes["identity"].Identity().CreateServiceJoin(t.Context(), service, "matrix", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	join, err := jointoken.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	id, err := svid.ServiceID(td, "identity")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := svid.EnrolClientTLS(svid.Enrolment{Server: id, Pins: []string{join.Pin}, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return dial(join.Address, cfg), join
}

// certificate gives the test the SVID of a service, as a second instance of it would get one.
func (f *fixture) certificate(t *testing.T, service string) *tls.Certificate {
	t.Helper()
	if c, ok := f.certs[service]; ok {
		return c
	}
	key := newKey(t)
	conn, join := enrolment(t, service, key)
	defer func() { _ = conn.Close() }()
	r, err := identityv1.NewEnrolmentServiceClient(conn).Issue(t.Context(), &identityv1.IssueRequest{Service: service, Instance: "matrix", Csr: csr(t, key), JoinToken: join.Secret.RevealString()})
	if err != nil {
		t.Fatalf("certificate of %s: %v", service, err)
	}
	f.certs[service] = &tls.Certificate{Certificate: r.GetChain(), PrivateKey: key}
	return f.certs[service]
}

// peer gives a caller at the other end of mutual TLS, who reaches services directly.
func (f *fixture) peer(t *testing.T, kind, name string, cert *tls.Certificate, uid string, auth func(*testing.T, string) []string) caller {
	return caller{peer: spiffe(kind, name), uid: uid, auth: auth, conn: func(t *testing.T, service string) *grpc.ClientConn {
		key := kind + "/" + name + ">" + service
		if f.conns[key] == nil {
			f.conns[key] = dial(mesh.Nodes[service].MeshAddr(), clientTLS(service, cert))
		}
		return f.conns[key]
	}}
}

// service gives a caller with a service's certificate.
func (f *fixture) service(t *testing.T, name string, auth func(*testing.T, string) []string) caller {
	return f.peer(t, "service", name, f.certificate(t, name), "", auth)
}

// exchanged gives a token that one service got for another, in the name of the owner.
func (f *fixture) exchanged(t *testing.T, by, audience string) string {
	t.Helper()
	key := by + ">" + audience
	if f.tokens[key] == "" {
		c := f.service(t, by, nothing)
		r, err := identityv1.NewTokenServiceClient(c.conn(t, "identity")).ExchangeToken(t.Context(), &identityv1.ExchangeTokenRequest{SubjectToken: mesh.Admin(t), Audience: audience})
		if err != nil {
			t.Fatalf("exchange by %s for %s: %v", by, audience, err)
		}
		f.tokens[key] = r.GetAccessToken()
	}
	return f.tokens[key]
}

// expired gives a token of the owner that is over: it was issued before the mesh's clock was set on to the present.
func expired(t *testing.T) string {
	t.Helper()
	token := signIn(t, "admin", mesh.Password())
	behind.Store(0)
	ready(t)
	return token
}

// forged says the same as a token, under the same key id, and is signed by another key.
func forged(t *testing.T, token string) string {
	t.Helper()
	signed := token[:strings.LastIndexByte(token, '.')]
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, newKey(t), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig[:])
}

// patient repeats what is limited in rate, as long as the limit asks for.
func patient(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !fault.Is(err, codes.ResourceExhausted) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(max(fault.Describe(err).RetryAfter(), 20*time.Millisecond)):
		}
	}
}
