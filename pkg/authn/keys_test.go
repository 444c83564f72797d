package authn

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func TestKeyRoundTrip(t *testing.T) {
	k := newKey(t)
	der, err := MarshalKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v %#v %x %s", der, der, der, der, der); strings.Contains(s, string(der.Reveal())) || !strings.Contains(s, redact.Mask) {
		t.Errorf("a stored key prints as %q", s)
	}
	back, err := ParseKey(der)
	if err != nil || !back.Equal(k) {
		t.Fatalf("got %v", err)
	}
	wide, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if _, err := MarshalKey(wide); err == nil {
		t.Error("a P-384 key was marshalled")
	}
	if _, err := MarshalKey(nil); err == nil {
		t.Error("no key was marshalled")
	}
	b, _ := x509.MarshalPKCS8PrivateKey(wide)
	for name, der := range map[string][]byte{"P-384": b, "empty": nil, "garbage": []byte("garbage")} {
		if _, err := ParseKey(redact.New(der)); err == nil {
			t.Errorf("%s was parsed", name)
		}
	}
}

// The thumbprint and the key set are what another implementation makes of the same keys.
func TestKeysAgainstGoJose(t *testing.T) {
	keys := map[string]*ecdsa.PublicKey{}
	for range 20 {
		k := newKey(t)
		j := jose.JSONWebKey{Key: &k.PublicKey}
		want, err := j.Thumbprint(crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		got := Thumbprint(&k.PublicKey)
		if got != rawURL.EncodeToString(want) {
			t.Fatalf("thumbprint %q, want %q", got, rawURL.EncodeToString(want))
		}
		keys[got] = &k.PublicKey
	}
	b, err := RenderJWKS(keys)
	if err != nil {
		t.Fatal(err)
	}
	var theirs jose.JSONWebKeySet
	if err := json.Unmarshal(b, &theirs); err != nil {
		t.Fatal(err)
	}
	ours, err := ParseJWKS(b)
	if err != nil || len(ours) != len(keys) || len(theirs.Keys) != len(keys) {
		t.Fatalf("%d keys here, %d there, want %d: %v", len(ours), len(theirs.Keys), len(keys), err)
	}
	for kid, k := range keys {
		their := theirs.Key(kid)
		if !ours[kid].Equal(k) || len(their) != 1 || !k.Equal(their[0].Key) || their[0].Use != "sig" || their[0].Algorithm != "ES256" {
			t.Errorf("key %s came back different", kid)
		}
	}
	if strings.Contains(string(b), `"d"`) {
		t.Error("the key set has a private member")
	}
}

func TestThumbprintOfNothing(t *testing.T) {
	wide, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if Thumbprint(nil) != "" || Thumbprint(&wide.PublicKey) != "" {
		t.Error("a thumbprint of no P-256 key")
	}
	if _, err := RenderJWKS(map[string]*ecdsa.PublicKey{"a": nil}); err == nil {
		t.Error("a key set of no key")
	}
	if _, err := RenderJWKS(map[string]*ecdsa.PublicKey{"a b": &newKey(t).PublicKey}); err == nil {
		t.Error("a key set with a malformed id")
	}
}

func TestParseJWKS(t *testing.T) {
	k := newKey(t)
	x, y, _ := coordinates(&k.PublicKey)
	good := map[string]any{"kty": "EC", "crv": "P-256", "kid": "a", "x": x, "y": y, "use": "sig", "alg": "ES256"}
	set := func(keys ...any) string { return string(asJSON(map[string]any{"keys": keys})) }
	rsa := map[string]any{"kty": "RSA", "kid": "r", "n": "AQAB", "e": "AQAB"}
	for _, tc := range []struct {
		name, in string
		want     int // -1 means refused
	}{
		{"one", set(good), 1},
		{"no use, no alg", set(with(good, "use", nil, "alg", nil)), 1},
		{"RSA beside it", set(rsa, good), 1},
		{"for encryption beside it", set(with(good, "kid", "e", "use", "enc"), good), 1},
		{"off the curve beside it", set(with(good, "kid", "o", "y", x), good), 1},
		{"no kid beside it", set(with(good, "kid", nil), good), 1},
		{"two", set(good, with(good, "kid", "b")), 2},
		{"one id twice", set(good, good), -1},
		{"private", set(with(good, "d", x)), -1},
		{"symmetric", set(good, map[string]any{"kty": "oct", "k": "AAAA", "kid": "s"}), -1},
		{"RSA only", set(rsa), -1},
		{"empty", set(), -1},
		{"no keys", "{}", -1},
		{"keys an object", `{"keys":{}}`, -1},
		{"a list", "[]", -1},
		{"not JSON", "<html>", -1},
		{"nothing", "", -1},
		{"keys twice", `{"keys":[],"keys":[` + string(asJSON(good)) + `]}`, -1},
		{"a member twice", `{"keys":[` + strings.Replace(string(asJSON(good)), `"kid"`, `"kid":"z","kid"`, 1) + `]}`, -1},
		{"too many", set(make([]any, maxJWKSKeys+1)...), -1},
		{"too large", set(with(good, "pad", strings.Repeat("x", maxJWKS))), -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseJWKS([]byte(tc.in))
			if (err != nil) != (tc.want < 0) || (err == nil && len(got) != tc.want) {
				t.Fatalf("got %d keys, %v", len(got), err)
			}
		})
	}
}

// issuer publishes keys, counts how often it is asked, and can be away.
type issuer struct {
	mu   sync.Mutex
	keys map[string]*ecdsa.PublicKey
	err  error
	n    atomic.Int32
	hold chan struct{}
}

func (i *issuer) set(err error, keys map[string]*ecdsa.PublicKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err, i.keys = err, keys
}

func (i *issuer) fetch(ctx context.Context) ([]byte, error) {
	i.n.Add(1)
	if i.hold != nil {
		select {
		case <-i.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil, i.err
	}
	return RenderJWKS(i.keys)
}

func newRemote(t *testing.T, i *issuer, now func() time.Time) *RemoteKeys {
	t.Helper()
	r, err := NewRemoteKeys(RemoteKeysConfig{Fetch: i.fetch, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRemoteKeys(t *testing.T) {
	a, b := &newKey(t).PublicKey, &newKey(t).PublicKey
	i, c := &issuer{keys: map[string]*ecdsa.PublicKey{"a": a}}, newClock()
	r := newRemote(t, i, c.Now)

	key := func(kid string, want *ecdsa.PublicKey, wantErr error, fetches int32) {
		t.Helper()
		got, err := r.Key(bg(), kid)
		if !errors.Is(err, wantErr) || (want != nil) != (got != nil) || (want != nil && !got.Equal(want)) {
			t.Fatalf("%s: got %v, %v", kid, got, err)
		}
		if n := i.n.Load(); n != fetches {
			t.Fatalf("%s: %d fetches, want %d", kid, n, fetches)
		}
	}
	key("a", a, nil, 1)
	key("a", a, nil, 1)
	first := r.Generation()

	// An unknown id is worth one fetch in a while, whoever asks.
	for _, kid := range numbered("stranger", 100) {
		key(kid, nil, ErrUnknownKey, 1)
	}
	key("../etc/passwd", nil, ErrUnknownKey, 1)
	c.Add(5 * time.Second)
	for _, kid := range numbered("stranger", 100) {
		key(kid, nil, ErrUnknownKey, 2)
	}
	if r.Generation() != first {
		t.Error("the generation changed though the keys did not")
	}

	// A new key is found by its id.
	i.set(nil, map[string]*ecdsa.PublicKey{"a": a, "b": b})
	c.Add(5 * time.Second)
	key("b", b, nil, 3)
	if r.Generation() == first {
		t.Error("the generation did not change with the keys")
	}

	// While the issuer is away what is known counts, and what is not says that it cannot be told.
	i.set(errAway, nil)
	c.Add(10 * time.Minute)
	key("a", a, nil, 4)
	key("c", nil, errAway, 4)
	c.Add(5 * time.Second)
	key("c", nil, errAway, 5)

	// A withdrawn key is noticed by its age.
	i.set(nil, map[string]*ecdsa.PublicKey{"b": b})
	c.Add(5 * time.Second)
	key("stranger", nil, ErrUnknownKey, 6)
	key("b", b, nil, 6)
	before := r.Generation()
	key("a", nil, ErrUnknownKey, 6)
	i.set(nil, map[string]*ecdsa.PublicKey{"b": a})
	c.Add(10 * time.Minute)
	key("b", a, nil, 7)
	if r.Generation() == before {
		t.Error("the generation did not change when a key was replaced")
	}

	if _, err := NewRemoteKeys(RemoteKeysConfig{}); err == nil {
		t.Error("remote keys without a Fetch were made")
	}
}

// Whoever hears that the keys have changed fetches them at once, whatever was fetched a moment ago; a fetch that had begun before the change
// does not count as one after it (A3).
func TestRemoteKeysHearOfAChange(t *testing.T) {
	a, b := &newKey(t).PublicKey, &newKey(t).PublicKey
	i, c := &issuer{keys: map[string]*ecdsa.PublicKey{"a": a}}, newClock()
	var epoch atomic.Uint64
	r, err := NewRemoteKeys(RemoteKeysConfig{Fetch: i.fetch, Now: c.Now, Epoch: epoch.Load})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Key(bg(), "a"); err != nil {
		t.Fatal(err)
	}
	i.set(nil, map[string]*ecdsa.PublicKey{"b": b})
	if _, err := r.Key(bg(), "b"); !errors.Is(err, ErrUnknownKey) {
		t.Fatalf("%v: strangers make it fetch as often as they like", err)
	}
	epoch.Add(1)
	if got, err := r.Key(bg(), "b"); err != nil || !got.Equal(b) {
		t.Errorf("the new key: %v, %v", got, err)
	}
	if _, err := r.Key(bg(), "a"); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("the old key: %v", err)
	}
	if n := i.n.Load(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
	epoch.Add(1)
	i.set(errAway, nil)
	if got, err := r.Key(bg(), "b"); err != nil || !got.Equal(b) {
		t.Errorf("while the issuer is away: %v, %v", got, err)
	}

	// The set that is on its way is the old one.
	slow := &issuer{keys: map[string]*ecdsa.PublicKey{"a": a}, hold: make(chan struct{})}
	if r, err = NewRemoteKeys(RemoteKeysConfig{Fetch: func(ctx context.Context) ([]byte, error) {
		out, err := RenderJWKS(slow.keys)
		_, _ = slow.fetch(ctx)
		return out, err
	}, Now: c.Now, Epoch: epoch.Load}); err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { _, err := r.Key(bg(), "a"); first <- err }()
	for slow.n.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	epoch.Add(1)
	slow.keys = map[string]*ecdsa.PublicKey{"b": b}
	second := make(chan error, 1)
	go func() { _, err := r.Key(bg(), "b"); second <- err }()
	for range 2 {
		slow.hold <- struct{}{}
	}
	if err := <-second; err != nil {
		t.Errorf("the new key, asked for while the old set was on its way: %v", err)
	}
	<-first
}

// Many who need the same key at once cost one fetch, and a fetch that hangs ends by itself.
func TestRemoteKeysShareAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &newKey(t).PublicKey
		i := &issuer{keys: map[string]*ecdsa.PublicKey{"a": a}, hold: make(chan struct{})}
		r := newRemote(t, i, time.Now)
		ctx, cancel := context.WithCancel(bg())
		quit := make(chan error, 1)
		go func() {
			_, err := r.Key(ctx, "a")
			quit <- err
		}()
		synctest.Wait() // the one who gives up later is the one who began
		errs := make(chan error, 50)
		for range cap(errs) {
			go func() {
				_, err := r.Key(bg(), "a")
				errs <- err
			}()
		}
		synctest.Wait()
		if n := i.n.Load(); n != 1 {
			t.Errorf("%d fetches at once, want 1", n)
		}
		cancel()
		if err := <-quit; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who gave up got %v", err)
		}
		close(i.hold)
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{keys: map[string]*ecdsa.PublicKey{"a": &newKey(t).PublicKey}}
		r := newRemote(t, i, time.Now)
		if _, err := r.Key(bg(), "a"); err != nil {
			t.Fatal(err)
		}
		i.hold = make(chan struct{})
		// With the issuer away, a known key costs one wait and no more.
		start := time.Now()
		for range 20 {
			time.Sleep(time.Minute)
			if _, err := r.Key(bg(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start) - 20*time.Minute; d != 5*time.Second {
			t.Errorf("waited %v for an issuer that is away", d)
		}
		synctest.Wait()
		time.Sleep(5 * time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{hold: make(chan struct{})}
		r := newRemote(t, i, time.Now)
		start := time.Now()
		if _, err := r.Key(bg(), "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("a fetch that hangs took %v", d)
		}
	})
}
