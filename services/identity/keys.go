package identity

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
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
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// tokenKeys are the keys that tokens are signed with, as they were last read. It implements authn.KeySet.
type tokenKeys struct {
	now   func() time.Time
	state atomic.Pointer[keyState]
}

type keyState struct {
	generation uint64
	keys       []store.SigningKey
	signers    map[string]*authn.Signer
}

// set takes up keys. The generation rises only if they are others than before.
func (k *tokenKeys) set(keys []store.SigningKey) error {
	next := &keyState{generation: 1, keys: keys, signers: make(map[string]*authn.Signer, len(keys))}
	for _, key := range keys {
		signer, err := authn.NewSigner(key.Key, key.KeyID)
		if err != nil {
			return fault.Internal(err, "a signing key cannot be used")
		}
		next.signers[key.KeyID] = signer
	}
	if old := k.state.Load(); old != nil {
		next.generation = old.generation
		if !sameKeys(old.keys, keys) {
			next.generation++
		}
	}
	k.state.Store(next)
	return nil
}

func sameKeys(a, b []store.SigningKey) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].KeyID != b[i].KeyID || !a[i].Publish.Equal(b[i].Publish) || !a[i].Remove.Equal(b[i].Remove) {
			return false
		}
	}
	return true
}

// published are the public keys of the moment, by id.
func (k *tokenKeys) published() map[string]*ecdsa.PublicKey {
	now, out := k.now(), make(map[string]*ecdsa.PublicKey)
	for _, key := range k.state.Load().keys {
		if within(now, key.Publish, key.Remove) {
			out[key.KeyID] = &key.Key.PublicKey
		}
	}
	return out
}

// Key implements authn.KeySet.
func (k *tokenKeys) Key(_ context.Context, kid string) (*ecdsa.PublicKey, error) {
	now := k.now()
	for _, key := range k.state.Load().keys {
		if key.KeyID == kid && within(now, key.Publish, key.Remove) {
			return &key.Key.PublicKey, nil
		}
	}
	return nil, authn.ErrUnknownKey
}

// Generation implements authn.KeySet.
func (k *tokenKeys) Generation() uint64 { return k.state.Load().generation }

// signer is the newest key that signs now.
func (k *tokenKeys) signer() (*authn.Signer, error) {
	now, state := k.now(), k.state.Load()
	for i := len(state.keys) - 1; i >= 0; i-- {
		key := state.keys[i]
		if within(now, key.Publish, key.Remove) && within(now, key.SignFrom, key.SignUntil) {
			return state.signers[key.KeyID], nil
		}
	}
	return nil, fault.Unavailable("no signing key is valid now; check the clock of identity")
}

// within reports whether now is in [from, until); a zero until is no end. A clock that is a little behind the one of the replica
// that made a key must not stop the service.
func within(now, from, until time.Time) bool {
	return !now.Before(from.Add(-authn.MaxLeeway)) && (until.IsZero() || now.Before(until))
}

// openKeys reads the signing keys and the root, and makes them where there are none.
func (s *Service) openKeys(ctx context.Context) error {
	var keys []store.SigningKey
	var state svid.State
	read := func(ctx context.Context, tx *sqldb.Tx) (found bool, err error) {
		if keys, err = s.store.SigningKeys(ctx, tx); err != nil {
			return false, err
		}
		state, found, err = s.store.Authority(ctx, tx)
		return found && len(keys) > 0, err
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
			if err := s.makeKeys(ctx, tx, len(keys) == 0, len(state.Root) == 0); err != nil {
				return err
			}
			_, err = read(ctx, tx)
			return err
		})
	}
	if err != nil {
		return err
	}
	authority, err := svid.ParseAuthority(s.td, state)
	state.Key.Wipe()
	if err != nil {
		return err
	}
	if err := s.keys.set(keys); err != nil {
		return err
	}
	s.authority.Store(authority)
	return nil
}

func (s *Service) makeKeys(ctx context.Context, tx *sqldb.Tx, signing, root bool) error {
	now := s.cfg.Now()
	if signing {
		key, err := authn.GenerateKey()
		if err != nil {
			return fault.Internal(err, "a signing key could not be made")
		}
		if err := s.store.InsertSigningKey(ctx, tx, store.SigningKey{
			KeyID: authn.Thumbprint(&key.PublicKey), Key: key, Publish: now, SignFrom: now,
		}); err != nil {
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
	state, err := authority.Marshal()
	if err != nil {
		return err
	}
	defer state.Key.Wipe()
	return s.store.InsertAuthority(ctx, tx, authority.Pin(), state, now)
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
	now := s.cfg.Now().Truncate(time.Second)
	issued := now
	if !until.Before(issued) {
		// Tokens know whole seconds: one of the second in which the subject's were revoked would be dead at birth.
		issued = until.Truncate(time.Second).Add(time.Second)
		if issued.Sub(now) > authn.MaxLeeway/2 {
			return "", c, fault.Unavailable("identity's clock is behind an earlier change of this account; check it")
		}
	}
	c.Issuer, c.ID, c.IssuedAt = s.cfg.Issuer, resource.NewUID("tok"), issued
	if end := issued.Add(life); c.Expiry.IsZero() || c.Expiry.After(end) {
		c.Expiry = end
	}
	if !c.Expiry.After(issued) {
		return "", c, fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "the token is about to expire: refresh it or sign in again")
	}
	token, err := signer.Mint(c)
	if err != nil {
		return "", c, fault.Internal(err, "the token could not be made")
	}
	return token, c, nil
}

// discovery is what of OpenID Connect Discovery 1.0 and RFC 8414 is true today. There are no authorization requests yet, so no
// authorization_endpoint and no response type.
type discovery struct {
	Issuer                 string   `json:"issuer"`
	TokenEndpoint          string   `json:"token_endpoint"`
	JWKSURI                string   `json:"jwks_uri"`
	ResponseTypes          []string `json:"response_types_supported"`
	SubjectTypes           []string `json:"subject_types_supported"`
	IDTokenSigningAlgs     []string `json:"id_token_signing_alg_values_supported"`
	GrantTypes             []string `json:"grant_types_supported"`
	TokenEndpointAuth      []string `json:"token_endpoint_auth_methods_supported"`
	DPoPSigningAlgs        []string `json:"dpop_signing_alg_values_supported"`
	Claims                 []string `json:"claims_supported"`
	RequestURIParameter    bool     `json:"request_uri_parameter_supported"`
	CertificateBoundTokens bool     `json:"tls_client_certificate_bound_access_tokens"`
}

// Paths of the OAuth endpoints below the issuer; the gateway serves them.
const (
	pathGrant = "/oauth2/token"
	pathKeys  = "/oauth2/keys"
)

// cacheControl is for whoever serves the documents over HTTP. A key is published for far longer than this before it signs.
const cacheControl = "public, max-age=300"

// GetDiscovery implements TokenService.
func (s *Service) GetDiscovery(ctx context.Context, _ *identityv1.GetDiscoveryRequest) (*identityv1.Document, error) {
	return document(ctx, discovery{
		Issuer: s.cfg.Issuer, TokenEndpoint: s.cfg.Issuer + pathGrant, JWKSURI: s.cfg.Issuer + pathKeys,
		ResponseTypes: []string{}, SubjectTypes: []string{"public"}, IDTokenSigningAlgs: []string{"ES256"},
		GrantTypes: []string{grantClientCredentials}, TokenEndpointAuth: []string{"client_secret_basic", "client_secret_post"},
		DPoPSigningAlgs: []string{"ES256"}, Claims: []string{"iss", "sub", "aud", "exp", "iat", "jti", "client_id"},
	})
}

// GetKeys implements TokenService.
func (s *Service) GetKeys(ctx context.Context, _ *identityv1.GetKeysRequest) (*identityv1.Document, error) {
	raw, err := authn.RenderJWKS(s.keys.published())
	if err != nil {
		return nil, fault.Internal(err, "the key set could not be rendered")
	}
	return document(ctx, json.RawMessage(raw))
}

// document answers with JSON and says in the header how long it may be kept.
func document(ctx context.Context, v any) (*identityv1.Document, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fault.Internal(err, "the document could not be rendered")
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("cache-control", cacheControl)); err != nil {
		return nil, fault.Internal(err, "the document's header could not be set")
	}
	return &identityv1.Document{Json: raw}, nil
}
