package edge

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"
)

// aeadOnly are the ciphers of TLS 1.2: with forward secrecy, and none in CBC mode, which Go's defaults still hold (D10). Those of
// TLS 1.3 cannot be chosen.
var aeadOnly = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// Certificate gives the certificate for a handshake.
type Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// TLS is the configuration of a port: a certificate that is asked for at each handshake, no session that outlives it, and the protocols
// that are offered.
func TLS(certificate Certificate, now func() time.Time, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, CipherSuites: aeadOnly, Time: now, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		NextProtos: protocols, GetCertificate: certificate,
	}
}

// Mesh is a port's certificate where it has none of its own: the mesh's.
func Mesh(mesh func() (*tls.Certificate, error)) Certificate {
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return mesh() }
}

// Either gives the operator's own certificate, and the mesh's to who asks for a name or dials an address that only the mesh's has: agents
// and operators inside know that one's root.
func Either(own, mesh func() (*tls.Certificate, error)) Certificate {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		ours, err := own()
		if err != nil {
			return nil, err
		}
		name := hello.ServerName
		if name == "" && hello.Conn != nil { // an address was dialled
			name = peerOf(hello.Conn.LocalAddr()).Addr().String()
		}
		if names(ours, name) {
			return ours, nil
		}
		if theirs, err := mesh(); err == nil && names(theirs, name) {
			return theirs, nil
		}
		return ours, nil
	}
}

// names tells whether a certificate is one of a host.
func names(c *tls.Certificate, host string) bool {
	leaf := c.Leaf
	if leaf == nil && len(c.Certificate) > 0 {
		leaf, _ = x509.ParseCertificate(c.Certificate[0])
	}
	if leaf == nil || host == "" {
		return false
	}
	if net.ParseIP(host) != nil {
		host = "[" + host + "]"
	}
	return leaf.VerifyHostname(host) == nil
}
