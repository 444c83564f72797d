package provider

import (
	"context"
	"crypto/x509"
	"strings"

	"google.golang.org/grpc/peer"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// AuthCertificate is the name of client authentication by a certificate that the client itself has signed, and that was registered for it (RFC 8705
// section 2.2).
const AuthCertificate = "self_signed_tls_client_auth"

// Proven says that the other end of the connection has proved in the TLS handshake that it holds the key of Certificate. It is the AuthInfo of
// calls that come by identity's own listener for certificates, and of no others: no text in a request, and no peer of the mesh, makes one.
type Proven struct{ Certificate *x509.Certificate }

// AuthType implements credentials.AuthInfo.
func (Proven) AuthType() string { return AuthCertificate }

// proven is the certificate of the connection that a call came by.
func proven(ctx context.Context) (*x509.Certificate, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(Proven)
	return info.Certificate, ok
}

// tokenURL is where the token endpoint was asked: a proof of possession names it (RFC 9449).
func (p *Provider) tokenURL(ctx context.Context) string {
	if _, ok := proven(ctx); ok {
		return p.cfg.CertificateURL + PathToken
	}
	return p.cfg.Issuer + PathToken
}

// byCertificate is client authentication by certificate: a service principal's, which is the very one that was registered for it, byte for byte. Who
// signed it says nothing, and neither does the key: another certificate of the same key was not registered. It is looked up for each request, and
// what memory says is decided again with the token's record, so one that was removed is nothing any more, on a connection that stands too. Where a client connects with a certificate it has no other way.
func (p *Provider) byCertificate(ctx context.Context, x *identityv1.Exchange, q params, shown *x509.Certificate, remembered bool) (client, error) {
	if shown == nil || x.GetAuthorization() != "" || q["client_secret"] != "" || q["client_assertion"] != "" || q["client_assertion_type"] != "" {
		return client{}, badClient()
	}
	now := p.cfg.Now()
	if now.Before(shown.NotBefore) || !now.Before(shown.NotAfter) || isSVID(shown) {
		return client{}, badClient()
	}
	id := q["client_id"]
	if !strings.HasPrefix(id, "spn_") || len(id) > 256 {
		return client{}, badClient()
	}
	f, ok, err := p.cfg.ByCertificate(ctx, id, shown.Raw, remembered)
	if err != nil {
		return client{}, err
	}
	if !ok {
		return client{}, badClient()
	}
	return program(f), nil
}

// isSVID reports whether a certificate names a workload. What the mesh's authority gave a service or a run is for the mesh, whoever registered it here.
func isSVID(c *x509.Certificate) bool {
	for _, u := range c.URIs {
		if u.Scheme == "spiffe" {
			return true
		}
	}
	return false
}
