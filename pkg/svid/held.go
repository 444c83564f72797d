package svid

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Held makes an SVID of what an authority has answered to the holder of key: chain, leaf first, and its roots, DER. It refuses one for
// another key, one that does not hold at the time now, and roots that are none.
func Held(key *ecdsa.PrivateKey, chain, bundle [][]byte, now time.Time) (*SVID, error) {
	s := &SVID{Key: key, Issued: now}
	var err error
	if s.Chain, err = parseCerts(chain); err != nil {
		return nil, err
	}
	if s.Bundle, err = parseCerts(bundle); err != nil {
		return nil, err
	}
	if len(s.Chain) == 0 || len(s.Chain[0].URIs) != 1 {
		return nil, untrusted(nil, "the authority has given no SVID")
	}
	id, err := spiffeid.FromURI(s.Chain[0].URIs[0])
	if err != nil {
		return nil, untrusted(err, "the authority has given no SVID")
	}
	if err := s.check(id, &key.PublicKey, now); err != nil {
		return nil, err
	}
	return s, nil
}

// check says whether s is a valid SVID of that name and key at the time now, and fills its ID.
func (s *SVID) check(want spiffeid.ID, key *ecdsa.PublicKey, now time.Time) error {
	td := want.TrustDomain()
	for _, c := range s.Bundle {
		if !c.IsCA {
			return untrusted(nil, "the authority's bundle holds a certificate that is no root")
		}
	}
	id, err := Verify(s.Chain, td, x509bundle.FromX509Authorities(td, s.Bundle), x509.ExtKeyUsageAny, now)
	if err != nil {
		return err
	}
	if id != want {
		return untrusted(nil, "the SVID is for %s, not %s", id, want)
	}
	if !key.Equal(s.Chain[0].PublicKey) {
		return untrusted(nil, "the SVID is for another key")
	}
	s.ID = id
	return nil
}

// HeldClientTLS is the client side of mutual TLS for who was handed his SVID and has no Workload API, such as the agent of a run: 1.3,
// the SVID of the moment shown, and the server has to be that service of its trust domain and nobody else. A nil now is time.Now.
func HeldClientTLS(current func() (*SVID, error), service string, now func() time.Time) *tls.Config {
	if now == nil {
		now = time.Now
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Time:                   now,
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, //nolint:forbidigo,gosec // a server is known by its SPIFFE ID, which VerifyConnection checks, and not by a host's name
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			s, err := current()
			if err != nil {
				return nil, err
			}
			if !now().Before(s.NotAfter()) {
				return nil, errOwnEnded
			}
			c := &tls.Certificate{PrivateKey: s.Key, Leaf: s.Chain[0]}
			for _, x := range s.Chain {
				c.Certificate = append(c.Certificate, x.Raw)
			}
			return c, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			s, err := current()
			if err != nil {
				return err
			}
			td := s.ID.TrustDomain()
			want, err := ServiceID(td, service)
			if err != nil {
				return fault.Internal(err, "the name of a service is wrong")
			}
			id, err := Verify(cs.PeerCertificates, td, x509bundle.FromX509Authorities(td, s.Bundle), x509.ExtKeyUsageServerAuth, now())
			if err != nil {
				return err
			}
			return One(want)(id)
		},
	}
}
