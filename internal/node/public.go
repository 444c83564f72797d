package node

import (
	"context"
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/gateway"
)

// startGateway builds the one service without a store: its public listener, and a mesh port with health for operators.
func (n *Node) startGateway(ctx context.Context, cfg rpc.Config) error {
	m, err := n.joinMesh(ctx, cfg.Rules, nil)
	if err != nil {
		return err
	}
	peers := make(map[string]grpc.ClientConnInterface)
	for _, s := range Services {
		if s == rpc.Gateway {
			continue
		}
		if peers[s], err = n.dial(m, s); err != nil {
			return err
		}
	}
	limits, refused, err := n.edge()
	if err != nil {
		return err
	}
	g, err := gateway.New(gateway.Config{
		Grace: n.cfg.Service.Grace,
		Edge:  limits, OnRefused: refused, Calls: n.cfg.Edge.calls(), CertificateFile: n.cfg.Service.CertificateFile, KeyFile: n.cfg.Service.KeyFile,
		Rules: cfg.Rules, Peers: peers, Installation: n.cfg.Mesh.TrustDomain, PublicURL: n.cfg.Mesh.PublicURL, Tracing: cfg.Tracing, Now: n.opts.Now, Logger: n.log,
		Certificate: func() (*tls.Certificate, error) {
			s, err := m.own.Current()
			if err != nil {
				return nil, err
			}
			return publicCertificate(s), nil
		},
	})
	if err != nil {
		return err
	}
	c, err := rpc.NewChain(cfg)
	if err != nil {
		return err
	}
	n.chain = c
	inside, err := n.listen("gateway-mesh", n.cfg.Service.MeshListen)
	if err != nil {
		return err
	}
	n.inside = inside.Addr().String()
	server := c.NewServer(m.source.ServerCredentials())
	n.standard(c, server)
	n.serve("server", server, inside)
	public, err := n.listen("gateway", n.cfg.Service.Listen)
	if err != nil {
		return err
	}
	n.addr = public.Addr().String()
	serving, end := context.WithCancel(n.ctx)
	ended := make(chan struct{})
	n.background("public", func(ctx context.Context) error {
		defer close(ended)
		defer context.AfterFunc(ctx, end)()
		return g.Serve(serving, public)
	})
	n.drains = append(n.drains, g.Drain)
	n.ends = append(n.ends, func() { end(); <-ended })
	n.mesh = m
	return n.announce(m, inside.Addr().String())
}

// counter registers a counter of this node.
func (n *Node) counter(name, help string) (prometheus.Counter, error) {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	return c, n.metrics.Registerer().Register(c)
}

// publicCertificate is the SVID of a service that strangers reach, as they see it: it says the names that they dial.
func publicCertificate(s *svid.SVID) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: s.Key, Leaf: s.Chain[0]}
	for _, x := range s.Chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}
