package svid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// selfSignedLife bounds the certificate that carries a key through an enrolment handshake.
const selfSignedLife = time.Hour

// SelfSigned wraps key in a certificate that says nothing but the key: what a workload shows while it has no SVID. It is
// valid for one hour from now.
func SelfSigned(key crypto.Signer, now time.Time) (tls.Certificate, error) {
	if _, err := p256(key.Public()); err != nil {
		return tls.Certificate{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "enrolment"},
		NotBefore:    now.Add(-5 * time.Minute), // who enrols may not have its clock set yet
		NotAfter:     now.Add(selfSignedLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fault.Internal(err, "the enrolment certificate could not be made")
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Enrolment says whom to believe on the first connection, and which key to prove there.
type Enrolment struct {
	// Pins are the roots that are believed by their hash (Pin): what a join token or the configuration says.
	Pins []string
	// Roots are believed beside the pins: the last bundle that a Keeper has seen, so that a rotation of the root while the
	// workload slept changes nothing. May be nil.
	Roots []*x509.Certificate
	// Left are pins of roots that this workload has seen leave its bundle (Keeper.Left): they are not believed, also where Pins has them.
	Left []string
	// Server is the ID that the other side must have, and fixes the trust domain: /service/identity.
	Server spiffeid.ID
	// Key is the workload's own, pinned by the server.
	Key crypto.Signer
	Now func() time.Time
}

// EnrolClientTLS is the client side of an enrolment: TLS 1.3, the server's SVID checked up to a root that is pinned, the own
// key proved by a self-signed certificate.
func EnrolClientTLS(e Enrolment) (*tls.Config, error) {
	switch {
	case e.Key == nil:
		return nil, fault.InvalidArgument("enrolling needs a key")
	case e.Server.IsZero() || e.Server.Path() == "":
		return nil, fault.InvalidArgument("enrolling needs the SPIFFE ID of the server")
	case len(e.Pins)+len(e.Roots) == 0:
		return nil, fault.InvalidArgument("enrolling needs the pin of the mesh's root: give the join token or mesh.ca_pin")
	}
	now := e.Now
	if now == nil {
		now = time.Now
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Time:                   now,
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := SelfSigned(e.Key, now())
			if err != nil {
				return nil, err
			}
			return &c, nil
		},
		InsecureSkipVerify: true, //nolint:forbidigo,gosec // there is no host name to check: VerifyConnection checks the chain and the SPIFFE ID
		VerifyConnection: func(cs tls.ConnectionState) error {
			return e.verifyServer(cs.PeerCertificates, now())
		},
	}, nil
}

func (e Enrolment) verifyServer(presented []*x509.Certificate, now time.Time) error {
	var pinned []*x509.Certificate
	chain := make([]*x509.Certificate, 0, len(presented))
	for i, c := range presented {
		if i > 0 && isRoot(c) { // the server sends its roots along, and they are believed only if pinned
			if e.pinned(c) {
				pinned = append(pinned, c)
			}
			continue
		}
		chain = append(chain, c)
	}
	td := e.Server.TrustDomain()
	var id spiffeid.ID
	err := error(untrusted(nil, "the server's root is not the pinned one: check the join token and the address"))
	if len(e.Roots) > 0 {
		id, err = Verify(chain, td, x509bundle.FromX509Authorities(td, e.Roots), x509.ExtKeyUsageServerAuth, now)
	}
	if err != nil && len(pinned) > 0 {
		// Who has a pin and no bundle believes the pinned root's word for its successor.
		id, err = verify(chain, td, x509bundle.FromX509Authorities(td, pinned), x509.ExtKeyUsageServerAuth, now)
	}
	if err != nil {
		return err
	}
	if id != e.Server {
		return untrusted(nil, "the server is %s, not %s", id, e.Server)
	}
	return nil
}

func (e Enrolment) pinned(c *x509.Certificate) bool {
	return named(Pin(c), e.Pins) && !named(Pin(c), e.Left)
}

func named(pin string, among []string) bool {
	ok := 0
	for _, p := range among {
		ok |= subtle.ConstantTimeCompare([]byte(pin), []byte(p))
	}
	return ok == 1
}

// EnrolServerTLS is the server side: it shows the SVID of the moment (a Keeper's Current) with its roots, and takes any
// client certificate with a P-256 key. Who the client is, the handler decides by PeerPublicKey. Use it only on a listener
// that serves nothing but enrolment.
func EnrolServerTLS(current func() (*SVID, error), now func() time.Time) *tls.Config {
	if now == nil {
		now = time.Now
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Time:                   now,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			s, err := current()
			if err != nil {
				return nil, err
			}
			c := &tls.Certificate{PrivateKey: s.Key, Leaf: s.Chain[0]}
			for _, part := range [][]*x509.Certificate{s.Chain, s.Bundle} {
				for _, x := range part {
					c.Certificate = append(c.Certificate, x.Raw)
				}
			}
			return c, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := enrolKey(cs)
			return err
		},
	}
}

func enrolKey(cs tls.ConnectionState) (*ecdsa.PublicKey, error) {
	if len(cs.PeerCertificates) != 1 {
		return nil, untrusted(nil, "enrolling takes one self-signed certificate")
	}
	return p256(cs.PeerCertificates[0].PublicKey)
}

// EnrolInfo is what an enrolment handshake proved: the client holds Key. It says nothing of who the client is.
type EnrolInfo struct {
	credentials.TLSInfo
	Key *ecdsa.PublicKey
}

// EnrolServerCredentials is EnrolServerTLS for a gRPC server, with the bounds on handshakes that Source has.
func EnrolServerCredentials(current func() (*SVID, error), now func() time.Time, onError func(error)) credentials.TransportCredentials {
	return &creds{
		TransportCredentials: credentials.NewTLS(EnrolServerTLS(current, now)),
		timeout:              handshakeTimeout,
		onError:              onError,
		wrap: func(info credentials.TLSInfo) (credentials.AuthInfo, error) {
			key, err := enrolKey(info.State)
			if err != nil {
				return nil, err
			}
			return &EnrolInfo{TLSInfo: info, Key: key}, nil
		},
	}
}

// PeerPublicKey is the key that the caller proved on a connection of EnrolServerCredentials; false on every other one.
func PeerPublicKey(ctx context.Context) (*ecdsa.PublicKey, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(*EnrolInfo)
	if !ok || info.Key == nil {
		return nil, false
	}
	return info.Key, true
}

// KeyFingerprint names a public key where it is pinned: the base64url SHA-256 of its SubjectPublicKeyInfo.
func KeyFingerprint(pub *ecdsa.PublicKey) (string, error) {
	if _, err := p256(pub); err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fault.InvalidArgument("the public key cannot be encoded")
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}
