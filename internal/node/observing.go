package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/observe"
)

// newTracing records what the configuration says.
func (n *Node) newTracing(ctx context.Context) (*observe.Tracing, error) {
	version, _, _ := observe.Build()
	cfg := observe.TraceConfig{
		Service: n.name, Instance: n.cfg.Service.Instance, Version: version, Endpoint: n.cfg.Mesh.TraceEndpoint, Ratio: n.cfg.Mesh.TraceRatio, Log: n.log,
		Attributes: map[string]string{"redoubt.installation": n.cfg.Mesh.TrustDomain},
	}
	if f := n.cfg.Mesh.TraceCAFile; f != "" {
		roots, err := readRoots(f)
		if err != nil {
			return nil, err
		}
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: n.opts.Now}
	}
	t, err := observe.NewTracing(ctx, cfg)
	if err != nil {
		return nil, err
	}
	n.onStop(func() { _ = t.Shutdown(context.WithoutCancel(ctx)) })
	return t, nil
}

// serveMetrics answers Prometheus: on loopback in clear, elsewhere to those who show a certificate.
func (n *Node) serveMetrics() error {
	if n.cfg.Service.Metrics == "" {
		return nil
	}
	l, err := n.listen("metrics", n.cfg.Service.Metrics)
	if err != nil {
		return err
	}
	if f := n.cfg.Service.MetricsClientCAFile; f != "" {
		roots, err := readRoots(f)
		if err != nil {
			_ = l.Close()
			return err
		}
		l = tls.NewListener(l, &tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, Time: n.opts.Now, NextProtos: []string{"http/1.1"},
			SessionTicketsDisabled: true,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				h := n.own.Load()
				if h == nil {
					return nil, errors.New("there is no certificate yet")
				}
				s, err := (*h).Current()
				if err != nil {
					return nil, err
				}
				return publicCertificate(s), nil
			},
		})
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", n.metrics.Handler(n.log))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	n.background("metrics", func(context.Context) error {
		if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	n.onStop(func() { _ = srv.Close() })
	return nil
}

// readRoots reads certificates to believe.
func readRoots(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.FailedPrecondition("the certificates of %s cannot be read: %v", path, reason(err))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fault.FailedPrecondition("%s holds no certificate", path)
	}
	return roots, nil
}
