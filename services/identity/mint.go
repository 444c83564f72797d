package identity

import (
	"context"
	"crypto/subtle"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/clients"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// clientBySecret finds the service principal that a secret proves. ok is false where there is none of this id, it is disabled, and where the
// secret is another's, over or none; which of these it is takes the same queries to find out. What is remembered is good only for mintFor: who
// decides something else by it asks for it to be read.
func (s *Service) clientBySecret(ctx context.Context, uid string, secret redact.Secret, remembered bool) (f clients.Facts, ok bool, err error) {
	key := clients.BySecret(store.Digest(secret))
	return s.client(ctx, uid, key, remembered, func(ctx context.Context, tx *sqldb.Tx) (clients.Facts, bool, error) {
		c, ok, err := s.store.FindClientSecret(ctx, tx, secret)
		return clients.Facts{UID: c.UID, Credential: c.ID, Expire: c.ExpireTime}, ok, err
	})
}

// clientByKey is clientBySecret of a public key on P-256, by its thumbprint; whoever asks has to see its private half used.
func (s *Service) clientByKey(ctx context.Context, uid, thumbprint string, remembered bool) (f clients.Facts, ok bool, err error) {
	return s.client(ctx, uid, clients.ByThumbprint(uid, thumbprint), remembered, func(ctx context.Context, tx *sqldb.Tx) (clients.Facts, bool, error) {
		keys, err := s.store.ClientKeys(ctx, tx, uid, s.cfg.Now())
		for _, k := range keys {
			if k.Kind != store.PublicKey || k.Thumbprint != thumbprint {
				continue
			}
			public, err := authn.ParsePublicKey(k.DER)
			return clients.Facts{UID: k.UID, Credential: k.ID, Expire: k.ExpireTime, Public: public}, err == nil, nil // of another kind: no key of this sort
		}
		return clients.Facts{}, false, err
	})
}

// clientByCertificate is clientBySecret of a certificate, the very one that was registered; whoever asks has to see the private half of its key used.
func (s *Service) clientByCertificate(ctx context.Context, uid string, der []byte, remembered bool) (f clients.Facts, ok bool, err error) {
	return s.client(ctx, uid, clients.ByCertificate(uid, der), remembered, func(ctx context.Context, tx *sqldb.Tx) (clients.Facts, bool, error) {
		keys, err := s.store.ClientKeys(ctx, tx, uid, s.cfg.Now())
		for _, k := range keys {
			if k.Kind == store.Certificate && subtle.ConstantTimeCompare(k.DER, der) == 1 {
				return clients.Facts{UID: k.UID, Credential: k.ID, Expire: k.ExpireTime}, true, nil
			}
		}
		return clients.Facts{}, false, err
	})
}

// client finds in memory what was found good before, and else reads it, with the number at which it is so.
func (s *Service) client(ctx context.Context, uid string, key clients.Key, remembered bool, shown func(ctx context.Context, tx *sqldb.Tx) (clients.Facts, bool, error)) (f clients.Facts, ok bool, err error) {
	good := func(f clients.Facts) bool { return f.UID == uid && s.cfg.Now().Before(f.Expire) }
	if f, ok := s.clients.Find(key); ok && remembered && good(f) {
		return f, true, nil
	}
	err = s.cfg.DB.Read(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		var number uint64
		var p store.Principal
		var there bool
		if number, err = s.store.Number(ctx, tx); err != nil {
			return err
		}
		if p, there, err = s.store.Principal(ctx, tx, uid); err != nil {
			return err
		}
		if f, ok, err = shown(ctx, tx); err != nil {
			return err
		}
		if ok = ok && there && !p.Disabled && p.Kind == store.ServicePrincipal && good(f); !ok {
			return nil
		}
		f.Name, f.Number = p.Name(), number
		f.Until, err = s.store.IssuedUntil(ctx, tx, uid)
		return err
	})
	if err != nil || !ok {
		return clients.Facts{}, false, err
	}
	s.clients.Keep(key, f)
	return f, true, nil
}

// mintFor mints a token of a service principal that has proved itself, on facts from memory. The call succeeds only if they are so in the
// transaction of its record. Tokens that it gets within a minute with the same credential, for the same key, share an event.
func (s *Service) mintFor(call *rpc.Call, f clients.Facts, c authn.Claims, life time.Duration) (string, authn.Claims, error) {
	signer, err := s.keys.signer()
	if err != nil {
		return "", c, err
	}
	c.Subject, c.PrincipalType, c.ClientID, c.SessionID = f.UID, authn.ServicePrincipal, f.UID, f.Credential
	if c, err = s.dating(c, f.Until, life); err != nil {
		return "", c, err
	}
	token, err := signer.Mint(c)
	if err != nil {
		return "", c, fault.Internal(err, "the token could not be made")
	}
	call.RestOn(s.ground(f, signer.KeyID()))
	call.Joins(c.ID)
	if c.Confirmation != "" {
		call.Detail("jkt", c.Confirmation)
	}
	return token, c, nil
}

// ground is what a token rests on that the key with this id has signed.
func (s *Service) ground(f clients.Facts, kid string) audit.Ground {
	return audit.Ground{On: s.basis, Number: f.Number, Still: func(ctx context.Context, tx *sqldb.Tx) error { return s.stillSo(ctx, tx, f, kid) }}
}

// stillSo decides again what a token was minted on, in the transaction of its record: whatever has ended it since is committed by now, or comes
// after the token and is dated after it.
func (s *Service) stillSo(ctx context.Context, tx *sqldb.Tx, f clients.Facts, kid string) error {
	if err := s.unended(ctx, tx, f.UID, f.Until); err != nil {
		return err
	}
	there, err := s.store.HasCredential(ctx, tx, f.UID, f.Credential, s.cfg.Now())
	if err != nil {
		return err
	}
	if !there {
		return invalidClient()
	}
	gone, err := s.store.KeyRevoked(ctx, tx, kid)
	if err != nil {
		return err
	}
	if gone {
		return fault.New(codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE, "the signing keys were replaced while the token was made; repeat the call")
	}
	return nil
}
