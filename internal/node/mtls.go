package node

import (
	"context"
	"crypto/tls"
	"net"
	"path/filepath"

	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/identity"
)

// checkMTLS looks at identity's listener for clients with certificates.
func (s *Service) checkMTLS(bad func(field, what string) error) error {
	on := s.MTLSListen != "" || s.MTLSURL != ""
	switch {
	case !on && s.MTLSCertificateFile == "" && s.MTLSKeyFile == "":
		return nil
	case s.Name != "identity":
		return bad("service.mtls_listen", "is for identity: it alone may say who has proved what at its own port")
	case !on:
		return bad("service.mtls_certificate_file", "is for mtls_listen, which is not set")
	case !isAddress(s.MTLSURL):
		return bad("service.mtls_url", "is not of the form https://host:port: it is service.mtls_listen as clients write it")
	case (s.MTLSCertificateFile == "") != (s.MTLSKeyFile == ""):
		return bad("service.mtls_key_file", "and mtls_certificate_file are set both, or neither")
	case s.WorkloadAPI != "" && s.MTLSCertificateFile == "":
		return bad("service.mtls_certificate_file", "is missing: a certificate of another's Workload API has no name that clients could check")
	}
	if _, _, err := net.SplitHostPort(s.MTLSListen); err != nil {
		return bad("service.mtls_listen", "is not host:port")
	}
	for field, path := range map[string]string{"service.mtls_certificate_file": s.MTLSCertificateFile, "service.mtls_key_file": s.MTLSKeyFile} {
		if path != "" && !filepath.IsAbs(path) {
			return bad(field, "is not an absolute path")
		}
	}
	return nil
}

// serveCertificates opens identity's listener for clients with certificates. Its chain is the service's, but for peers without a SPIFFE ID.
func (n *Node) serveCertificates(cfg rpc.Config, m *mesh) error {
	cfg.Enrolment = true
	c, err := rpc.NewChain(cfg)
	if err != nil {
		return err
	}
	limits, refused, err := n.edge()
	if err != nil {
		return err
	}
	mesh := func() (*tls.Certificate, error) {
		s, err := m.own.Current()
		if err != nil {
			return nil, err
		}
		return publicCertificate(s), nil
	}
	shown := edge.Mesh(mesh)
	if f := n.cfg.Service.MTLSCertificateFile; f != "" {
		own, err := edge.Files("the listener for clients with certificates", f, n.cfg.Service.MTLSKeyFile, n.opts.Now, n.log)
		if err != nil {
			return err
		}
		shown = edge.Either(own, mesh)
	}
	l, err := n.listen("identity-mtls", n.cfg.Service.MTLSListen)
	if err != nil {
		return err
	}
	n.background("clients with certificates", func(ctx context.Context) error {
		return n.identity.ServeCertificates(ctx, l, identity.CertificatePort{Chain: c, Certificate: shown, Limits: limits, Refused: refused})
	})
	return nil
}
