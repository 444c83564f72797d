package plan

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-ml/redoubt/internal/node/etcdnode"
)

// D10: certificates of etcd are signed again for the keys and names that they had, and nothing else changes.
func TestRenew(t *testing.T) {
	data := t.TempDir()
	made(t, data, good)
	before := digests(t, data)
	read := func(path string) *x509.Certificate {
		t.Helper()
		c, err := tls.LoadX509KeyPair(path+".crt", path+".key")
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf
	}
	path := filepath.Join(data, "etcd-c", "pki", "peer")
	old := read(path)
	later := time.Now().Add(800 * 24 * time.Hour)
	got, err := Renew(data, func() time.Time { return later })
	if err != nil || len(got) != 7+2*3 {
		t.Fatalf("%d renewed, %v", len(got), err)
	}
	for _, r := range got {
		if !strings.HasSuffix(r.Path, ".crt") || r.End.Before(later.Add(800*24*time.Hour)) {
			t.Errorf("%s until %s", r.Path, r.End)
		}
	}
	fresh := read(path)
	if !fresh.NotAfter.After(old.NotAfter) || fresh.Subject.CommonName != old.Subject.CommonName || !slices.Equal(fresh.DNSNames, old.DNSNames) ||
		len(fresh.IPAddresses) != len(old.IPAddresses) || !slices.Equal(fresh.ExtKeyUsage, old.ExtKeyUsage) || len(fresh.ExtKeyUsage) != 2 {
		t.Errorf("renewed to %v %v %v %v", fresh.Subject, fresh.DNSNames, fresh.IPAddresses, fresh.ExtKeyUsage)
	}
	if !slices.Contains(fresh.DNSNames, "etcd-c") {
		t.Errorf("not for its host: %v", fresh.DNSNames)
	}
	after := digests(t, data)
	maps.DeleteFunc(before, func(path string, sum [32]byte) bool { return after[path] == sum })
	if len(before) != len(got) {
		t.Errorf("%d files have changed: %v", len(before), slices.Sorted(maps.Keys(before)))
	}
	other, err := etcdnode.OpenPKI(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.WriteClient(filepath.Join(data, "compute-a", "etcd"), "compute-a"); err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(data, nil); err == nil || !strings.Contains(err.Error(), "compute-a") {
		t.Errorf("of another root: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(data, etcdRoot)); err != nil {
		t.Fatal(err)
	}
	if _, err := Renew(data, nil); err == nil || !strings.Contains(err.Error(), etcdRoot) {
		t.Errorf("without the root: %v", err)
	}
}
