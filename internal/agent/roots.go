package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// maxRoots bounds how many roots an answer may bring.
const maxRoots = 16

// Roots are those by which the gateway is known: those of the start, with the mesh's of the moment in place of the mesh's of then. They are
// safe for concurrent use: all agents of a machine may share them.
type Roots struct {
	given *x509.CertPool // of the start
	rest  *x509.CertPool // of the start, without the mesh's; nil where they are not known one by one

	mu   sync.Mutex
	mesh string // the trust domain's ID, "" as long as none is known
	now  *x509.CertPool
	last [][]byte // as they came
}

// NewRoots begins with these, as PEM; with none, with the system's. Errors: INVALID_ARGUMENT where pem has no certificate.
func NewRoots(pem []byte) (*Roots, error) {
	if len(pem) == 0 {
		system, err := x509.SystemCertPool()
		if err != nil {
			return nil, fault.FailedPrecondition("this system's roots cannot be read: %v", err)
		}
		return newRoots(system, nil), nil
	}
	certs := certificates(pem)
	if len(certs) == 0 {
		return nil, fault.InvalidArgument("there is no certificate among the roots")
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return newRoots(pool, certs), nil
}

func newRoots(given *x509.CertPool, certs []*x509.Certificate) *Roots {
	b := &Roots{given: given, now: given}
	if len(certs) == 0 {
		return b
	}
	b.rest = x509.NewCertPool()
	for _, c := range certs {
		if ofMesh(c) {
			b.mesh = cmp.Or(b.mesh, c.URIs[0].String())
			continue
		}
		b.rest.AddCert(c)
	}
	return b
}

// ofMesh reports whether a root is one that identity makes: it names a trust domain.
func ofMesh(c *x509.Certificate) bool {
	return c.IsCA && len(c.URIs) == 1 && c.URIs[0].Scheme == "spiffe" && c.URIs[0].Path == ""
}

// Take believes the roots that came over a connection to the gateway, DER, and none of the mesh besides. None changes nothing. changed says
// whether they are others than those that came before.
func (b *Roots) Take(ders [][]byte) (changed bool, err error) {
	if len(ders) == 0 {
		return false, nil
	}
	if len(ders) > maxRoots {
		return false, fault.InvalidArgument("there are %d of them", len(ders))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	pool, mesh := b.given.Clone(), b.mesh
	if b.rest != nil {
		pool = b.rest.Clone()
	}
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil || !ofMesh(c) {
			return false, fault.InvalidArgument("one of them is no root of a mesh")
		}
		// A trust domain does not change: the roots of another one are not for us.
		if mesh = cmp.Or(mesh, c.URIs[0].String()); c.URIs[0].String() != mesh {
			return false, fault.InvalidArgument("one of them is of another mesh")
		}
		pool.AddCert(c)
	}
	changed = !slices.EqualFunc(b.last, ders, bytes.Equal)
	b.now, b.last, b.mesh = pool, ders, mesh
	return changed, nil
}

// Pool are the roots of the moment. It must not be changed.
func (b *Roots) Pool() *x509.CertPool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// Credentials are TLS by the roots of the moment of each handshake, with a server whose certificate is for this host; empty is whoever is dialled.
func (b *Roots) Credentials(host string, now func() time.Time) credentials.TransportCredentials {
	c := &gatewayCredentials{roots: b, host: host, now: now}
	c.TransportCredentials = c.fresh()
	return c
}

// gatewayCredentials are TLS by the roots of the moment of each handshake.
type gatewayCredentials struct {
	credentials.TransportCredentials
	roots *Roots
	host  string
	now   func() time.Time
}

func (c *gatewayCredentials) fresh() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots.Pool(), ServerName: c.host, Time: c.now, SessionTicketsDisabled: true})
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *gatewayCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.fresh().ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (c *gatewayCredentials) Clone() credentials.TransportCredentials {
	return c.roots.Credentials(c.host, c.now)
}

// certificates are those of a PEM text.
func certificates(text []byte) (out []*x509.Certificate) {
	for rest := slices.Clone(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			out = append(out, c)
		}
	}
}
