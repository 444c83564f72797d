package svid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

var errAway = errors.New("identity is away")

// clock is a time that only the test moves.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Now().UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

func TestKeeperRenewsAtHalfLife(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, td)
	id := service(t, "compute")
	i := &issuer{a: a, id: id, ttl: 2 * time.Second}
	rotated := make(chan *SVID, 16)
	k := startKeeper(t, KeeperConfig{Dir: t.TempDir(), ID: id, Issue: i.issue, OnRotate: func(s *SVID) { rotated <- s }})
	first, second := <-rotated, <-rotated
	age := second.Issued.Sub(first.Issued)
	// Certificates count in whole seconds, so of 2 s between 1 and 2 are left.
	if age < 400*time.Millisecond || age > 1400*time.Millisecond {
		t.Errorf("renewed after %s of 2 s", age)
	}
	if first.Chain[0].SerialNumber.Cmp(second.Chain[0].SerialNumber) == 0 || second.ID != id {
		t.Error("the second SVID is the first")
	}
	if got := ready(t, k); got != second {
		t.Error("the newest is not the current one")
	}
}

func TestKeeperRenewsBeforeHalfLife(t *testing.T) {
	c := newClock()
	chain, err := newAuthority(t, td).Sign(newKey(t).Public(), service(t, "a"), 50*time.Minute, c.now())
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{cfg: KeeperConfig{Now: c.now}, svid: &SVID{Chain: []*x509.Certificate{parse(t, chain[0])}, Issued: c.now()}}
	seen := map[time.Duration]bool{}
	for range 50 {
		d := k.renewAt().Sub(c.now())
		if d < 22*time.Minute || d > 25*time.Minute {
			t.Fatalf("renewed %s into 50 minutes", d)
		}
		seen[d] = true
	}
	if len(seen) < 10 {
		t.Error("all at the same time")
	}
}

// TestKeeperColdStart holds D10: a restart needs no authority while the SVID lasts, and after it has ended the pinned key
// is enough for a new one.
func TestKeeperColdStart(t *testing.T) {
	a := newAuthority(t, td)
	id, dir, c := service(t, "compute"), t.TempDir(), newClock()
	var keys []crypto.PublicKey
	failed := make(chan error, 64)
	i := &issuer{a: a, id: id, ttl: 30 * time.Minute, now: c.now}
	cfg := KeeperConfig{Dir: dir, ID: id, Now: c.now, MinBackoff: time.Millisecond, OnError: func(err error) { failed <- err },
		Issue: func(ctx context.Context, key crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
			pub, err := CSRKey(csr)
			if err != nil || !pub.Equal(key.Public()) {
				t.Errorf("the request is of another key: %v", err)
			}
			keys = append(keys, key.Public())
			return i.issue(ctx, key, csr)
		}}
	k, err := NewKeeper(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, k)
	first := ready(t, k)
	stop()

	i.away.Store(&errAway)
	c.advance(10 * time.Minute)
	if k, err = NewKeeper(cfg); err != nil {
		t.Fatal(err)
	}
	stop = run(t, k)
	if got := ready(t, k); !got.Chain[0].Equal(first.Chain[0]) || !got.Issued.Equal(first.Issued) {
		t.Error("the stored SVID was not taken up")
	}
	stop()

	c.advance(30 * time.Minute) // it ends, and identity is still away
	if k, err = NewKeeper(cfg); err != nil {
		t.Fatal(err)
	}
	run(t, k)
	<-failed
	<-failed
	if s, err := k.Current(); !fault.Is(err, codes.Unavailable) || !errors.Is(err, errAway) {
		t.Errorf("with an ended SVID: %v, %v", s, err)
	}
	if len(k.Bundle()) != 1 || !k.Bundle()[0].Equal(a.Root()) {
		t.Error("the roots were forgotten with the SVID")
	}
	i.away.Store(nil)
	if got := ready(t, k); got.Chain[0].Equal(first.Chain[0]) {
		t.Error("the ended SVID is current")
	}
	for _, key := range keys {
		if pub, ok := key.(*ecdsa.PublicKey); !ok || !pub.Equal(keys[0]) {
			t.Fatal("the key has changed")
		}
	}
}

// TestKeeperServesWhileRenewalFails also shows that a wrong answer never replaces a good SVID.
func TestKeeperServesWhileRenewalFails(t *testing.T) {
	a := newAuthority(t, td)
	id := service(t, "compute")
	good := &issuer{a: a, id: id, ttl: time.Minute}
	for _, c := range []struct {
		name  string
		issue IssueFunc
	}{
		{"away", func(context.Context, crypto.Signer, []byte) ([][]byte, [][]byte, error) { return nil, nil, errAway }},
		{"nothing", func(context.Context, crypto.Signer, []byte) ([][]byte, [][]byte, error) { return nil, nil, nil }},
		{"noise", func(context.Context, crypto.Signer, []byte) ([][]byte, [][]byte, error) {
			return [][]byte{[]byte("x")}, [][]byte{a.Root().Raw}, nil
		}},
		{"no roots", func(ctx context.Context, k crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
			chain, _, err := good.issue(ctx, k, csr)
			return chain, nil, err
		}},
		{"other identity", (&issuer{a: a, id: service(t, "keyvault"), ttl: time.Minute}).issue},
		{"other trust domain", (&issuer{a: newAuthority(t, foreign), id: spiffeid.RequireFromPath(foreign, "/service/compute"), ttl: time.Minute}).issue},
		{"other root", func(ctx context.Context, k crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
			chain, _, err := good.issue(ctx, k, csr)
			return chain, [][]byte{newAuthority(t, td).Root().Raw}, err
		}},
		{"a leaf as root", func(ctx context.Context, k crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
			chain, bundle, err := good.issue(ctx, k, csr)
			return chain, append(bundle, chain[0]), err
		}},
		{"ended", (&issuer{a: a, id: id, ttl: time.Second, now: func() time.Time { return time.Now().Add(-2 * time.Second) }}).issue},
		{"other key", func(context.Context, crypto.Signer, []byte) ([][]byte, [][]byte, error) {
			chain, err := a.Sign(newKey(t).Public(), id, time.Minute, time.Now())
			return chain, [][]byte{a.Root().Raw}, err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var broken atomic.Bool
			failed, rotated := make(chan error, 64), make(chan *SVID, 4)
			dir := t.TempDir()
			k := startKeeper(t, KeeperConfig{Dir: dir, ID: id,
				OnError:  func(err error) { failed <- err },
				OnRotate: func(s *SVID) { rotated <- s },
				Issue: func(ctx context.Context, key crypto.Signer, csr []byte) ([][]byte, [][]byte, error) {
					if broken.Load() {
						return c.issue(ctx, key, csr)
					}
					return good.issue(ctx, key, csr)
				}})
			first := ready(t, k)
			broken.Store(true)
			k.Refresh()
			<-failed
			if got, err := k.Current(); err != nil || got != first {
				t.Errorf("after a failed renewal: %v, %v", got, err)
			}
			if stored, err := loadSVID(dir); err != nil || !stored.Chain[0].Equal(first.Chain[0]) {
				t.Errorf("on disk: %v", err)
			}
			broken.Store(false)
			<-rotated
			if got := <-rotated; got == first {
				t.Error("not renewed once the answers were right again")
			}
		})
	}
}

func (k *Keeper) svidNow() *SVID {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.svid
}

func TestKeeperReadyTellsWhy(t *testing.T) {
	i := &issuer{a: newAuthority(t, td), id: service(t, "compute"), ttl: time.Minute}
	i.away.Store(&errAway)
	failed := make(chan error, 64)
	k := startKeeper(t, KeeperConfig{Dir: t.TempDir(), ID: i.id, Issue: i.issue, OnError: func(err error) { failed <- err }})
	<-failed
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := k.Ready(ctx); !fault.Is(err, codes.Unavailable) || !errors.Is(err, errAway) {
		t.Errorf("Ready: %v", err)
	}
}

// TestKeeperSleptMachine moves the clock as a machine that slept does: the SVID that has ended is no longer given out, and
// the next look at the clock renews it.
func TestKeeperSleptMachine(t *testing.T) {
	c := newClock()
	i := &issuer{a: newAuthority(t, td), id: service(t, "compute"), ttl: 20 * time.Minute, now: c.now}
	k := startKeeper(t, KeeperConfig{Dir: t.TempDir(), ID: i.id, Issue: i.issue, Now: c.now})
	first := ready(t, k)
	c.advance(30 * time.Minute)
	if _, err := k.Current(); !fault.Is(err, codes.Unavailable) {
		t.Errorf("an ended SVID is current: %v", err)
	}
	k.Refresh()
	if got := ready(t, k); got == first {
		t.Error("not renewed")
	}
}

func TestKeeperBackoff(t *testing.T) {
	c := newClock()
	k := &Keeper{cfg: KeeperConfig{Now: c.now, MinBackoff: 100 * time.Millisecond, MaxBackoff: 30 * time.Second}}
	for n, limit := range map[int]time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 9: maxUrgentBackoff, 200: maxUrgentBackoff} {
		for range 50 {
			if d := k.backoff(n); d < limit/2 || d > limit {
				t.Fatalf("backoff(%d) = %s without an SVID, want at most %s", n, d, limit)
			}
		}
	}
	a := newAuthority(t, td)
	chain, err := a.Sign(newKey(t).Public(), service(t, "a"), time.Hour, c.now())
	if err != nil {
		t.Fatal(err)
	}
	if k.svid = (&SVID{Issued: c.now()}); true {
		k.svid.Chain, err = parseCerts(chain)
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := k.backoff(200); d < 15*time.Second || d > 30*time.Second {
		t.Errorf("with an hour left: %s", d)
	}
	c.advance(59*time.Minute + 20*time.Second)
	if d := k.backoff(200); d > 5*time.Second {
		t.Errorf("with 40 s left: %s", d)
	}
}

func TestKeeperFiles(t *testing.T) {
	i := &issuer{a: newAuthority(t, td), id: service(t, "compute"), ttl: time.Minute}
	dir := filepath.Join(t.TempDir(), "svid")
	cfg := KeeperConfig{Dir: dir, ID: i.id, Issue: i.issue}
	k, err := NewKeeper(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, k)
	ready(t, k)
	stop()
	for name, want := range map[string]os.FileMode{".": 0o700, keyFile: 0o600, svidFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode().Perm(), err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".tmp-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, svidFile))
	if err != nil || strings.Contains(string(raw), "PRIVATE") {
		t.Errorf("the key stands beside the SVID: %v", err)
	}

	key, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	// A damaged SVID is no matter; a damaged key must never be replaced by a new one, which nobody has pinned.
	for name, damage := range map[string][]byte{"cut": raw[:len(raw)/2], "noise": []byte("noise"), "empty": {}, "the key": key} {
		write(svidFile, damage, 0o600)
		if k, err := NewKeeper(cfg); err != nil || k.svidNow() != nil {
			t.Errorf("SVID %s: %v", name, err)
		}
	}
	for name, damage := range map[string][]byte{"cut": key[:len(key)/2], "empty": {}, "a certificate": raw} {
		write(keyFile, damage, 0o600)
		if _, err := NewKeeper(cfg); !fault.Is(err, codes.DataLoss) {
			t.Errorf("key %s: %v", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, keyFile)); err != nil || string(got) != string(damage) {
			t.Errorf("key %s was replaced: %v", name, err)
		}
	}
	write(keyFile, key, 0o640)
	if _, err := NewKeeper(cfg); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("a key that the group can read: %v", err)
	}
	write("elsewhere", key, 0o600)
	if err := os.Remove(filepath.Join(dir, keyFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, keyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewKeeper(cfg); err == nil {
		t.Error("a link to a key is followed")
	}
	write(keyFile, key, 0o600)
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err := NewKeeper(cfg); !fault.Is(err, codes.FailedPrecondition) {
		t.Errorf("a folder that the group can write: %v", err)
	}
}

func TestKeeperConfigRefused(t *testing.T) {
	i := &issuer{id: service(t, "compute")}
	for name, cfg := range map[string]KeeperConfig{
		"no folder": {ID: i.id, Issue: i.issue}, "no ID": {Dir: t.TempDir(), Issue: i.issue},
		"trust domain as ID": {Dir: t.TempDir(), ID: td.ID(), Issue: i.issue}, "no issuer": {Dir: t.TempDir(), ID: i.id},
	} {
		if _, err := NewKeeper(cfg); !fault.Is(err, codes.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKeeperIssueTimeout holds an attempt up: it is given up, and the next one succeeds.
func TestKeeperIssueTimeout(t *testing.T) {
	i := &issuer{a: newAuthority(t, td), id: service(t, "compute"), ttl: time.Minute}
	var once sync.Once
	k := startKeeper(t, KeeperConfig{Dir: t.TempDir(), ID: i.id, IssueTimeout: 50 * time.Millisecond,
		Issue: func(ctx context.Context, key crypto.Signer, csr []byte) (chain, bundle [][]byte, err error) {
			once.Do(func() { <-ctx.Done(); err = ctx.Err() })
			if err != nil {
				return nil, nil, err
			}
			return i.issue(ctx, key, csr)
		}})
	ready(t, k)
}
