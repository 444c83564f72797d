package svid

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const (
	// maxHeldJWTs is for how many sets of audiences one workload keeps JWT-SVIDs.
	maxHeldJWTs = 64
	// issueJWTTimeout bounds one request for one, and how long it is waited for the bundle that has its key.
	issueJWTTimeout = 10 * time.Second
)

// JWTConfig is what a JWTs needs. ID and Issue must be set.
type JWTConfig struct {
	// ID is the workload's own: what every one of its JWT-SVIDs must say.
	ID spiffeid.ID
	// Issue asks the authority for a JWT-SVID of the workload. It must return when ctx ends. What it returns is checked before it is used.
	Issue func(ctx context.Context, audience []string) (token string, err error)

	Now    func() time.Time // time.Now when nil
	Logger *slog.Logger     // silent when nil
}

// JWTs are the JWT-SVIDs of one workload, and the keys by which it verifies those of others. It is safe for concurrent use.
type JWTs struct {
	cfg    JWTConfig
	flight singleflight.Group

	mu      sync.Mutex
	keys    map[string]*ecdsa.PublicKey // nil before the first bundle
	jwks    []byte                      // the same as a key set
	held    map[string]heldJWT
	changed chan struct{} // closed and replaced with each bundle
}

type heldJWT struct {
	token string
	says  *JWT
}

// NewJWTs makes a JWTs that knows no key yet: it gives and accepts nothing before SetBundle.
func NewJWTs(cfg JWTConfig) (*JWTs, error) {
	if cfg.ID.IsZero() || cfg.ID.Path() == "" || cfg.Issue == nil {
		return nil, fault.InvalidArgument("JWT-SVIDs need the SPIFFE ID of their workload and a way to have them issued")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &JWTs{cfg: cfg, held: make(map[string]heldJWT), changed: make(chan struct{})}, nil
}

// SetBundle takes up the keys in a trust bundle of the workload's own trust domain, in SPIFFE's form. Those that it does not have are not
// believed from now on. A bundle that cannot be read changes nothing.
func (j *JWTs) SetBundle(trustBundle []byte) error {
	td := j.cfg.ID.TrustDomain()
	b, err := spiffebundle.Parse(td, trustBundle)
	if err != nil {
		return untrusted(err, "the trust bundle cannot be read")
	}
	keys := make(map[string]*ecdsa.PublicKey)
	for kid, key := range b.JWTAuthorities() {
		pub, err := p256(key)
		if err != nil || !validKeyID(kid) {
			continue // of a kind that this verifier does not know
		}
		keys[kid] = pub
	}
	jwks, err := jwtbundle.FromJWTAuthorities(td, b.JWTAuthorities()).Marshal()
	if err != nil {
		return fault.Internal(err, "the keys of JWT-SVIDs could not be encoded")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.keys, j.jwks = keys, jwks
	close(j.changed)
	j.changed = make(chan struct{})
	return nil
}

// observe returns a channel that closes with the next bundle, and the keys; nil before the first.
func (j *JWTs) observe() (changed <-chan struct{}, keys map[string]*ecdsa.PublicKey, jwks []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.changed, j.keys, j.jwks
}

// Validate says what another's JWT-SVID says, if it is one of the trust domain, for audience, in its time: VerifyJWT with the keys of the
// moment.
//
// Errors: UNAUTHENTICATED for what is not; UNAVAILABLE while no bundle has come; INVALID_ARGUMENT without an audience.
func (j *JWTs) Validate(token, audience string) (*JWT, error) {
	if audience == "" {
		return nil, fault.InvalidArgument("a JWT-SVID is validated for an audience: name the own one")
	}
	_, keys, _ := j.observe()
	if keys == nil {
		return nil, noBundle(nil)
	}
	return VerifyJWT(token, audience, j.cfg.ID.TrustDomain(), keys, j.cfg.Now())
}

func noBundle(cause error) error {
	return fault.Wrap(cause, codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the trust bundle has not come yet: see that identity answers")
}

// Fetch gives a JWT-SVID of the workload for audience: the one that is held while less than half of its life has passed, else a new one. While
// none can be had, the one that is held serves until it ends.
//
// Errors: INVALID_ARGUMENT for an audience that CheckAudience refuses; UNAVAILABLE, and what Issue says.
func (j *JWTs) Fetch(ctx context.Context, audience []string) (token string, says *JWT, err error) {
	if err := CheckAudience(audience); err != nil {
		return "", nil, err
	}
	key := strings.Join(audience, "\x00")
	have, fresh := j.have(key)
	if fresh {
		return have.token, have.says, nil
	}
	shared := context.WithoutCancel(ctx)
	done := j.flight.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(shared, issueJWTTimeout)
		defer cancel()
		return j.issue(ctx, key, audience)
	})
	select {
	case r := <-done:
		if r.Err == nil {
			h := r.Val.(heldJWT) //nolint:forcetypeassert // issue returns nothing else
			return h.token, h.says, nil
		}
		err = r.Err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if have, _ := j.have(key); have.says != nil && fault.Code(err) != codes.PermissionDenied {
		j.cfg.Logger.WarnContext(ctx, "no new JWT-SVID; the one before serves until it ends", "end", have.says.Expiry, "error", err)
		return have.token, have.says, nil
	}
	return "", nil, err
}

// have is the JWT-SVID that is held, if it still counts, and whether it is young enough.
func (j *JWTs) have(key string) (h heldJWT, fresh bool) {
	now := j.cfg.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	h, ok := j.held[key]
	if !ok {
		return heldJWT{}, false
	}
	if _, believed := j.keys[h.says.KeyID]; !believed || !now.Before(h.says.Expiry) {
		delete(j.held, key)
		return heldJWT{}, false
	}
	return h, now.Before(h.says.Issued.Add(h.says.Expiry.Sub(h.says.Issued) / 2))
}

// issue asks for a new one, checks it and holds it.
func (j *JWTs) issue(ctx context.Context, key string, audience []string) (heldJWT, error) {
	token, err := j.cfg.Issue(ctx, audience)
	if err != nil {
		return heldJWT{}, err
	}
	for {
		changed, keys, _ := j.observe()
		says, err := VerifyJWT(token, audience[0], j.cfg.ID.TrustDomain(), keys, j.cfg.Now())
		if err == nil {
			if says.ID != j.cfg.ID || strings.Join(says.Audience, "\x00") != key || says.Issued.IsZero() {
				return heldJWT{}, untrusted(nil, "the authority has answered with the JWT-SVID of another workload or for another audience")
			}
			h := heldJWT{token, says}
			j.hold(key, h)
			return h, nil
		}
		if !errors.Is(err, errUnknownKey) {
			return heldJWT{}, err
		}
		// Its key may be newer than the bundle, which is on its way.
		select {
		case <-changed:
		case <-ctx.Done():
			return heldJWT{}, noBundle(err)
		}
	}
}

// hold keeps h; of too many the one that ends first goes.
func (j *JWTs) hold(key string, h heldJWT) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, there := j.held[key]; !there && len(j.held) >= maxHeldJWTs {
		first := ""
		for k, old := range j.held {
			if first == "" || old.says.Expiry.Before(j.held[first].says.Expiry) {
				first = k
			}
		}
		delete(j.held, first)
	}
	j.held[key] = h
}
