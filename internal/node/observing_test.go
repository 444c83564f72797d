package node

import (
	"context"
	"crypto"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// G1: metrics and traces leave the machine by TLS alone.
func TestObservingConfig(t *testing.T) {
	for name, c := range map[string]struct {
		change func(c *Config)
		field  string // "" for what is fine
	}{
		"nothing":               {func(*Config) {}, ""},
		"on loopback":           {func(c *Config) { c.Service.Metrics, c.Mesh.TraceEndpoint = "127.0.0.1:9", "[::1]:4317" }, ""},
		"metrics for everybody": {func(c *Config) { c.Service.Metrics = "0.0.0.0:9" }, "service.metrics"},
		"traces in clear":       {func(c *Config) { c.Mesh.TraceEndpoint = "collector:4317" }, "mesh.trace_endpoint"},
		"traces by TLS":         {func(c *Config) { c.Mesh.TraceEndpoint, c.Mesh.TraceCAFile = "collector:4317", "/ca.pem" }, ""},
		"metrics by TLS":        {func(c *Config) { c.Service.Metrics, c.Service.MetricsClientCAFile = "0.0.0.0:9", "/ca.pem" }, ""},
		"a relative path":       {func(c *Config) { c.Service.Metrics, c.Service.MetricsClientCAFile = "0.0.0.0:9", "ca.pem" }, "service.metrics_client_ca_file"},
		"no port":               {func(c *Config) { c.Service.Metrics = "127.0.0.1" }, "service.metrics"},
		"more than all":         {func(c *Config) { c.Mesh.TraceRatio = 1.5 }, "mesh.trace_ratio"},
		"a format of its own":   {func(c *Config) { c.Log.Format = "xml" }, "log.format"},
	} {
		cfg := Config{
			Mesh:    Mesh{TrustDomain: "redoubt.test", PublicURL: "https://redoubt.test:1", Etcd: []string{"https://127.0.0.1:2"}, EnrolAddress: "127.0.0.1:3"},
			Service: Service{Name: "workspace", Dir: t.TempDir(), Listen: "127.0.0.1:4"},
		}
		c.change(&cfg)
		err := cfg.Check()
		if (err == nil) != (c.field == "") || err != nil && !strings.Contains(err.Error(), c.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// G1: off loopback, metrics are shown to who has a certificate of the roots that were named, and to nobody else.
func TestMetricsByTLS(t *testing.T) {
	dir := t.TempDir()
	issue := func(name string) (ca string, cert tls.Certificate) {
		pki, err := etcdnode.OpenPKI(filepath.Join(dir, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := pki.WriteLeaf(filepath.Join(dir, name, "leaf"), "scraper", svid.Leaf{CommonName: "scraper", Client: true})
		if err != nil {
			t.Fatal(err)
		}
		if cert, err = tls.LoadX509KeyPair(f.Cert, f.Key); err != nil {
			t.Fatal(err)
		}
		return f.CA, cert
	}
	ca, good := issue("monitoring")
	_, foreign := issue("foreign")
	n := newNode(t.Context(), Config{Service: Service{Name: "workspace", Dir: dir, Metrics: "127.0.0.1:0", MetricsClientCAFile: ca}}, Options{Now: time.Now, LogWriter: io.Discard})
	defer n.Stop()
	l, err := n.listen("metrics", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.opts.Listeners = map[string]net.Listener{"metrics": l}
	withKeeper(t, n)
	if err := n.serveMetrics(); err != nil {
		t.Fatal(err)
	}
	get := func(certs ...tls.Certificate) (string, error) {
		// Who the server is, is not the question here.
		tr := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: certs}}
		defer tr.CloseIdleConnections()
		r, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://" + l.Addr().String() + "/metrics")
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return string(b), err
	}
	if text, err := get(good); err != nil || !strings.Contains(text, "go_goroutines") {
		t.Errorf("%v, %.100s", err, text)
	}
	for name, certs := range map[string][]tls.Certificate{"none": nil, "of another root": {foreign}} {
		if text, err := get(certs...); err == nil {
			t.Errorf("%s: it was shown %.100s", name, text)
		}
	}
}

// withKeeper gives a node a certificate of a mesh of its own.
func withKeeper(t *testing.T, n *Node) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("redoubt.test")
	ca, err := svid.NewAuthority(td, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id, err := svid.ServiceID(td, "workspace")
	if err != nil {
		t.Fatal(err)
	}
	k, err := svid.NewKeeper(svid.KeeperConfig{Dir: t.TempDir(), ID: id, Issue: func(_ context.Context, _ crypto.Signer, csr []byte) (chain, bundle [][]byte, err error) {
		chain, _, err = ca.SignCSR(csr, id, time.Hour, time.Now())
		for _, c := range ca.Bundle() {
			bundle = append(bundle, c.Raw)
		}
		return chain, bundle, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	n.background("svid", k.Run)
	if err := k.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.hold(&mesh{}, k)
}
