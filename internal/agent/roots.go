package agent

import (
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

// believed are the roots by which the gateway is known: those of the start, with the mesh's of the moment in place of the mesh's of then.
type believed struct {
	mesh  []*x509.Certificate // of the start, as far as they are known to be the mesh's
	given *x509.CertPool      // of the start
	rest  *x509.CertPool      // of the start, without the mesh's; nil where they are not known one by one

	mu  sync.Mutex
	now *x509.CertPool
}

func newBelieved(cfg Config) *believed {
	b := &believed{given: cfg.Roots, now: cfg.Roots}
	if len(cfg.rootCerts) == 0 {
		return b
	}
	b.rest = x509.NewCertPool()
	for _, c := range cfg.rootCerts {
		if ofMesh(c) {
			b.mesh = append(b.mesh, c)
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

// take believes the roots that came over a connection to the gateway, and none of the mesh besides. None changes nothing.
func (b *believed) take(ders [][]byte) error {
	if len(ders) == 0 {
		return nil
	}
	if len(ders) > maxRoots {
		return fault.InvalidArgument("there are %d of them", len(ders))
	}
	pool := b.given.Clone()
	if b.rest != nil {
		pool = b.rest.Clone()
	}
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil || !ofMesh(c) {
			return fault.InvalidArgument("one of them is no root of a mesh")
		}
		// A trust domain does not change: the roots of another one are not for us.
		if len(b.mesh) > 0 && c.URIs[0].String() != b.mesh[0].URIs[0].String() {
			return fault.InvalidArgument("one of them is of another mesh")
		}
		pool.AddCert(c)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = pool
	return nil
}

func (b *believed) pool() *x509.CertPool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// gatewayCredentials are TLS by the roots of the moment of each handshake.
type gatewayCredentials struct {
	credentials.TransportCredentials
	roots *believed
	now   func() time.Time
}

func newGatewayCredentials(roots *believed, now func() time.Time) credentials.TransportCredentials {
	c := &gatewayCredentials{roots: roots, now: now}
	c.TransportCredentials = c.fresh()
	return c
}

func (c *gatewayCredentials) fresh() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots.pool(), Time: c.now, SessionTicketsDisabled: true})
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *gatewayCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.fresh().ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (c *gatewayCredentials) Clone() credentials.TransportCredentials {
	return newGatewayCredentials(c.roots, c.now)
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
