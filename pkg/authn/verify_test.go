package authn

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

func actors(n int) (a *Actor) {
	for range n {
		a = &Actor{Subject: "spiffe://redoubt.example/svc/compute", Actor: a}
	}
	return a
}

// A3: what identity mints is what every service reads.
func TestVerifyRoundTrip(t *testing.T) {
	s := newStand(t)
	full := s.claims()
	full.Confirmation = Thumbprint(&s.key.PublicKey)
	full.Actor = actors(MaxActorDepth)
	full.Ancestors = numbered("tok", MaxAncestors)
	full.ACR, full.Scope = "urn:redoubt:mfa", "openid profile"
	full.Run, full.Workspace, full.Actions = "run_1", "ws_1", numbered("act", MaxActions)
	least := s.claims()
	least.SessionID, least.AuthTime, least.AMR, least.PrincipalType = "", time.Time{}, nil, ServicePrincipal
	for name, c := range map[string]Claims{"every claim": full, "required claims": least, "usual": s.claims()} {
		t.Run(name, func(t *testing.T) {
			token, err := s.signer.Mint(c)
			if err != nil {
				t.Fatal(err)
			}
			for _, pass := range []string{"miss", "hit"} {
				got, err := s.verifier.Verify(bg(), token, testAud)
				if err != nil {
					t.Fatalf("%s: %v", pass, err)
				}
				if !reflect.DeepEqual(got.Claims, c) {
					t.Fatalf("%s: got %+v, want %+v", pass, got.Claims, c)
				}
				if got.Bound() != (c.Confirmation != "") {
					t.Fatalf("Bound is %v", got.Bound())
				}
			}
		})
	}
}

func TestMintRefuses(t *testing.T) {
	s := newStand(t)
	for name, bend := range map[string]func(*Claims){
		"no issuer":               func(c *Claims) { c.Issuer = "" },
		"no audience":             func(c *Claims) { c.Audience = nil },
		"two audiences":           func(c *Claims) { c.Audience = []string{"a", "b"} },
		"empty audience":          func(c *Claims) { c.Audience = []string{""} },
		"no subject":              func(c *Claims) { c.Subject = "" },
		"no client":               func(c *Claims) { c.ClientID = "" },
		"no id":                   func(c *Claims) { c.ID = "" },
		"no principal type":       func(c *Claims) { c.PrincipalType = "" },
		"unknown principal type":  func(c *Claims) { c.PrincipalType = "root" },
		"no issue time":           func(c *Claims) { c.IssuedAt = time.Time{} },
		"no expiry":               func(c *Claims) { c.Expiry = time.Time{} },
		"expiry at issue":         func(c *Claims) { c.Expiry = c.IssuedAt },
		"control character":       func(c *Claims) { c.Subject = "usr\n1" },
		"long subject":            func(c *Claims) { c.Subject = strings.Repeat("x", maxText+1) },
		"too many actors":         func(c *Claims) { c.Actor = actors(MaxActorDepth + 1) },
		"actor is not SPIFFE":     func(c *Claims) { c.Actor = &Actor{Subject: "compute"} },
		"too many ancestors":      func(c *Claims) { c.Ancestors = numbered("tok", MaxAncestors+1) },
		"empty ancestor":          func(c *Claims) { c.Ancestors = []string{""} },
		"confirmation malformed":  func(c *Claims) { c.Confirmation = "abc" },
		"run without workspace":   func(c *Claims) { c.Run, c.Actions, c.Actor = "run_1", []string{"a"}, actors(1) },
		"run without actions":     func(c *Claims) { c.Run, c.Workspace, c.Actor = "run_1", "ws_1", actors(1) },
		"workspace without run":   func(c *Claims) { c.Workspace = "ws_1" },
		"actions without run":     func(c *Claims) { c.Actions = []string{"a"} },
		"run token as bearer, A4": func(c *Claims) { c.Run, c.Workspace, c.Actions = "run_1", "ws_1", []string{"a"} },
		"over 8 KiB":              func(c *Claims) { c.Run, c.Workspace, c.Actor, c.Actions = "r", "w", actors(1), fat() },
	} {
		t.Run(name, func(t *testing.T) {
			c := s.claims()
			bend(&c)
			if _, err := s.signer.Mint(c); err == nil {
				t.Fatal("minted")
			}
		})
	}
	if _, err := NewSigner(s.key, ""); err == nil {
		t.Error("a signer without a key id was made")
	}
	if _, err := NewSigner(nil, testKid); err == nil {
		t.Error("a signer without a key was made")
	}
}

func fat() []string {
	out := make([]string, MaxActions)
	for i := range out {
		out[i] = strings.Repeat("x", 200)
	}
	return out
}

func TestNewRefuses(t *testing.T) {
	s := newStand(t)
	for name, bend := range map[string]func(*Config){
		"no issuer":      func(c *Config) { c.Issuer = "" },
		"no keys":        func(c *Config) { c.Keys = nil },
		"no revocations": func(c *Config) { c.Revocations = nil },
		"leeway":         func(c *Config) { c.Leeway = MaxLeeway + time.Second },
		"no leeway":      func(c *Config) { c.Leeway = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Issuer: testIssuer, Keys: StaticKeys{}, Revocations: s.rev}
			bend(&cfg)
			if _, err := New(cfg); err == nil {
				t.Fatal("made")
			}
		})
	}
}

// A3: the audience, on a miss and on a hit.
func TestVerifyAudience(t *testing.T) {
	for _, want := range []string{
		"", "urn:redoubt:exampl", "urn:redoubt:example2", "URN:REDOUBT:EXAMPLE", "urn:redoubt:example ", " urn:redoubt:example",
		"urn:redoubt:example/", "urn", "svc/compute", "*", `["urn:redoubt:example"]`,
	} {
		t.Run(want, func(t *testing.T) {
			s := newStand(t)
			token := s.mint(t)
			_, err := s.verifier.Verify(bg(), token, want)
			refused(t, err, faultv1.Reason_TOKEN_AUDIENCE)
			if _, err := s.verifier.Verify(bg(), token, testAud); err != nil {
				t.Fatal(err)
			}
			_, err = s.verifier.Verify(bg(), token, want)
			refused(t, err, faultv1.Reason_TOKEN_AUDIENCE)
		})
	}
}

// A3: everything by which a token can be revoked, on the miss path, on a hit, and for a token that was used before.
func TestVerifyRevoked(t *testing.T) {
	for _, what := range []string{"usr_abc", "ses_1", "tok_1", "run_1", "tok_parent", "tok_grandparent"} {
		t.Run(what, func(t *testing.T) {
			s := newStand(t)
			token := s.mint(t, func(c *Claims) {
				c.Run, c.Workspace, c.Actions, c.Actor = "run_1", "ws_1", []string{"a"}, actors(1)
				c.Ancestors = []string{"tok_grandparent", "tok_parent"}
			})
			other := s.mint(t, func(c *Claims) { c.Subject, c.SessionID, c.ID = "usr_other", "ses_other", "tok_other" })
			for range 2 {
				for _, tok := range []string{token, other} {
					if _, err := s.verifier.Verify(bg(), tok, testAud); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.rev.revoke(what)
			for range 2 { // a hit, then a miss: the entry is gone
				_, err := s.verifier.Verify(bg(), token, testAud)
				refused(t, err, faultv1.Reason_TOKEN_REVOKED)
			}
			if _, err := s.verifier.Verify(bg(), other, testAud); err != nil {
				t.Fatalf("the other token: %v", err)
			}
			fresh := newStand(t, func(c *Config) {
				c.Keys, c.Revocations = StaticKeys{testKid: &s.key.PublicKey}, s.rev
			})
			_, err := fresh.verifier.Verify(bg(), token, testAud)
			refused(t, err, faultv1.Reason_TOKEN_REVOKED)
		})
	}
}

// A revoked key counts for nothing, while the cached key set still has it and for tokens that were verified before (A3).
func TestVerifyKeyRevoked(t *testing.T) {
	s := newStand(t)
	before, after := s.mint(t), s.mint(t, func(c *Claims) { c.ID = "tok_2" })
	if _, err := s.verifier.Verify(bg(), before, testAud); err != nil {
		t.Fatal(err)
	}
	s.rev.revoke("key " + testKid)
	for _, token := range []string{before, after} {
		_, err := s.verifier.Verify(bg(), token, testAud)
		refused(t, err, faultv1.Reason_TOKEN_REVOKED)
	}
}

// The cache asks for revocations once an epoch and not on every hit.
func TestVerifyCacheAsksOncePerEpoch(t *testing.T) {
	s := newStand(t)
	token := s.mint(t)
	for range 10 {
		if _, err := s.verifier.Verify(bg(), token, testAud); err != nil {
			t.Fatal(err)
		}
	}
	if s.rev.asked != 1 {
		t.Fatalf("asked %d times in one epoch, want 1", s.rev.asked)
	}
	s.rev.revoke("somebody else")
	for range 10 {
		if _, err := s.verifier.Verify(bg(), token, testAud); err != nil {
			t.Fatal(err)
		}
	}
	if s.rev.asked != 2 {
		t.Fatalf("asked %d times in two epochs, want 2", s.rev.asked)
	}
}

func TestVerifyStale(t *testing.T) {
	s := newStand(t)
	token := s.mint(t)
	if _, err := s.verifier.Verify(bg(), token, testAud); err != nil {
		t.Fatal(err)
	}
	s.rev.setStale(errAway)
	for _, tok := range []string{token, s.mint(t, func(c *Claims) { c.ID = "tok_9" })} {
		_, err := s.verifier.Verify(bg(), tok, testAud)
		wantReason(t, err, codes.Unavailable, faultv1.Reason_AUTHZ_STATE_STALE)
	}
}

// Expiry is exact, whether the token is cached or not; the leeway is for iat alone.
func TestVerifyTimes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		at    time.Duration // after issue; the token lives 300 s
		ok    bool
		reasn faultv1.Reason
	}{
		{"at issue", 0, true, 0},
		{"last second", 299 * time.Second, true, 0},
		{"last nanosecond", 300*time.Second - 1, true, 0},
		{"at expiry", 300 * time.Second, false, faultv1.Reason_TOKEN_EXPIRED},
		{"past expiry, within the leeway", 301 * time.Second, false, faultv1.Reason_TOKEN_EXPIRED},
		{"an hour later", time.Hour, false, faultv1.Reason_TOKEN_EXPIRED},
		{"verifier 30 s behind", -30 * time.Second, true, 0},
		{"verifier 31 s behind", -31 * time.Second, false, faultv1.Reason_TOKEN_INVALID},
		{"jump back an hour", -time.Hour, false, faultv1.Reason_TOKEN_INVALID},
	} {
		for _, cached := range []bool{false, true} {
			t.Run(tc.name, func(t *testing.T) {
				s := newStand(t)
				token := s.mint(t)
				if cached {
					if _, err := s.verifier.Verify(bg(), token, testAud); err != nil {
						t.Fatal(err)
					}
				}
				s.clock.Add(tc.at)
				_, err := s.verifier.Verify(bg(), token, testAud)
				if tc.ok {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				refused(t, err, tc.reasn)
			})
		}
	}
}

// A withdrawn or replaced signing key ends the tokens that it signed, cached ones too.
func TestVerifyKeyWithdrawn(t *testing.T) {
	for _, replace := range []bool{false, true} {
		keys := &switchKeys{}
		s := newStand(t, func(c *Config) { c.Keys = keys })
		keys.set(StaticKeys{testKid: &s.key.PublicKey})
		token := s.mint(t)
		for range 2 {
			if _, err := s.verifier.Verify(bg(), token, testAud); err != nil {
				t.Fatal(err)
			}
		}
		next := StaticKeys{}
		if replace {
			next[testKid] = &newKey(t).PublicKey
		}
		keys.set(next)
		for range 2 {
			_, err := s.verifier.Verify(bg(), token, testAud)
			refused(t, err, faultv1.Reason_TOKEN_INVALID)
		}
	}
}

type switchKeys struct {
	mu   sync.Mutex
	keys StaticKeys
	gen  uint64
	hold chan struct{}
	n    atomic.Int32
}

func (k *switchKeys) set(s StaticKeys) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = s
	k.gen++
}

func (k *switchKeys) Key(ctx context.Context, kid string) (*ecdsa.PublicKey, error) {
	k.n.Add(1)
	if k.hold != nil {
		select {
		case <-k.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys.Key(ctx, kid)
}

func (k *switchKeys) Generation() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gen
}

// Those who bring one token at one time share one verification; one who gives up does not end it for the others.
func TestVerifySharesMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := &switchKeys{hold: make(chan struct{})}
		s := newStand(t, func(c *Config) { c.Keys = keys })
		keys.set(StaticKeys{testKid: &s.key.PublicKey})
		token := s.mint(t)

		ctx, cancel := context.WithCancel(bg())
		first := make(chan error, 1)
		go func() {
			_, err := s.verifier.Verify(ctx, token, testAud)
			first <- err
		}()
		synctest.Wait() // the one who gives up later is the one who began
		const callers = 20
		errs := make(chan error, callers)
		for range callers {
			go func() {
				_, err := s.verifier.Verify(bg(), token, testAud)
				errs <- err
			}()
		}
		synctest.Wait() // all of them wait for the key
		if n := keys.n.Load(); n != 1 {
			t.Errorf("%d verifications at once, want 1", n)
		}
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the one who gave up got %v", err)
		}
		close(keys.hold)
		for range callers {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// A revocation that arrives during a verification is seen by it or by the next call, never lost.
func TestVerifyRevokeRace(t *testing.T) {
	for range 200 {
		s := newStand(t)
		token := s.mint(t)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 5 {
					_, _ = s.verifier.Verify(bg(), token, testAud)
				}
			})
		}
		wg.Go(func() { s.rev.revoke("tok_1") })
		wg.Wait()
		_, err := s.verifier.Verify(bg(), token, testAud)
		refused(t, err, faultv1.Reason_TOKEN_REVOKED)
	}
}

func TestVerifyCacheBounded(t *testing.T) {
	s := newStand(t, func(c *Config) { c.CacheSize = 64 })
	for _, id := range numbered("tok", 300) {
		if _, err := s.verifier.Verify(bg(), s.mint(t, func(c *Claims) { c.ID = id }), testAud); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.verifier.cache.len(); n > 64 || n < 32 {
		t.Fatalf("%d entries, want at most 64", n)
	}
	// What is refused is not kept.
	before := s.verifier.cache.len()
	for _, id := range numbered("late", 50) {
		_, _ = s.verifier.Verify(bg(), s.mint(t, func(c *Claims) {
			c.ID, c.IssuedAt, c.Expiry = id, c.IssuedAt.Add(-time.Hour), c.IssuedAt.Add(-time.Minute)
		}), testAud)
	}
	if n := s.verifier.cache.len(); n != before {
		t.Fatalf("expired tokens were cached: %d entries, before %d", n, before)
	}
}

func TestVerifyKeysAway(t *testing.T) {
	s := newStand(t, func(c *Config) { c.Keys = keysAway{} })
	_, err := s.verifier.Verify(bg(), s.mint(t), testAud)
	wantReason(t, err, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
}

type keysAway struct{}

func (keysAway) Key(context.Context, string) (*ecdsa.PublicKey, error) { return nil, errAway }
func (keysAway) Generation() uint64                                    { return 0 }

func BenchmarkVerifyHit(b *testing.B) {
	s := newStand(b)
	token := s.mint(b, func(c *Claims) { c.IssuedAt, c.Expiry = time.Now(), time.Now().Add(time.Hour) })
	v, err := New(Config{Issuer: testIssuer, Keys: StaticKeys{testKid: &s.key.PublicKey}, Revocations: quiet{}})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(token)), "token-bytes")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(bg(), token, testAud); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyHitParallel(b *testing.B) {
	s := newStand(b)
	token := s.mint(b, func(c *Claims) { c.IssuedAt, c.Expiry = time.Now(), time.Now().Add(time.Hour) })
	v, err := New(Config{Issuer: testIssuer, Keys: StaticKeys{testKid: &s.key.PublicKey}, Revocations: quiet{}})
	if err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := v.Verify(bg(), token, testAud); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkVerifyMiss(b *testing.B) {
	s := newStand(b)
	token := s.mint(b)
	b.ReportAllocs()
	for b.Loop() {
		s.verifier.cache = newCache(1)
		if _, err := s.verifier.Verify(bg(), token, testAud); err != nil {
			b.Fatal(err)
		}
	}
}

// quiet is a revocation state with nothing in it and no lock.
type quiet struct{}

func (quiet) Revoked(string, string, string, string, []string, time.Time) bool { return false }
func (quiet) DeliversUntil(string) time.Time                                   { return time.Time{} }
func (quiet) KeyRevoked(string) bool                                           { return false }
func (quiet) Epoch() uint64                                                    { return 1 }
func (quiet) Fresh(time.Time) error                                            { return nil }
