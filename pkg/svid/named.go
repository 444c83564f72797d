package svid

import (
	"crypto"
	"crypto/x509"
	"net"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// SignNamed is Sign for the one workload that strangers reach by name: besides its SPIFFE ID the leaf says the DNS names and
// addresses of the public listener (X.509-SVID 1.0 section 2 allows both). The names come from the authority's configuration,
// never from the request.
func (a *Authority) SignNamed(pub crypto.PublicKey, id spiffeid.ID, dnsNames []string, ips []net.IP, ttl time.Duration, now time.Time) ([][]byte, error) {
	if !id.MemberOf(a.td) || id.Path() == "" {
		return nil, fault.InvalidArgument("an SVID needs a SPIFFE ID below %s", a.td.IDString())
	}
	return a.issue(pub, &x509.Certificate{
		URIs: []*url.URL{id.URL()}, DNSNames: dnsNames, IPAddresses: ips,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ttl, now)
}
