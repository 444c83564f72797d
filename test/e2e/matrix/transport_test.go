package matrix

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// counted reads a counter of a node.
func counted(t *testing.T, service, name string) float64 {
	t.Helper()
	families, err := mesh.Nodes[service].Metrics().Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("%s has no counter %s", service, name)
	return 0
}

// D10, A3: no port of the mesh speaks with who has no certificate of it, and each attempt is counted.
func TestNoHandshakeWithoutCertificate(t *testing.T) {
	f := live(t)
	own := f.certificate(t, "inference")
	self, err := svid.SelfSigned(newKey(t), time.Now())
	must(t, err)
	_, join := enrolment(t, "inference", newKey(t))
	ofRun := f.runCertificate(t)

	type port struct{ name, service, addr, counter string }
	var ports []port
	for _, s := range node.Services {
		ports = append(ports, port{s, s, mesh.Nodes[s].MeshAddr(), "redoubt_handshake_failures_total"})
	}
	ports = append(ports, port{"enrolment", "identity", join.Address, "redoubt_enrolment_handshake_failures_total"})
	for _, p := range ports {
		attempts := map[string]func(net.Conn) error{
			"no certificate": func(c net.Conn) error { return speak(tls.Client(c, clientTLS(p.service, nil))) },
			"TLS 1.2": func(c net.Conn) error {
				cfg := clientTLS(p.service, own)
				cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
				return speak(tls.Client(c, cfg))
			},
			"plain text": speak,
		}
		if p.name != "enrolment" { // where a key without a certificate is what one comes with
			attempts["a run's certificate"] = func(c net.Conn) error { return speak(tls.Client(c, clientTLS(p.service, ofRun))) }
			attempts["a certificate of nobody's"] = func(c net.Conn) error { return speak(tls.Client(c, clientTLS(p.service, &self))) }
		}
		for name, attempt := range attempts {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				before := counted(t, p.service, p.counter)
				c, err := net.Dial("tcp", p.addr)
				must(t, err)
				defer func() { _ = c.Close() }()
				must(t, c.SetDeadline(time.Now().Add(15*time.Second)))
				if err := attempt(c); err == nil {
					t.Error("the port answered")
				}
				_ = c.Close()
				for deadline := time.Now().Add(5 * time.Second); counted(t, p.service, p.counter) <= before; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("the failed handshake was not counted")
					}
				}
			})
		}
		if p.name == "enrolment" {
			continue
		}
		t.Run(p.name+"/a member", func(t *testing.T) { // that it is not refused for another reason
			c, err := net.Dial("tcp", p.addr)
			must(t, err)
			defer func() { _ = c.Close() }()
			must(t, c.SetDeadline(time.Now().Add(15*time.Second)))
			must(t, speak(tls.Client(c, clientTLS(p.service, own))))
		})
	}
}

// runCertificate is what the agent of a run gets.
func (f *fixture) runCertificate(t *testing.T) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	res, err := identityv1.NewAgentServiceClient(gatewayConn()).EnrolAgent(t.Context(), &identityv1.EnrolAgentRequest{JoinToken: f.join(t), Csr: csr(t, key)})
	must(t, err)
	return &tls.Certificate{Certificate: res.GetSvid(), PrivateKey: key}
}

// speak begins HTTP/2 and waits for the server to say that it speaks it too.
func speak(c net.Conn) error {
	if _, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	var frame [9]byte
	for n := 0; n < len(frame); {
		k, err := c.Read(frame[n:])
		if n += k; err != nil && n < len(frame) {
			return err
		}
	}
	if frame[3] != 4 { // SETTINGS
		return errNoHTTP2
	}
	return nil
}
