package node

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-ml/redoubt/pkg/edge"
	"github.com/redoubt-ml/redoubt/services/gateway"
)

// Edge bounds what strangers may ask of a port that they reach: the gateway's, and inference's for scoring. Zeros are the defaults.
type Edge struct {
	// Connections that may stand at a time, in all and of one address (of IPv6: of one /64).
	Connections           int `koanf:"connections" config:"visible"`
	ConnectionsPerAddress int `koanf:"connections_per_address" config:"visible"`
	// ConnectionsPerSecond that may come from one address.
	ConnectionsPerSecond float64 `koanf:"connections_per_second" config:"visible"`
	// Handshakes that may be under way, in all and of one address.
	Handshakes           int `koanf:"handshakes" config:"visible"`
	HandshakesPerAddress int `koanf:"handshakes_per_address" config:"visible"`
	// HandshakeTimeout is how long a connection may take until its TLS stands, at most 10 s.
	HandshakeTimeout time.Duration `koanf:"handshake_timeout" config:"visible"`
	// WriteTimeout is how long a client may leave what it is sent unread.
	WriteTimeout time.Duration `koanf:"write_timeout" config:"visible"`
	// Calls that may be under way, in all and of one address, and on one HTTP/2 connection; gateway only.
	Calls              int `koanf:"calls" config:"visible"`
	CallsPerAddress    int `koanf:"calls_per_address" config:"visible"`
	CallsPerConnection int `koanf:"calls_per_connection" config:"visible"`
	// CallsPerSecond that may begin from one address; gateway only.
	CallsPerSecond float64 `koanf:"calls_per_second" config:"visible"`
}

// check finds what is out of range.
func (e *Edge) check(bad func(field, what string) error) error {
	for field, n := range map[string]int{
		"connections": e.Connections, "connections_per_address": e.ConnectionsPerAddress, "handshakes": e.Handshakes, "handshakes_per_address": e.HandshakesPerAddress,
		"calls": e.Calls, "calls_per_address": e.CallsPerAddress, "calls_per_connection": e.CallsPerConnection,
	} {
		if n < 0 || n > 1<<20 {
			return bad("edge."+field, "is not from 0 to 1048576")
		}
	}
	if e.HandshakeTimeout < 0 || e.HandshakeTimeout > 10*time.Second {
		return bad("edge.handshake_timeout", "is not from 0 to 10s")
	}
	if e.WriteTimeout < 0 || e.WriteTimeout > 10*time.Minute {
		return bad("edge.write_timeout", "is not from 0 to 10m")
	}
	if e.ConnectionsPerSecond < 0 || e.ConnectionsPerSecond > 1e6 {
		return bad("edge.connections_per_second", "is not from 0 to 1000000")
	}
	if e.CallsPerSecond < 0 || e.CallsPerSecond > 1e6 {
		return bad("edge.calls_per_second", "is not from 0 to 1000000")
	}
	return nil
}

// checkPublic looks at what only services have that strangers reach.
func (s *Service) checkPublic(bad func(field, what string) error) error {
	if _, err := prefixes(s.ProxyProtocolFrom); err != nil {
		return bad("service.proxy_protocol_from", err.Error())
	}
	if len(s.ProxyProtocolFrom) > 0 && s.Name != "gateway" && s.Name != "inference" && s.MTLSListen == "" {
		return bad("service.proxy_protocol_from", "is for gateway, inference, and identity with mtls_listen: nobody else is reached by strangers")
	}
	if (s.CertificateFile == "") != (s.KeyFile == "") {
		return bad("service.key_file", "and certificate_file are set both, or neither")
	}
	if s.CertificateFile != "" && s.Name != "gateway" {
		return bad("service.certificate_file", "is for the gateway; inference has scoring_certificate_file")
	}
	for field, path := range map[string]string{"service.certificate_file": s.CertificateFile, "service.key_file": s.KeyFile, "service.public_ca_file": s.PublicCAFile} {
		if path != "" && !filepath.IsAbs(path) {
			return bad(field, "is not an absolute path")
		}
	}
	return nil
}

// prefixes reads networks, and addresses that stand for themselves.
func prefixes(in []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(in))
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("has %q, which is no network such as 10.0.0.0/8", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Bits() == 0 {
			return nil, fmt.Errorf("has %q: then every stranger could say who he is", s)
		}
		if p.Addr().Is4In6() || p != p.Masked() {
			return nil, fmt.Errorf("has %q, whose address is not that of a network", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// edge are the limits of a port that strangers reach.
func (n *Node) edge() (edge.Limits, func(edge.Refusal), error) {
	from, err := prefixes(n.cfg.Service.ProxyProtocolFrom)
	if err != nil {
		return edge.Limits{}, nil, err
	}
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "redoubt_edge_refused_total", Help: "Connections of strangers that got no further, by reason."}, []string{"reason"})
	if err := n.metrics.Registerer().Register(refused); err != nil {
		return edge.Limits{}, nil, err
	}
	e := n.cfg.Edge
	return edge.Limits{
		Connections: e.Connections, PerAddress: e.ConnectionsPerAddress, PerSecond: e.ConnectionsPerSecond, Handshakes: e.Handshakes, HandshakesPerAddress: e.HandshakesPerAddress,
		HandshakeTimeout: e.HandshakeTimeout, WriteTimeout: e.WriteTimeout, ProxyFrom: from,
	}, func(why edge.Refusal) { refused.WithLabelValues(string(why)).Inc() }, nil
}

// calls bounds what strangers may ask of the gateway.
func (e *Edge) calls() gateway.Calls {
	return gateway.Calls{PerConnection: uint32(e.CallsPerConnection), Open: e.Calls, OpenPerAddress: e.CallsPerAddress, PerSecond: e.CallsPerSecond}
}

// publicCA are the roots that an agent believes at the gateway, as PEM: the mesh's, and those of a certificate of the operator's.
func (n *Node) publicCA(m *mesh) ([]byte, error) {
	roots := m.own.Bundle()
	if len(roots) == 0 {
		return nil, errors.New("there is no root to give to agents")
	}
	all := pemOf(roots)
	if n.cfg.Service.PublicCAFile == "" {
		return all, nil
	}
	more, err := os.ReadFile(n.cfg.Service.PublicCAFile)
	if err != nil {
		return nil, fmt.Errorf("the roots of the gateway's certificate: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(more) {
		return nil, fmt.Errorf("%s holds no certificate", n.cfg.Service.PublicCAFile)
	}
	return append(all, more...), nil
}
