package svid

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func bundleOf(a *Authority) *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.TrustDomain(), a.Bundle())
}

// TestSVIDRules holds D10: what the authority signs is an X.509-SVID by the standard, and no more than that.
func TestSVIDRules(t *testing.T) {
	a := newAuthority(t, td)
	now := time.Now()
	key, id := newKey(t), service(t, "compute")
	seen := map[string]bool{}
	for range 3 {
		chain, err := a.Sign(key.Public(), id, time.Hour, now)
		if err != nil || len(chain) != 1 {
			t.Fatalf("%d certificates, %v", len(chain), err)
		}
		c := parse(t, chain[0])
		if len(c.URIs) != 1 || c.URIs[0].String() != id.String() || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 {
			t.Errorf("names: %v %v", c.URIs, c.DNSNames)
		}
		if c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("CA %v, usage %b", c.IsCA, c.KeyUsage)
		}
		if !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
			t.Errorf("EKU %v", c.ExtKeyUsage)
		}
		if !c.NotBefore.Equal(now.Add(-Backdate).UTC().Truncate(time.Second)) || !c.NotAfter.Equal(now.Add(time.Hour).UTC().Truncate(time.Second)) {
			t.Errorf("valid %v to %v", c.NotBefore, c.NotAfter)
		}
		if s := c.SerialNumber.String(); seen[s] || c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() < 64 {
			t.Errorf("serial %s", s)
		} else {
			seen[s] = true
		}
		got, err := Verify([]*x509.Certificate{c}, td, bundleOf(a), x509.ExtKeyUsageClientAuth, now)
		if err != nil || got != id {
			t.Errorf("Verify = %v, %v", got, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	a := newAuthority(t, td)
	now, key := time.Now(), newKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := service(t, "compute")
	for name, sign := range map[string]func() error{
		"foreign trust domain": func() error {
			_, err := a.Sign(key.Public(), spiffeid.RequireFromPath(foreign, "/service/compute"), time.Hour, now)
			return err
		},
		"the trust domain itself": func() error { _, err := a.Sign(key.Public(), td.ID(), time.Hour, now); return err },
		"no id":                   func() error { _, err := a.Sign(key.Public(), spiffeid.ID{}, time.Hour, now); return err },
		"no life":                 func() error { _, err := a.Sign(key.Public(), id, 0, now); return err },
		"endless life":            func() error { _, err := a.Sign(key.Public(), id, MaxLeafTTL+1, now); return err },
		"RSA":                     func() error { _, err := a.Sign(rsaKey.Public(), id, time.Hour, now); return err },
		"P-384":                   func() error { _, err := a.Sign(p384.Public(), id, time.Hour, now); return err },
		"Ed25519":                 func() error { _, err := a.Sign(ed, id, time.Hour, now); return err },
		"no key":                  func() error { _, err := a.Sign(nil, id, time.Hour, now); return err },
		"root over":               func() error { _, err := a.Sign(key.Public(), id, time.Hour, now.Add(2*time.Hour)); return err },
		"server without a name":   func() error { _, err := a.SignServer(key.Public(), nil, nil, time.Hour, now); return err },
		"client without a name": func() error {
			_, err := a.SignLeaf(key.Public(), Leaf{Client: true}, time.Hour, now)
			return err
		},
		"leaf for nothing": func() error {
			_, err := a.SignLeaf(key.Public(), Leaf{CommonName: "x", DNSNames: []string{"x"}}, time.Hour, now)
			return err
		},
	} {
		if err := sign(); !fault.Is(err, codes.InvalidArgument) && !fault.Is(err, codes.FailedPrecondition) {
			t.Errorf("%s: %v", name, err)
		}
	}
	chain, err := a.Sign(key.Public(), id, 24*time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if c := parse(t, chain[0]); !c.NotAfter.Equal(a.Root().NotAfter) {
		t.Errorf("a leaf ends at %v, its root at %v", c.NotAfter, a.Root().NotAfter)
	}
}

func TestSignCSR(t *testing.T) {
	a := newAuthority(t, td)
	key, id := newKey(t), service(t, "compute")
	// The request asks for another identity, and for a name: neither is honoured.
	wish, err := url.Parse("spiffe://mesh.test/service/keyvault")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "keyvault"}, URIs: []*url.URL{wish}, DNSNames: []string{"keyvault"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, pub, err := a.SignCSR(csr, id, time.Hour, time.Now())
	if err != nil || !pub.Equal(key.Public()) {
		t.Fatalf("%v, key equal %v", err, pub.Equal(key.Public()))
	}
	if c := parse(t, chain[0]); len(c.URIs) != 1 || c.URIs[0].String() != id.String() || len(c.DNSNames) != 0 || c.Subject.CommonName != "" {
		t.Errorf("the request's names came through: %v %v %v", c.URIs, c.DNSNames, c.Subject)
	}

	broken := slices.Clone(csr)
	broken[len(broken)-1] ^= 1 // the signature
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"nothing": nil, "noise": []byte("noise"), "signature": broken, "RSA": rsaCSR, "long": append(slices.Clone(csr), make([]byte, maxCSR)...),
	} {
		if _, _, err := a.SignCSR(der, id, time.Hour, time.Now()); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuthorityStored(t *testing.T) {
	old, a := newAuthority(t, td), newAuthority(t, td)
	a, err := a.WithTrusted(old.Root(), a.Root())
	if err != nil {
		t.Fatal(err)
	}
	state, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v", state, state.Key); strings.Contains(text, string(state.Key.Reveal())) {
		t.Error("the key is printed")
	}
	b, err := ParseAuthority(td, state)
	if err != nil {
		t.Fatal(err)
	}
	if b.Pin() != a.Pin() || len(b.Bundle()) != 2 || !b.Bundle()[0].Equal(a.Root()) || !b.Bundle()[1].Equal(old.Root()) {
		t.Fatalf("pin %s %s, bundle %d", b.Pin(), a.Pin(), len(b.Bundle()))
	}
	// A leaf of the old root is believed beside one of the new.
	for _, signer := range []*Authority{old, b} {
		chain, err := signer.Sign(newKey(t).Public(), service(t, "a"), time.Minute, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify([]*x509.Certificate{parse(t, chain[0])}, td, bundleOf(b), x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
			t.Error(err)
		}
	}
	oldState, err := old.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.Sign(newKey(t).Public(), service(t, "a"), time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]State{
		"nothing":         {},
		"another key":     {Root: state.Root, Key: oldState.Key},
		"no key":          {Root: state.Root},
		"a leaf as root":  {Root: leaf[0], Key: state.Key},
		"a leaf trusted":  {Root: state.Root, Key: state.Key, Trusted: [][]byte{leaf[0]}},
		"foreign trusted": {Root: state.Root, Key: state.Key, Trusted: [][]byte{newAuthority(t, foreign).Root().Raw}},
	} {
		if _, err := ParseAuthority(td, s); !fault.Is(err, codes.DataLoss) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseAuthority(foreign, state); !fault.Is(err, codes.DataLoss) {
		t.Error("read under another trust domain")
	}
	if _, err := a.WithTrusted(newAuthority(t, foreign).Root()); !fault.Is(err, codes.InvalidArgument) {
		t.Error("a foreign root is trusted")
	}
	if _, err := NewAuthority(spiffeid.TrustDomain{}, time.Now(), time.Hour); err == nil {
		t.Error("an authority without a trust domain")
	}
	if _, err := NewAuthority(td, time.Now(), 0); err == nil {
		t.Error("an authority without a life")
	}
}

func TestServerLeaf(t *testing.T) {
	a := newAuthority(t, td)
	chain, err := a.SignServer(newKey(t).Public(), []string{"ml.example"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, chain[0])
	roots := x509.NewCertPool()
	roots.AddCert(a.Root())
	for _, host := range []string{"ml.example", "127.0.0.1"} {
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if _, err := Verify([]*x509.Certificate{c}, td, bundleOf(a), x509.ExtKeyUsageAny, time.Now()); err == nil {
		t.Error("the public listener's certificate passes as an SVID")
	}
}

// TestVerifyRefuses is the list of chains that a mesh meets and must not believe (D10).
func TestVerifyRefuses(t *testing.T) {
	a, other := newAuthority(t, td), newAuthority(t, td)
	abroad := newAuthority(t, foreign)
	now := time.Now()
	key := newKey(t)
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	good := func(change func(*x509.Certificate)) *x509.Certificate {
		serial, err := newSerial()
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs: []*url.URL{uri("spiffe://mesh.test/service/compute")},
		}
		change(c)
		return c
	}
	type certs = []*x509.Certificate
	by := func(a *Authority, change func(*x509.Certificate)) certs {
		return certs{forge(t, a, key.Public(), good(change))}
	}
	ok := by(a, func(*x509.Certificate) {})
	if _, err := Verify(ok, td, bundleOf(a), x509.ExtKeyUsageClientAuth, now); err != nil {
		t.Fatalf("the pattern itself is refused: %v", err)
	}
	// An intermediate that a service could make if its leaf were an authority.
	sub := forge(t, a, key.Public(), good(func(*x509.Certificate) {}))
	subLeaf, err := x509.CreateCertificate(rand.Reader, good(func(*x509.Certificate) {}), sub, newKey(t).Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string]certs{
		"nothing":             nil,
		"expired":             by(a, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now.Add(-time.Second) }),
		"not yet valid":       by(a, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Minute), now.Add(time.Hour) }),
		"other root":          by(other, func(*x509.Certificate) {}),
		"foreign authority":   by(abroad, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://other.test/service/compute") }),
		"foreign domain":      by(a, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://other.test/service/compute") }),
		"no URI":              by(a, func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"compute"} }),
		"two URIs":            by(a, func(c *x509.Certificate) { c.URIs = append(c.URIs, uri("spiffe://mesh.test/service/keyvault")) }),
		"other scheme":        by(a, func(c *x509.Certificate) { c.URIs[0] = uri("https://mesh.test/service/compute") }),
		"with port":           by(a, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://mesh.test:1/service/compute") }),
		"with query":          by(a, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://mesh.test/service/compute?a=b") }),
		"dots":                by(a, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://mesh.test/service/../compute") }),
		"CA":                  by(a, func(c *x509.Certificate) { c.IsCA = true }),
		"signs certificates":  by(a, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign; c.IsCA = true }),
		"signs CRLs":          by(a, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }),
		"no signature usage":  by(a, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }),
		"server only":         by(a, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }),
		"code signing":        by(a, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }),
		"the root itself":     {a.Root()},
		"leaf signed by leaf": {parse(t, subLeaf), sub},
		"self-signed":         {selfSignedAs(t, good(func(*x509.Certificate) {}))},
		"long chain":          {ok[0], ok[0], ok[0], ok[0], ok[0]},
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := Verify(chain, td, bundleOf(a), x509.ExtKeyUsageClientAuth, now); !fault.Is(err, codes.Unauthenticated) {
				t.Errorf("believed as %v, %v", id, err)
			}
		})
	}
	set := x509bundle.NewSet(bundleOf(a), bundleOf(abroad))
	federated := by(abroad, func(c *x509.Certificate) { c.URIs[0] = uri("spiffe://other.test/service/compute") })
	if _, err := Verify(federated, td, set, x509.ExtKeyUsageClientAuth, now); !fault.Is(err, codes.Unauthenticated) {
		t.Errorf("a peer of another trust domain whose roots are known: %v", err)
	}
}

func selfSignedAs(t *testing.T, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}
