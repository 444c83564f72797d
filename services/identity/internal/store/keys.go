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

// digest is how a secret of 256 random bits is stored.
func digest(secret redact.Secret) []byte {
	sum := sha256.Sum256(secret.Reveal())
	return sum[:]
}

// SigningKey signs tokens from SignFrom until SignUntil, and is published from Publish until Remove; a zero end is none.
type SigningKey struct {
	KeyID                                string
	Key                                  *ecdsa.PrivateKey
	Publish, SignFrom, SignUntil, Remove time.Time
}

// InsertSigningKey stores a key, sealed.
func (s *Store) InsertSigningKey(ctx context.Context, tx *sqldb.Tx, k SigningKey) error {
	der, err := authn.MarshalKey(k.Key)
	if err != nil {
		return fault.Internal(err, "a signing key could not be encoded")
	}
	defer der.Wipe()
	sealed, err := s.box.Seal(ctx, kindSigningKey, k.KeyID, der.Reveal())
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&k.Key.PublicKey)
	if err != nil {
		return fault.Internal(err, "a signing key could not be encoded")
	}
	return db.New(tx).InsertSigningKey(ctx, db.InsertSigningKeyParams{
		Kid: k.KeyID, PrivateKey: sealed, PublicKey: public, PublishTime: micros(k.Publish), SignFrom: micros(k.SignFrom),
		SignUntil: micros(k.SignUntil), RemoveTime: micros(k.Remove),
	})
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
func (s *Store) DeleteSigningKey(ctx context.Context, tx *sqldb.Tx, kid string) error {
	n, err := db.New(tx).DeleteSigningKey(ctx, kid)
	if err == nil && n != 1 {
		return fault.Internal(nil, "a signing key that was read in this transaction is gone")
	}
	return err
}

// SigningKeys gives all of them, those that sign first before those that sign later.
func (s *Store) SigningKeys(ctx context.Context, q sqldb.DBTX) ([]SigningKey, error) {
	rows, err := db.New(q).ListSigningKeys(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]SigningKey, len(rows))
	for i, row := range rows {
		der, err := s.box.Open(ctx, kindSigningKey, row.Kid, row.PrivateKey)
		if err != nil {
			return nil, damaged("signing key", err)
		}
		key, err := authn.ParseKey(redact.New(der))
		clear(der)
		if err != nil || authn.Thumbprint(&key.PublicKey) != row.Kid {
			return nil, damaged("signing key", err)
		}
		out[i] = SigningKey{
			KeyID: row.Kid, Key: key, Publish: fromMicros(row.PublishTime), SignFrom: fromMicros(row.SignFrom),
			SignUntil: fromMicros(row.SignUntil), Remove: fromMicros(row.RemoveTime),
		}
	}
	return out, nil
}
