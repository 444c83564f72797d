package etcdnode

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

const (
	rootLife = 20 * 365 * 24 * time.Hour
	// leafLife is that of certificates that this process makes again by itself, fileLife that of those which it hands out.
	leafLife = 90 * 24 * time.Hour
	fileLife = svid.MaxLeafTTL

	rootCert = "root.crt"
	rootKey  = "root.key"

	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
)

// authorityName sets etcd's root apart from every root of a mesh.
var authorityName = spiffeid.RequireTrustDomainFromString("etcd.redoubt.internal")

// PKI is etcd's own root and what it signs. It is safe for concurrent use.
type PKI struct {
	dir string
	now func() time.Time
	a   *svid.Authority
}

// OpenPKI reads the root in dir, or makes one if there is none. now is time.Now when nil.
func OpenPKI(dir string, now func() time.Time) (*PKI, error) {
	if now == nil {
		now = time.Now
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Internal(err, "the folder of etcd's keys could not be made")
	}
	p := &PKI{dir: dir, now: now}
	certText, cerr := os.ReadFile(p.path(rootCert))
	keyText, kerr := os.ReadFile(p.path(rootKey))
	switch {
	case errors.Is(cerr, fs.ErrNotExist) && (kerr == nil || errors.Is(kerr, fs.ErrNotExist)):
		// The certificate is written last, so a key alone is a start that did not come to its end.
		return p, p.create()
	case errors.Is(kerr, fs.ErrNotExist):
		return nil, fault.FailedPrecondition("the key of etcd's root is missing: restore %s, or remove %s to make a new root", rootKey, rootCert)
	case cerr != nil || kerr != nil:
		return nil, fault.Internal(errors.Join(cerr, kerr), "etcd's root could not be read")
	}
	info, err := os.Stat(p.path(rootKey))
	if err != nil || info.Mode().Perm()&0o077 != 0 {
		return nil, fault.FailedPrecondition("the key of etcd's root can be read by others: it may be known, so remove the folder of etcd's keys, or chmod 0600 %s", rootKey)
	}
	cert, _ := pem.Decode(certText)
	key, _ := pem.Decode(keyText)
	if cert == nil || key == nil {
		return nil, damaged()
	}
	if p.a, err = svid.ParseAuthority(authorityName, svid.State{Root: cert.Bytes, Key: redact.New(key.Bytes)}); err != nil {
		return nil, damaged()
	}
	return p, nil
}

func damaged() error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "etcd's root is damaged: restore its folder, or remove it to make a new root")
}

func (p *PKI) path(name string) string { return filepath.Join(p.dir, name) }

func (p *PKI) create() error {
	a, err := svid.NewAuthority(authorityName, p.now(), rootLife)
	if err != nil {
		return err
	}
	state, err := a.Marshal()
	if err != nil {
		return err
	}
	defer state.Key.Wipe()
	if err := svid.WritePrivate(p.path(rootKey), pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: state.Key.Reveal()})); err != nil {
		return err
	}
	if err := svid.WritePrivate(p.path(rootCert), pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: state.Root})); err != nil {
		return err
	}
	p.a = a
	return nil
}

// RootPEM is the certificate of the root, for those who connect.
func (p *PKI) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: p.a.Root().Raw})
}

// Files are paths of PEM files, in the shape that etcd and its clients are configured by.
type Files struct{ CA, Cert, Key string }

// ClientTLS is for a client in another process. The files are read at each handshake, so that new ones count at once.
func (f Files) ClientTLS() (*tls.Config, error) {
	ca, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fault.Internal(err, "etcd's root could not be read: see etcd.ca_file")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fault.FailedPrecondition("etcd.ca_file holds no certificate")
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fault.Internal(err, "the client certificate for etcd could not be read: see etcd.cert_file and etcd.key_file")
		}
		return &c, nil
	}
	if _, err := load(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, GetClientCertificate: load}, nil
}

// WriteLeaf makes a key and a certificate, valid for svid.MaxLeafTTL, as dir/name.key and dir/name.crt, all 0600, and the root
// beside them. It replaces what was there.
func (p *PKI) WriteLeaf(dir, name string, l svid.Leaf) (Files, error) {
	f, _, err := p.writeLeaf(dir, name, l, fileLife)
	return f, err
}

func (p *PKI) writeLeaf(dir, name string, l svid.Leaf, life time.Duration) (Files, crypto.Signer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Files{}, nil, fault.Internal(err, "the folder of etcd's keys could not be made")
	}
	f := Files{CA: filepath.Join(dir, rootCert), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
	key, err := svid.NewKey()
	if err != nil {
		return Files{}, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Files{}, nil, fault.Internal(err, "a key for etcd could not be encoded")
	}
	defer clear(der)
	if dir != p.dir {
		if err := svid.WritePrivate(f.CA, p.RootPEM()); err != nil {
			return Files{}, nil, err
		}
	}
	if err := svid.WritePrivate(f.Key, pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})); err != nil {
		return Files{}, nil, err
	}
	return f, key, p.certify(f, key, l, life)
}

// certify writes a new certificate for a key that stays: etcd reads both files at each handshake, and one that is replaced
// in a single step always fits the other.
func (p *PKI) certify(f Files, key crypto.Signer, l svid.Leaf, life time.Duration) error {
	chain, err := p.a.SignLeaf(key.Public(), l, life, p.now())
	if err != nil {
		return err
	}
	return svid.WritePrivate(f.Cert, pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: chain[0]}))
}

// ClientTLS is for a client in this process: etcd's root, and a certificate with commonName as its user, in memory only,
// made again at half of its life.
func (p *PKI) ClientTLS(commonName string) (*tls.Config, error) {
	key, err := svid.NewKey()
	if err != nil {
		return nil, err
	}
	c := &clientCert{pki: p, name: commonName, key: key}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(p.a.Root())
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Time: p.now, GetClientCertificate: c.get}, nil
}

type clientCert struct {
	pki  *PKI
	name string
	key  crypto.Signer

	mu    sync.Mutex
	cert  *tls.Certificate
	renew time.Time
}

func (c *clientCert) get(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.pki.now()
	if c.cert == nil || !now.Before(c.renew) {
		chain, err := c.pki.a.SignLeaf(c.key.Public(), svid.Leaf{CommonName: c.name, Client: true}, leafLife, now)
		if err != nil {
			return nil, err
		}
		c.cert, c.renew = &tls.Certificate{Certificate: chain, PrivateKey: c.key}, now.Add(leafLife/2)
	}
	return c.cert, nil
}

// memberLeaf is the certificate of a member: a server to its clients, and both to other members.
func memberLeaf(name string, hosts ...string) svid.Leaf {
	l := svid.Leaf{CommonName: name, Server: true, Client: true, DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	for _, h := range hosts {
		switch ip := net.ParseIP(h); {
		case h == "" || h == "localhost" || ip != nil && (ip.IsUnspecified() || slices.ContainsFunc(l.IPs, ip.Equal)):
		case ip != nil:
			l.IPs = append(l.IPs, ip)
		default:
			l.DNSNames = append(l.DNSNames, h)
		}
	}
	return l
}
