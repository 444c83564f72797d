package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

func root(t *testing.T, td string) *svid.Authority {
	t.Helper()
	a, err := svid.NewAuthority(spiffeid.RequireTrustDomainFromString(td), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A gateway is believed by the roots of the moment, and by the operator's own.
func TestRootsFollow(t *testing.T) { // D10
	old, next, other := root(t, "mesh.test"), root(t, "mesh.test"), root(t, "other.test")
	own := root(t, "own.test") // stands for the operator's, which names no trust domain
	operators := own.Root()
	operators.URIs = nil
	pool, certs := x509.NewCertPool(), []*x509.Certificate{old.Root(), operators}
	for _, c := range certs {
		pool.AddCert(c)
	}
	b := newRoots(pool, certs)
	creds := b.Credentials("", time.Now)
	believes := func(a *svid.Authority) bool {
		t.Helper()
		key, err := svid.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		chain, err := a.SignServer(&key.PublicKey, []string{"gateway.test"}, nil, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		here, there := net.Pipe()
		defer here.Close()
		go func() {
			s := tls.Server(there, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}})
			_ = s.HandshakeContext(t.Context())
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, _, err = creds.ClientHandshake(ctx, "gateway.test:443", here)
		return err == nil
	}
	want := func(when string, o, n, p bool) {
		t.Helper()
		if believes(old) != o || believes(next) != n || believes(own) != p {
			t.Errorf("%s: the old root, the next one and the operator's are not believed as they should be", when)
		}
	}
	want("at the start", true, false, true)
	for name, bad := range map[string][][]byte{"another mesh's": {next.Root().Raw, other.Root().Raw}, "no certificate": {[]byte("x")}} {
		if _, err := b.Take(bad); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	want("after what is refused", true, false, true)
	if _, err := b.Take(nil); err != nil {
		t.Error(err)
	}
	want("after an answer without roots", true, false, true)
	if _, err := b.Take([][]byte{old.Root().Raw, next.Root().Raw}); err != nil {
		t.Error(err)
	}
	want("while both stand", true, true, true)
	for _, first := range []bool{true, false} {
		if changed, err := b.Take([][]byte{next.Root().Raw}); err != nil || changed != first {
			t.Errorf("changed is %v: %v", changed, err)
		}
	}
	want("after the old one is revoked", false, true, true)
	if got := certificates(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Root().Raw})); len(got) != 1 || !got[0].Equal(old.Root()) {
		t.Error("the document's certificates are not read")
	}
}
