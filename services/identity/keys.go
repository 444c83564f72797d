package identity

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/pkg/svid"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// tokenKeys are the keys that tokens are signed with, as they were last read. It implements authn.KeySet.
type tokenKeys struct {
	now   func() time.Time
	state atomic.Pointer[keyState]
}

type keyState struct {
	generation uint64
	plan       []rotation.Key
	keys       []store.SigningKey // as in plan
	signers    map[string]*authn.Signer
}

// signingOf are the keys of one use, in the order in which they sign.
func signingOf(keys []store.SigningKey, use store.KeyUse) (out []store.SigningKey) {
	for _, k := range keys {
		if k.Use == use {
			out = append(out, k)
		}
	}
	return out
}

// set takes up keys. The generation rises only if they are others than before.
func (k *tokenKeys) set(keys []store.SigningKey) error {
	next := &keyState{generation: 1, plan: planOf(keys), keys: keys, signers: make(map[string]*authn.Signer, len(keys))}
	for _, key := range keys {
		signer, err := authn.NewSigner(key.Key, key.KeyID)
		if err != nil {
			return fault.Internal(err, "a signing key cannot be used")
		}
		next.signers[key.KeyID] = signer
	}
	for {
		old := k.state.Load()
		if old != nil {
			next.generation = old.generation
			if !slices.Equal(old.plan, next.plan) {
				next.generation++
			}
		}
		if k.state.CompareAndSwap(old, next) {
			return nil
		}
	}
}

// planOf is what the rows say of when keys do what. They come in the order in which they sign.
func planOf(keys []store.SigningKey) []rotation.Key {
	out := make([]rotation.Key, len(keys))
	for i, k := range keys {
		out[i] = rotation.Key{ID: k.KeyID, Publish: k.Publish, SignFrom: k.SignFrom, SignUntil: k.SignUntil, Remove: k.Remove}
	}
	return out
}

// published are the public keys of the moment, by id.
func (k *tokenKeys) published() map[string]*ecdsa.PublicKey {
	now, out, state := k.now(), make(map[string]*ecdsa.PublicKey), k.state.Load()
	for i, key := range state.keys {
		if state.plan[i].Published(now) {
			out[key.KeyID] = &key.Key.PublicKey
		}
	}
	return out
}

// Key implements authn.KeySet.
func (k *tokenKeys) Key(_ context.Context, kid string) (*ecdsa.PublicKey, error) {
	now, state := k.now(), k.state.Load()
	for i, key := range state.keys {
		if key.KeyID == kid && state.plan[i].Published(now) {
			return &key.Key.PublicKey, nil
		}
	}
	return nil, authn.ErrUnknownKey
}

// Generation implements authn.KeySet.
func (k *tokenKeys) Generation() uint64 { return k.state.Load().generation }

// signer is the key that signs now.
func (k *tokenKeys) signer() (*authn.Signer, error) {
	state := k.state.Load()
	i := rotation.Signer(k.now(), state.plan)
	if i < 0 {
		return nil, fault.Unavailable("no signing key is valid now; check the clock of identity")
	}
	return state.signers[state.keys[i].KeyID], nil
}

// openKeys reads the signing keys and the root, and makes them where there are none.
func (s *Service) openKeys(ctx context.Context) error {
	s.opening.Lock() // what was read first must not be taken up last
	defer s.opening.Unlock()
	var keys []store.SigningKey
	var roots []store.Authority
	var bundleSeq uint64
	defer func() { store.Wipe(roots) }()
	read := func(ctx context.Context, tx *sqldb.Tx) (found bool, err error) {
		if keys, err = s.store.SigningKeys(ctx, tx); err != nil {
			return false, err
		}
		store.Wipe(roots)
		roots, err = s.store.Authorities(ctx, tx)
		if err != nil {
			return false, err
		}
		bundleSeq, err = s.store.BundleSeq(ctx, tx)
		uncounted := slices.ContainsFunc(roots, func(a store.Authority) bool { return !a.Counted })
		return len(roots) > 0 && len(signingOf(keys, store.TokenKeys)) > 0 && len(signingOf(keys, store.SVIDKeys)) > 0 && !uncounted, err
	}
	var found bool
	err := s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) (err error) {
		found, err = read(ctx, tx)
		return err
	})
	if err == nil && !found {
		err = s.cfg.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			found, err := read(ctx, tx)
			if err != nil || found { // another replica was first
				return err
			}
			if err := s.makeKeys(ctx, tx, keys, len(roots) == 0); err != nil {
				return err
			}
			for _, a := range roots {
				// Of before certificates were written down: any may be in use.
				if end := s.cfg.Now().Add(max(s.cfg.SVIDLife, s.cfg.OperatorLife)); !a.Counted {
					if err := s.store.CountAuthority(ctx, tx, a.Pin, end); err != nil {
						return err
					}
				}
			}
			_, err = read(ctx, tx)
			return err
		})
	}
	if err != nil {
		return err
	}
	next, err := newAuthority(s.td, roots)
	if err != nil {
		return err
	}
	next.services = s.cfg.ServiceRoots
	svids := signingOf(keys, store.SVIDKeys)
	if err := next.render(svids, bundleSeq, s.refreshHint()); err != nil {
		return err
	}
	if err := s.keys.set(signingOf(keys, store.TokenKeys)); err != nil {
		return err
	}
	s.svidKeys.Store(&svids)
	if old := s.authority.Load(); old == nil || !slices.Equal(old.roots, next.roots) || old.sequence != next.sequence {
		s.authority.Store(next)
		s.turned.now()
	}
	return nil
}

func (s *Service) makeKeys(ctx context.Context, tx *sqldb.Tx, keys []store.SigningKey, root bool) error {
	now := s.cfg.Now()
	for _, use := range keyUses {
		if len(signingOf(keys, use)) > 0 {
			continue
		}
		if _, err := s.writePlan(ctx, tx, use, nil, rotation.Scheduled(now, nil, s.policyOf(use))); err != nil {
			return err
		}
	}
	if !root {
		return nil
	}
	authority, err := svid.NewAuthority(s.td, now, s.cfg.RootLife)
	if err != nil {
		return err
	}
	return s.insertAuthority(ctx, tx, authority, rotation.Root{Phase: rotation.Active, Made: now})
}

// firstParty is the client_id of tokens that Redoubt's own clients and services ask for.
const firstParty = "redoubt"

// mint signs a token for what c says, which lives for life, or until c.Expiry if that is set and earlier. Issuer, id and times are
// set here.
func (s *Service) mint(ctx context.Context, q sqldb.DBTX, c authn.Claims, life time.Duration) (string, authn.Claims, error) {
	signer, err := s.keys.signer()
	if err != nil {
		return "", c, err
	}
	until, err := s.store.IssuedUntil(ctx, q, c.Subject)
	if err != nil {
		return "", c, err
	}
	if c.PrincipalType == authn.User { // whoever mints and whatever for: the home identity stays in tokens
		h, ok, err := s.store.HomeOf(ctx, q, c.Subject)
		if err != nil {
			return "", c, err
		}
		c.HomeIssuer, c.HomeSubject, c.HomeClass = "", "", ""
		if ok && !s.admits(h.Class) {
			return "", c, fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, "this installation takes no consumers any more")
		}
		if ok {
			c.HomeIssuer, c.HomeSubject, c.HomeClass = h.URL, h.Subject, homeClasses[h.Class]
		}
	}
	if c, err = s.dating(c, until, life); err != nil {
		return "", c, err
	}
	token, err := signer.Mint(c)
	if err != nil {
		return "", c, fault.Internal(err, "the token could not be made")
	}
	return token, c, s.unended(ctx, q, c.Subject, until)
}

// dating sets the issuer, the id and the times of a token, for a subject whose tokens up to until are revoked.
func (s *Service) dating(c authn.Claims, until time.Time, life time.Duration) (authn.Claims, error) {
	now := s.cfg.Now().Truncate(time.Second)
	issued, life := now, min(life, s.policy.Life) // a key is kept for so long after it has signed
	if !until.Before(issued) {
		// Tokens know whole seconds: one of the second in which the subject's were revoked would be dead at birth.
		issued = until.Truncate(time.Second).Add(time.Second)
		if issued.Sub(now) > authn.MaxLeeway/2 {
			return c, fault.Unavailable("identity's clock is behind an earlier change of this account; check it")
		}
	}
	if c.IssuedAt.IsZero() {
		c.IssuedAt = issued
	}
	c.Issuer, c.ID = s.cfg.Issuer, resource.NewUID("tok")
	if end := issued.Add(life); c.Expiry.IsZero() || c.Expiry.After(end) {
		c.Expiry = end
	}
	if !c.Expiry.After(issued) {
		return c, fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "the token is about to expire: refresh it or sign in again")
	}
	return c, nil
}

// unended reports whether an account is what it was when a token for it was dated, after the moment until which its tokens are revoked. What
// ends an account revokes the tokens dated up to then: one that was begun before and is dated later would outlive it.
func (s *Service) unended(ctx context.Context, q sqldb.DBTX, subject string, until time.Time) error {
	now, err := s.store.IssuedUntil(ctx, q, subject)
	if err != nil {
		return err
	}
	if !now.Equal(until) {
		return fault.Unavailable("the account was changed while a token was made for it; repeat the call")
	}
	p, ok, err := s.store.Principal(ctx, q, subject)
	switch {
	case err != nil:
		return err
	case !ok:
		return fault.New(codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID, "the account is gone")
	case p.Disabled:
		return fault.New(codes.PermissionDenied, faultv1.Reason_ACCOUNT_DISABLED, "the account is disabled; ask an administrator to enable it")
	}
	return nil
}

// longestCache is how long others may keep the documents at most: never longer than a key is published before it signs.
const longestCache = 5 * time.Minute

// GetKeys implements TokenService.
func (s *Service) GetKeys(ctx context.Context, _ *identityv1.GetKeysRequest) (*identityv1.Document, error) {
	raw, err := authn.RenderJWKS(s.keys.published())
	if err != nil {
		return nil, fault.Internal(err, "the key set could not be rendered")
	}
	return s.document(ctx, json.RawMessage(raw))
}

// document answers with JSON and says in the header how long it may be kept.
func (s *Service) document(ctx context.Context, v any) (*identityv1.Document, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fault.Internal(err, "the document could not be rendered")
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("cache-control", "public, max-age="+strconv.Itoa(int(min(s.policy.Ahead, longestCache)/time.Second)))); err != nil {
		return nil, fault.Internal(err, "the document's header could not be set")
	}
	return &identityv1.Document{Json: raw}, nil
}
