package authn

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn/forge"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	testIssuer = "https://redoubt.example:8443"
	testAud    = "urn:redoubt:example"
	testKid    = "2026-11-k1"
)

var epochStart = time.Unix(1_790_000_000, 0)

// clock is a clock that stands until it is moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: epochStart} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// revocations is the smallest true implementation: sets, an epoch, and a freshness that can be taken away.
type revocations struct {
	mu     sync.Mutex
	gone   map[string]bool
	until  map[string]time.Time // DeliversUntil
	epoch  uint64
	before time.Time
	stale  error
	asked  int
}

func newRevocations() *revocations { return &revocations{gone: map[string]bool{}, epoch: 1} }

func (r *revocations) revoke(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone[id] = true
	r.epoch++
}

func (r *revocations) setStale(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = err
}

func (r *revocations) Revoked(sub, sid, jti, run string, anc []string, iat time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	for _, id := range append([]string{sub, sid, jti, run}, anc...) {
		if id != "" && r.gone[id] {
			return true
		}
	}
	return iat.Before(r.before)
}

// deliver revokes a run and lets it deliver until some time.
func (r *revocations) deliver(run string, until time.Time) {
	r.revoke(run)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.until = map[string]time.Time{run: until}
}

func (r *revocations) DeliversUntil(run string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.until[run]
}

func (r *revocations) KeyRevoked(kid string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone["key "+kid]
}

func (r *revocations) Epoch() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}

func (r *revocations) Fresh(time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stale
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// stand is a verifier with all it needs.
type stand struct {
	key      *ecdsa.PrivateKey
	signer   *Signer
	clock    *clock
	rev      *revocations
	verifier *Verifier
}

func newStand(t testing.TB, change ...func(*Config)) *stand {
	t.Helper()
	s := &stand{key: newKey(t), clock: newClock(), rev: newRevocations()}
	var err error
	if s.signer, err = NewSigner(s.key, testKid); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Issuer: testIssuer, Keys: StaticKeys{testKid: &s.key.PublicKey}, Revocations: s.rev, Now: s.clock.Now,
	}
	for _, f := range change {
		f(&cfg)
	}
	if s.verifier, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stand) claims() Claims {
	return Claims{
		Issuer: testIssuer, Audience: []string{testAud}, Subject: "usr_abc", PrincipalType: User, ClientID: "cli",
		ID: "tok_1", SessionID: "ses_1", IssuedAt: s.clock.Now(), Expiry: s.clock.Now().Add(5 * time.Minute),
		AuthTime: s.clock.Now().Add(-time.Minute), AMR: []string{"pwd"},
	}
}

func (s *stand) mint(t testing.TB, change ...func(*Claims)) string {
	t.Helper()
	c := s.claims()
	for _, f := range change {
		f(&c)
	}
	token, err := s.signer.Mint(c)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// payload is the claims of a good token as a map, to be bent.
func (s *stand) payload() map[string]any {
	now := s.clock.Now().Unix()
	return map[string]any{
		"iss": testIssuer, "aud": testAud, "sub": "usr_abc", "principal_type": "user", "client_id": "cli", "jti": "tok_2",
		"iat": now, "exp": now + 300,
	}
}

func (s *stand) header() map[string]any {
	return map[string]any{"alg": "ES256", "typ": "at+jwt", "kid": testKid}
}

// The tests bend tokens and proofs with what forges them elsewhere, too.
var (
	with   = forge.With
	asJSON = forge.JSON
	sign   = forge.Sign
)

func b64(v any) string { return rawURL.EncodeToString(asJSON(v)) }

// splice gives the token another signature.
func splice(token, sig string) string { return token[:strings.LastIndexByte(token, '.')+1] + sig }

func wantReason(t *testing.T, err error, code codes.Code, reason faultv1.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted, want %v", reason)
	}
	if fault.Code(err) != code || fault.ReasonOf(err) != reason {
		t.Fatalf("got %v %v (%v), want %v %v", fault.Code(err), fault.ReasonOf(err), err, code, reason)
	}
}

func refused(t *testing.T, err error, reason faultv1.Reason) {
	t.Helper()
	wantReason(t, err, codes.Unauthenticated, reason)
}

var errAway = errors.New("away")

func bg() context.Context { return context.Background() }

func numbered(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s_%d", prefix, i)
	}
	return out
}

func asFault(err error, to **fault.Error) bool { return errors.As(err, to) }
