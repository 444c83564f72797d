package svid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("mesh.test")
	foreign = spiffeid.RequireTrustDomainFromString("other.test")
)

func newAuthority(t *testing.T, td spiffeid.TrustDomain) *Authority {
	t.Helper()
	a, err := NewAuthority(td, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func service(t *testing.T, name string) spiffeid.ID {
	t.Helper()
	id, err := ServiceID(td, name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// forge signs template with the authority's own key: what a broken or foreign authority could send.
func forge(t *testing.T, a *Authority, pub crypto.PublicKey, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, pub, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issuer is the other end of an IssueFunc: it signs for one ID, can be away, and counts.
type issuer struct {
	a    *Authority
	id   spiffeid.ID
	ttl  time.Duration
	now  func() time.Time
	away atomic.Pointer[error]
	n    atomic.Int64
}

func (i *issuer) issue(_ context.Context, _ crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
	i.n.Add(1)
	if err := i.away.Load(); err != nil {
		return nil, nil, *err
	}
	now := time.Now
	if i.now != nil {
		now = i.now
	}
	chain, _, err := i.a.SignCSR(csr, i.id, i.ttl, now())
	if err != nil {
		return nil, nil, err
	}
	var bundle [][]byte
	for _, c := range i.a.Bundle() {
		bundle = append(bundle, c.Raw)
	}
	return chain, bundle, nil
}

// startKeeper runs a Keeper until the test ends.
func startKeeper(t *testing.T, cfg KeeperConfig) *Keeper {
	t.Helper()
	if cfg.MinBackoff == 0 {
		cfg.MinBackoff = 5 * time.Millisecond
	}
	k, err := NewKeeper(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, k)
	return k
}

// run starts k and returns what stops it; the test's end does too.
func run(t *testing.T, k *Keeper) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := k.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

func ready(t *testing.T, k *Keeper) *SVID {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := k.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := k.Current()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newSource gives a workload of the authority its Keeper, Workload API and Source, over a real socket.
func newSource(t *testing.T, a *Authority, id spiffeid.ID, ttl time.Duration, change ...func(*SourceConfig)) (*Source, *issuer) {
	t.Helper()
	i := &issuer{a: a, id: id, ttl: ttl}
	dir := t.TempDir()
	k := startKeeper(t, KeeperConfig{Dir: dir, ID: id, Issue: i.issue})
	ready(t, k)
	w, err := NewWorkloadServer(WorkloadConfig{Keeper: k, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	cfg := SourceConfig{Addr: w.Addr(), TrustDomain: id.TrustDomain()}
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := NewSource(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	keepers.Store(s, k)
	return s, i
}

// keepers remembers whose Keeper stands behind a Source.
var keepers sync.Map

func serverKeeper(t *testing.T, s *Source) *Keeper {
	t.Helper()
	k, ok := keepers.Load(s)
	if !ok {
		t.Fatal("no keeper")
	}
	return k.(*Keeper) //nolint:forcetypeassert // only Keepers are put in
}
