package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/sync/singleflight"

	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// MaxLeeway is the most that a clock may differ from the issuer's.
	MaxLeeway = 30 * time.Second
	// MaxDelivery is the longest time for which a run that has ended may deliver. A mark that says longer is not believed.
	MaxDelivery = 10 * time.Minute
)

// Revocations knows what was revoked. It is asked on every call, so its methods take no time to speak of and do not
// block.
type Revocations interface {
	// Revoked reports whether a token with these properties is revoked by its subject, its session, its own id, its
	// run, one of its ancestors, or because it was issued before some moment. Empty strings match nothing.
	Revoked(sub, sid, jti, run string, ancestors []string, issuedAt time.Time) bool
	// DeliversUntil is the end of the time in which the tokens of a run, which are revoked by their run, open what delivers. Zero
	// is that they open nothing.
	DeliversUntil(run string) time.Time
	// KeyRevoked reports whether everything that the key with this id has signed is revoked.
	KeyRevoked(kid string) bool
	// Epoch changes with every revocation. Once it has returned a value, Revoked answers from that state or a later one.
	Epoch() uint64
	// Fresh returns an error if the state may be behind what the mesh has agreed on; then nothing is accepted.
	Fresh(now time.Time) error
}

// Config of a Verifier. Issuer, Keys and Revocations are required.
type Config struct {
	// Issuer is compared byte for byte with iss.
	Issuer string
	// Keys are the issuer's public keys.
	Keys KeySet
	// Revocations is the revocation state.
	Revocations Revocations
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Leeway is for iat and nbf, never for exp. 0 means MaxLeeway, which is also the most.
	Leeway time.Duration
	// MaxLifetime is the most that may lie between iat and exp. 0 means 24 h.
	MaxLifetime time.Duration
	// MaxBytes is the length of the longest token that is looked at. 0 means DefaultMaxBytes.
	MaxBytes int
	// CacheSize is the number of tokens whose verification is remembered, some 2 KB each. 0 means 16,384.
	CacheSize int
}

// Verifier verifies access tokens. Make one per process and issuer.
type Verifier struct {
	cfg    Config
	leeway int64 // s
	cache  *cache
	flight singleflight.Group
}

// New makes a Verifier, or says what its Config lacks.
func New(cfg Config) (*Verifier, error) {
	switch {
	case cfg.Issuer == "":
		return nil, fmt.Errorf("authn: a verifier needs an issuer")
	case cfg.Keys == nil:
		return nil, fmt.Errorf("authn: a verifier needs keys")
	case cfg.Revocations == nil:
		return nil, fmt.Errorf("authn: a verifier needs a revocation state")
	case cfg.Leeway < 0 || cfg.Leeway > MaxLeeway:
		return nil, fmt.Errorf("authn: the leeway is outside 0 to %v", MaxLeeway)
	case cfg.MaxLifetime < 0 || cfg.MaxBytes < 0 || cfg.CacheSize < 0:
		return nil, fmt.Errorf("authn: a limit is negative")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = MaxLeeway
	}
	if cfg.MaxLifetime == 0 {
		cfg.MaxLifetime = 24 * time.Hour
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.CacheSize == 0 {
		cfg.CacheSize = 16384
	}
	return &Verifier{cfg: cfg, leeway: int64(cfg.Leeway / time.Second), cache: newCache(cfg.CacheSize)}, nil
}

// Verify returns what the token says, if it is one of the issuer's, for this audience, in its time and not revoked.
// If the result is Bound, the call counts only after ProofChecker.Check as well. The errors are faults: TOKEN_MISSING,
// TOKEN_TOO_LARGE, TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_AUDIENCE and TOKEN_REVOKED are Unauthenticated;
// AUTHZ_STATE_STALE and SERVICE_UNAVAILABLE are Unavailable.
func (v *Verifier) Verify(ctx context.Context, token, audience string) (*Verified, error) {
	return v.verify(ctx, token, audience, false)
}

// VerifyDelivery is Verify for a method that delivers what a run has: it takes also the token of a run that is revoked as such and may still
// deliver, if that is the agent's own, bound to its key and not exchanged, and is revoked by nothing else.
func (v *Verifier) VerifyDelivery(ctx context.Context, token, audience string) (*Verified, error) {
	return v.verify(ctx, token, audience, true)
}

func (v *Verifier) verify(ctx context.Context, token, audience string, deliver bool) (*Verified, error) {
	if token == "" {
		return nil, missing()
	}
	if len(token) > v.cfg.MaxBytes {
		return nil, tooLarge(v.cfg.MaxBytes)
	}
	now := v.cfg.Now()
	if err := v.cfg.Revocations.Fresh(now); err != nil {
		return nil, stale(err)
	}
	// Both are read before anything is checked: what changes during the check makes the stamp old at once.
	at := stamp{epoch: v.cfg.Revocations.Epoch(), generation: v.cfg.Keys.Generation()}

	// The string is only read, and Sum256 keeps nothing of it.
	sum := sha256.Sum256(unsafe.Slice(unsafe.StringData(token), len(token))) //nolint:gosec // as the line above says
	e := v.cache.get(&sum)
	cached := e != nil
	if !cached {
		var err error
		if e, err = v.miss(ctx, token, &sum); err != nil {
			return nil, err
		}
	}
	if err := v.admit(ctx, e, at, now, deliver); err != nil {
		if cached {
			v.cache.drop(&sum)
		}
		return nil, err
	}
	if !cached {
		v.cache.put(&sum, e)
	}
	if !audienceIs(e.verified.Audience[0], audience) {
		return nil, &known{wrongAudience(), &e.verified.Claims}
	}
	return e.verified, nil
}

// admit asks what can change during the life of a token: revocation, the issuer's keys, and the time.
func (v *Verifier) admit(ctx context.Context, e *entry, at stamp, when time.Time, deliver bool) error {
	now := when.Unix()
	if s := e.stamp.Load(); s == nil || *s != at {
		// A revoked key counts for nothing, also where a cached key set still has it.
		if v.cfg.Revocations.KeyRevoked(e.kid) {
			return revoked()
		}
		key, err := v.cfg.Keys.Key(ctx, e.kid)
		switch {
		case errors.Is(err, ErrUnknownKey):
			return invalid(err)
		case err != nil:
			return noKeys(err)
		case !key.Equal(e.key):
			return invalid(cause("the signing key was replaced"))
		}
		c := &e.verified.Claims
		ended := v.cfg.Revocations.Revoked(c.Subject, c.SessionID, c.ID, c.Run, c.Ancestors, c.IssuedAt)
		if ended && (!deliver || !v.delivers(c, when)) {
			return &known{revoked(), c}
		}
		for a := c.Actor; a != nil; a = a.Actor {
			// What a client was given in somebody's name ends with the client, and with the credential that it proved itself by.
			if a.Client() && v.cfg.Revocations.Revoked(a.Subject, a.SessionID, "", "", nil, c.IssuedAt) {
				return &known{revoked(), c}
			}
		}
		if !ended { // else it has no stamp: the clock ends it, so it is asked each time
			fresh := at // so that at itself stays off the heap on a hit
			e.stamp.Store(&fresh)
		}
	}
	if now >= e.expiry {
		return &known{expired(), &e.verified.Claims}
	}
	if e.notBefore > now+v.leeway {
		return invalid(cause("the token was issued in the future: this clock or the issuer's is wrong"))
	}
	return nil
}

// delivers reports whether a token that is revoked is the one of an agent that may still deliver.
func (v *Verifier) delivers(c *Claims, now time.Time) bool {
	if c.Run == "" || c.Confirmation == "" || c.Actor != nil {
		return false
	}
	if v.cfg.Revocations.Revoked(c.Subject, c.SessionID, c.ID, "", c.Ancestors, c.IssuedAt) {
		return false
	}
	left := v.cfg.Revocations.DeliversUntil(c.Run).Sub(now)
	return left > 0 && left <= MaxDelivery+MaxLeeway
}

// miss verifies a token that is not in the cache. Those who bring the same one at the same time share the work.
func (v *Verifier) miss(ctx context.Context, token string, sum *digest) (*entry, error) {
	// What needs no key is refused before anything is shared or allocated.
	header, _, _, err := parseCompact(token)
	if err != nil {
		return nil, invalid(err)
	}
	kid, err := parseHeader(header)
	if err != nil {
		return nil, invalid(err)
	}
	if v.cfg.Revocations.KeyRevoked(kid) {
		return nil, revoked()
	}
	// The work serves all who wait, so it does not end with the call that began it.
	shared := context.WithoutCancel(ctx)
	done := v.flight.DoChan(string(sum[:]), func() (out any, err error) {
		defer func() {
			if r := recover(); r != nil { // on a goroutine of its own, where nobody else would catch it
				err = fault.Internal(fmt.Errorf("panic: %v", r), "the access token could not be verified")
			}
		}()
		return v.open(shared, token, kid)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*entry), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// parseHeader accepts the one header that Signer writes, in any order: alg, typ and kid.
func parseHeader(segment string) (kid string, err error) {
	raw, err := decodeSegment(segment)
	if err != nil {
		return "", err
	}
	h, err := parseObject(raw)
	if err != nil {
		return "", err
	}
	// jwk, jku, x5u, x5c, x5t, crit, zip, enc, cty, b64: none has a meaning here.
	if err := h.only("alg", "typ", "kid"); err != nil {
		return "", err
	}
	for name, want := range map[string]string{"alg": "ES256", "typ": typeAccess} {
		if s, _, err := h.text(name); err != nil || s != want {
			return "", cause("the header is not that of an ES256 access token")
		}
	}
	kid, ok, err := h.text("kid")
	if err != nil || !ok || !validKeyID(kid) {
		return "", cause("the header has no usable key id")
	}
	return kid, nil
}

// open checks the signature and reads the claims.
func (v *Verifier) open(ctx context.Context, token, kid string) (*entry, error) {
	key, err := v.cfg.Keys.Key(ctx, kid)
	switch {
	case errors.Is(err, ErrUnknownKey):
		return nil, invalid(err)
	case err != nil:
		return nil, noKeys(err)
	}
	payload, err := verifyES256(token, key)
	if err != nil {
		return nil, invalid(err)
	}
	c, notBefore, err := decode(payload)
	if err != nil {
		return nil, invalid(err)
	}
	if c.Issuer != v.cfg.Issuer {
		return nil, invalid(cause("the issuer is another"))
	}
	if c.Expiry.Sub(c.IssuedAt) > v.cfg.MaxLifetime {
		return nil, invalid(cause("the token would live too long"))
	}
	return &entry{
		verified: &Verified{*c}, notBefore: notBefore.Unix(), expiry: c.Expiry.Unix(), kid: kid, key: key,
	}, nil
}

// verifyES256 gives the payload of a compact JWS whose segments are spelled in the one right way and whose signature
// is by key.
func verifyES256(token string, key *ecdsa.PublicKey) ([]byte, error) {
	_, payload, signature, err := parseCompact(token)
	if err != nil {
		return nil, err
	}
	for _, s := range []string{payload, signature} {
		if _, err := decodeSegment(s); err != nil {
			return nil, err
		}
	}
	jws, err := jose.ParseSignedCompact(token, onlyES256)
	if err != nil {
		return nil, cause("not a JWS of ES256")
	}
	out, err := jws.Verify(key)
	if err != nil {
		return nil, cause("the signature is wrong")
	}
	return out, nil
}
