package edge

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/redoubt-ml/redoubt/pkg/svid"
)

var td = spiffeid.RequireTrustDomainFromString("mesh.test")

// TestCertificateFiles replaces the files of the certificate while the listener serves.
func TestCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca, err := svid.NewAuthority(td, time.Now(), 10*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, life time.Duration, from time.Time) (cert, key []byte) {
		k, err := svid.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.SignServer(k.Public(), []string{name}, nil, life, from)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range chain {
			cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
		}
		return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	put := func(cert, key []byte) {
		t.Helper()
		for path, b := range map[string][]byte{certFile: cert, keyFile: key} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var clock atomic.Int64
	start := time.Now()
	now := func() time.Time { return start.Add(time.Duration(clock.Load())) }
	get := func(f func() (*tls.Certificate, error)) string {
		t.Helper()
		c, err := f()
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.DNSNames[0]
	}
	if _, err := Files("the test", certFile, keyFile, now, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("files that are not there are taken at the start")
	}
	oneCert, oneKey := write("one.test", time.Hour, start)
	twoCert, twoKey := write("two.test", time.Hour, start)
	put(oneCert, twoKey)
	if _, err := Files("the test", certFile, keyFile, now, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("files that do not belong together are taken at the start")
	}
	put(oneCert, oneKey)
	f, err := Files("the test", certFile, keyFile, now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	pass := func() { clock.Add(int64(lookEvery)) }
	put(twoCert, oneKey) // the first of two files has been replaced
	if pass(); get(f) != "one.test" {
		t.Error("a broken pair is shown")
	}
	put(twoCert, twoKey)
	if get(f) != "one.test" {
		t.Error("the files are looked at too often")
	}
	if pass(); get(f) != "two.test" {
		t.Error("the new one is not shown")
	}
	for name, b := range map[string][]byte{"empty": nil, "garbage": []byte("-----BEGIN CERTIFICATE-----\nxx\n")} {
		put(b, twoKey)
		if pass(); get(f) != "two.test" {
			t.Errorf("%s: the old one is gone", name)
		}
	}
	_ = os.Remove(certFile)
	if pass(); get(f) != "two.test" {
		t.Error("gone: the old one is gone")
	}
	overCert, overKey := write("over.test", time.Minute, start.Add(-time.Hour))
	put(overCert, overKey)
	if pass(); get(f) != "two.test" {
		t.Error("one that has ended is shown")
	}
	put(oneCert, oneKey)
	if pass(); get(f) != "one.test" {
		t.Error("it does not recover")
	}
}
