package svid

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

const (
	// Backdate is how far NotBefore lies in the past, so that a peer whose clock is a little behind accepts a new leaf.
	Backdate = 30 * time.Second
	// MaxLeafTTL bounds every leaf, however long its root lives.
	MaxLeafTTL = 825 * 24 * time.Hour
	// maxCSR bounds a certificate request in bytes.
	maxCSR = 8 << 10
)

// Authority is a root that signs. It is immutable and safe for concurrent use. The zero value signs nothing.
type Authority struct {
	td      spiffeid.TrustDomain
	root    *x509.Certificate
	key     *ecdsa.PrivateKey
	trusted []*x509.Certificate
}

// State is what the owner of an Authority stores. Key is PKCS #8 DER and must be sealed before it is written.
type State struct {
	Root []byte        // DER
	Key  redact.Secret // PKCS #8 DER
	// Trusted are further roots whose leaves are still, or already, believed: the one before and the one after a rotation.
	Trusted [][]byte // DER
}

// NewKey makes a key of the one kind that this package signs for: ECDSA on P-256.
func NewKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault.Internal(err, "a key could not be made")
	}
	return key, nil
}

// NewAuthority makes a root for td that is valid from now for life.
func NewAuthority(td spiffeid.TrustDomain, now time.Time, life time.Duration) (*Authority, error) {
	if td.IsZero() {
		return nil, fault.InvalidArgument("an authority needs a trust domain: set mesh.trust_domain")
	}
	if life <= 0 {
		return nil, fault.InvalidArgument("the life of a root must be positive")
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial is part of the name, so that two roots of one trust domain never look alike to a verifier.
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: td.Name(), SerialNumber: hex.EncodeToString(serial.Bytes())},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1, // for Endorse
		URIs:                  []*url.URL{td.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fault.Internal(err, "a root could not be made")
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Internal(err, "a root could not be made")
	}
	return &Authority{td: td, root: root, key: key}, nil
}

// ParseAuthority reads what Marshal wrote. It refuses a key that is not the root's, and a root of another trust domain.
func ParseAuthority(td spiffeid.TrustDomain, s State) (*Authority, error) {
	root, err := parseRoot(td, s.Root)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(s.Key.Reveal())
	if err != nil {
		return nil, damaged("the stored root key cannot be read")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(root.PublicKey) {
		return nil, damaged("the stored root key is not the root's")
	}
	a := &Authority{td: td, root: root, key: key}
	for _, der := range s.Trusted {
		extra, err := parseRoot(td, der)
		if err != nil {
			return nil, err
		}
		a.trusted = append(a.trusted, extra)
	}
	return a, nil
}

func parseRoot(td spiffeid.TrustDomain, der []byte) (*x509.Certificate, error) {
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, damaged("a stored root cannot be read")
	}
	if !isRoot(root) || len(root.URIs) != 1 || root.URIs[0].String() != td.IDString() {
		return nil, damaged("a stored root is not one of this trust domain")
	}
	return root, nil
}

// isRoot reports whether c may sign and has signed itself.
func isRoot(c *x509.Certificate) bool {
	return c.IsCA && c.BasicConstraintsValid && c.KeyUsage&x509.KeyUsageCertSign != 0 && c.CheckSignatureFrom(c) == nil
}

// Marshal gives what ParseAuthority reads. The key is fresh memory: Wipe it once it is sealed.
func (a *Authority) Marshal() (State, error) {
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return State{}, fault.Internal(err, "the root key could not be encoded")
	}
	s := State{Root: a.root.Raw, Key: redact.New(key)}
	for _, c := range a.trusted {
		s.Trusted = append(s.Trusted, c.Raw)
	}
	return s, nil
}

// Endorse certifies the key of another root of the same trust domain until the time until: a chain of a leaf and this certificate leads
// who knows only this authority's root to that one. It is for clients that are given a file once, such as a command line; Verify, by which
// the mesh judges, does not follow it.
func (a *Authority) Endorse(other *x509.Certificate, now, until time.Time) ([]byte, error) {
	if _, err := parseRoot(a.td, other.Raw); err != nil {
		return nil, fault.InvalidArgument("only a root of %s is endorsed", a.td)
	}
	for _, end := range []time.Time{a.root.NotAfter, other.NotAfter} {
		if until.After(end) {
			until = end
		}
	}
	if !until.After(now) {
		return nil, fault.FailedPrecondition("one of the roots has ended")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, RawSubject: other.RawSubject, NotBefore: now.Add(-Backdate), NotAfter: until, KeyUsage: x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, URIs: other.URIs,
	}, a.root, other.PublicKey, a.key)
	if err != nil {
		return nil, fault.Internal(err, "a root could not be endorsed")
	}
	return der, nil
}

// organization stands in the name of every root of ours, and so in that of what Endorse makes.
const organization = "Redoubt"

// endorsement reports whether c is what Endorse makes: a root of ours below another one. Other authorities' intermediates, which say too that they
// are the trust domain itself, have other names.
func endorsement(c *x509.Certificate, td string) bool {
	return c.IsCA && len(c.URIs) == 1 && c.URIs[0].String() == td && slices.Contains(c.Subject.Organization, organization) && c.CheckSignatureFrom(c) != nil
}

// WithTrusted returns an Authority that signs with the same root and whose bundle has extra besides. Rotation is: trust the
// next root everywhere, then sign with it and trust the old one, then drop that.
func (a *Authority) WithTrusted(extra ...*x509.Certificate) (*Authority, error) {
	b := &Authority{td: a.td, root: a.root, key: a.key}
	for _, c := range extra {
		if _, err := parseRoot(a.td, c.Raw); err != nil {
			return nil, fault.InvalidArgument("only a root of %s can be trusted beside its own", a.td)
		}
		if !c.Equal(a.root) {
			b.trusted = append(b.trusted, c)
		}
	}
	return b, nil
}

// TrustDomain is what every SVID of this authority is in.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// Root is the certificate that signs. It must not be changed.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Bundle is every root that is believed, the signing one first.
func (a *Authority) Bundle() []*x509.Certificate {
	return append([]*x509.Certificate{a.root}, a.trusted...)
}

// Pin names the signing root: what a join token carries, so that who joins knows whom to believe.
func (a *Authority) Pin() string { return Pin(a.root) }

// Pin is the base64url SHA-256 of a certificate's DER.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Sign issues an X.509-SVID for id to the holder of pub, valid from now for ttl or until the root ends. The chain is DER,
// leaf first, without the root. pub must be P-256.
func (a *Authority) Sign(pub crypto.PublicKey, id spiffeid.ID, ttl time.Duration, now time.Time) ([][]byte, error) {
	if !id.MemberOf(a.td) || id.Path() == "" {
		return nil, fault.InvalidArgument("an SVID needs a SPIFFE ID below %s", a.td.IDString())
	}
	return a.issue(pub, &x509.Certificate{
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ttl, now)
}

// SignCSR is Sign for the key in a PKCS #10 request. The request proves its key; nothing else in it is honoured. It returns
// that key too, for the caller to compare with the one that it has pinned.
func (a *Authority) SignCSR(csrDER []byte, id spiffeid.ID, ttl time.Duration, now time.Time) (chain [][]byte, pub *ecdsa.PublicKey, err error) {
	pub, err = CSRKey(csrDER)
	if err != nil {
		return nil, nil, err
	}
	chain, err = a.Sign(pub, id, ttl, now)
	return chain, pub, err
}

// CSRKey checks the request's own signature and returns its P-256 key.
func CSRKey(csrDER []byte) (*ecdsa.PublicKey, error) {
	if len(csrDER) > maxCSR {
		return nil, fault.InvalidArgument("a certificate request has at most %d bytes", maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fault.InvalidArgument("the certificate request is not PKCS #10 DER")
	}
	pub, err := p256(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.InvalidArgument("the certificate request is not signed by its own key")
	}
	return pub, nil
}

// Leaf says what a certificate outside the mesh is for: the public TLS listener, and etcd's members and clients.
type Leaf struct {
	CommonName     string // the user name that etcd reads from a client certificate
	DNSNames       []string
	IPs            []net.IP
	Server, Client bool // at least one
}

// SignServer issues a certificate for a TLS listener that is reached by name or address rather than by SPIFFE ID.
func (a *Authority) SignServer(pub crypto.PublicKey, dnsNames []string, ips []net.IP, ttl time.Duration, now time.Time) ([][]byte, error) {
	return a.SignLeaf(pub, Leaf{DNSNames: dnsNames, IPs: ips, Server: true}, ttl, now)
}

// SignLeaf issues a certificate that is no SVID: it names no SPIFFE ID, so the mesh never takes it for one.
func (a *Authority) SignLeaf(pub crypto.PublicKey, l Leaf, ttl time.Duration, now time.Time) ([][]byte, error) {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: l.CommonName}, DNSNames: l.DNSNames, IPAddresses: l.IPs}
	if l.Server {
		if len(l.DNSNames)+len(l.IPs) == 0 {
			return nil, fault.InvalidArgument("a server certificate needs a DNS name or an IP address")
		}
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if l.Client {
		if l.CommonName == "" {
			return nil, fault.InvalidArgument("a client certificate needs a common name")
		}
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if len(template.ExtKeyUsage) == 0 {
		return nil, fault.InvalidArgument("a certificate must be for a server, a client or both")
	}
	return a.issue(pub, template, ttl, now)
}

func (a *Authority) issue(pub crypto.PublicKey, template *x509.Certificate, ttl time.Duration, now time.Time) ([][]byte, error) {
	if _, err := p256(pub); err != nil {
		return nil, err
	}
	if ttl <= 0 || ttl > MaxLeafTTL {
		return nil, fault.InvalidArgument("the life of a certificate must be positive and at most %s", MaxLeafTTL)
	}
	notAfter := now.Add(ttl)
	if notAfter.After(a.root.NotAfter) {
		notAfter = a.root.NotAfter
	}
	if !notAfter.After(now) {
		return nil, fault.FailedPrecondition("the root has ended: rotate it")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = now.Add(-Backdate)
	template.NotAfter = notAfter
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true // and IsCA false: no leaf signs
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, pub, a.key)
	if err != nil {
		return nil, fault.Internal(err, "a certificate could not be signed")
	}
	return [][]byte{der}, nil
}

func p256(pub crypto.PublicKey) (*ecdsa.PublicKey, error) {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok || k == nil || k.Curve != elliptic.P256() {
		return nil, fault.InvalidArgument("keys must be ECDSA P-256")
	}
	return k, nil
}

// newSerial is 127 random bits: positive, and within the 20 octets of RFC 5280.
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fault.Internal(err, "no random bytes")
	}
	b[0] &= 0x7f
	if bytes.Equal(b[:], make([]byte, len(b))) {
		b[15] = 1
	}
	return new(big.Int).SetBytes(b[:]), nil
}
