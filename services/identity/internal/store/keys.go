package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// Digest is how a secret of 256 random bits is stored.
func Digest(secret redact.Secret) []byte { return digest(secret) }

// digest is how a secret of 256 random bits is stored.
func digest(secret redact.Secret) []byte {
	sum := sha256.Sum256(secret.Reveal())
	return sum[:]
}

// KeyUse is what a key signs. A key of one use opens under no other.
type KeyUse string

// The uses of keys.
const (
	TokenKeys KeyUse = ""         // access tokens and ID tokens
	SVIDKeys  KeyUse = "jwt-svid" // JWT-SVIDs of the mesh's services
)

func (u KeyUse) kind() string {
	if u == TokenKeys {
		return kindSigningKey
	}
	return "signing-key of " + string(u)
}

// SigningKey signs what Use says from SignFrom until SignUntil, and is published from Publish until Remove; a zero end is none.
type SigningKey struct {
	Use                                  KeyUse
	KeyID                                string
	Key                                  *ecdsa.PrivateKey
	Publish, SignFrom, SignUntil, Remove time.Time
}

// InsertSigningKey stores a key, sealed. One of JWT-SVIDs is part of the trust bundle, which has another number with it.
func (s *Store) InsertSigningKey(ctx context.Context, tx *sqldb.Tx, k SigningKey) error {
	der, err := authn.MarshalKey(k.Key)
	if err != nil {
		return fault.Internal(err, "a signing key could not be encoded")
	}
	defer der.Wipe()
	sealed, err := s.box.Seal(ctx, k.Use.kind(), k.KeyID, der.Reveal())
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&k.Key.PublicKey)
	if err != nil {
		return fault.Internal(err, "a signing key could not be encoded")
	}
	if err := db.New(tx).InsertSigningKey(ctx, db.InsertSigningKeyParams{
		Kid: k.KeyID, Purpose: string(k.Use), PrivateKey: sealed, PublicKey: public, PublishTime: micros(k.Publish), SignFrom: micros(k.SignFrom),
		SignUntil: micros(k.SignUntil), RemoveTime: micros(k.Remove),
	}); err != nil {
		return err
	}
	return s.bundleOf(ctx, tx, k.Use, k.Publish)
}

// bundleOf gives the trust bundle its next number if a key of this use is part of it.
func (s *Store) bundleOf(ctx context.Context, tx *sqldb.Tx, use KeyUse, now time.Time) error {
	if use != SVIDKeys {
		return nil
	}
	return s.nextBundle(ctx, tx, now)
}

// nextBundle gives the trust bundle the number that follows, which is no less than the second of now: an installation that is restored makes new
// keys, and goes on above what it has told before. The zero time is any.
func (s *Store) nextBundle(ctx context.Context, tx *sqldb.Tx, now time.Time) error {
	return db.New(tx).NextBundleSeq(ctx, now.Unix())
}

// BundleSeq is the number of the trust bundle.
func (s *Store) BundleSeq(ctx context.Context, q sqldb.DBTX) (uint64, error) {
	n, err := db.New(q).GetBundleSeq(ctx)
	return uint64(n), sqldb.Fault(err)
}

// PlanSigningKey changes when a key signs, from and until, and when it is removed.
func (s *Store) PlanSigningKey(ctx context.Context, tx *sqldb.Tx, k SigningKey) error {
	n, err := db.New(tx).PlanSigningKey(ctx, db.PlanSigningKeyParams{
		Kid: k.KeyID, SignFrom: micros(k.SignFrom), SignUntil: micros(k.SignUntil), RemoveTime: micros(k.Remove),
	})
	if err == nil && n != 1 {
		return fault.Internal(nil, "a signing key that was read in this transaction is gone")
	}
	return err
}

// DeleteSigningKey removes a key for good.
func (s *Store) DeleteSigningKey(ctx context.Context, tx *sqldb.Tx, use KeyUse, kid string) error {
	n, err := db.New(tx).DeleteSigningKey(ctx, kid)
	if err == nil && n != 1 {
		return fault.Internal(nil, "a signing key that was read in this transaction is gone")
	}
	if err != nil {
		return err
	}
	return s.bundleOf(ctx, tx, use, time.Time{})
}

// SigningKeys gives all of them, of every use, those that sign first before those that sign later.
func (s *Store) SigningKeys(ctx context.Context, q sqldb.DBTX) ([]SigningKey, error) {
	rows, err := db.New(q).ListSigningKeys(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]SigningKey, len(rows))
	for i, row := range rows {
		use := KeyUse(row.Purpose)
		der, err := s.box.Open(ctx, use.kind(), row.Kid, row.PrivateKey)
		if err != nil {
			return nil, damaged("signing key", err)
		}
		key, err := authn.ParseKey(redact.New(der))
		clear(der)
		if err != nil || authn.Thumbprint(&key.PublicKey) != row.Kid {
			return nil, damaged("signing key", err)
		}
		out[i] = SigningKey{
			Use: use, KeyID: row.Kid, Key: key, Publish: fromMicros(row.PublishTime), SignFrom: fromMicros(row.SignFrom),
			SignUntil: fromMicros(row.SignUntil), Remove: fromMicros(row.RemoveTime),
		}
	}
	return out, nil
}
