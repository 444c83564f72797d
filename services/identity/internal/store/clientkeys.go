package store

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// The kinds of client key.
const (
	PublicKey   = identityv1.ServicePrincipalCredential_KIND_PUBLIC_KEY
	Certificate = identityv1.ServicePrincipalCredential_KIND_CERTIFICATE
)

// ClientKey is a public key, or a certificate, whose private key a service principal holds.
type ClientKey struct {
	ID, UID string
	Kind    identityv1.ServicePrincipalCredential_Kind
	// Thumbprint is the JWK thumbprint of a public key (RFC 7638), x5t#S256 of a certificate.
	Thumbprint string
	// DER is a SubjectPublicKeyInfo, or an X.509 certificate.
	DER                    []byte
	CreateTime, ExpireTime time.Time
}

// Public is the key itself: *ecdsa.PublicKey, ed25519.PublicKey or *rsa.PublicKey.
func (k ClientKey) Public() (any, error) {
	if k.Kind == Certificate {
		c, err := x509.ParseCertificate(k.DER)
		if err != nil {
			return nil, damaged("certificate of a service principal", err)
		}
		return c.PublicKey, nil
	}
	key, err := x509.ParsePKIXPublicKey(k.DER)
	if err != nil {
		return nil, damaged("public key of a service principal", err)
	}
	return key, nil
}

// InsertClientKey stores a key; one that the service principal has already is ALREADY_EXISTS.
func (s *Store) InsertClientKey(ctx context.Context, tx *sqldb.Tx, k ClientKey) error {
	q := db.New(tx)
	n, err := q.CountClientKeys(ctx, db.CountClientKeysParams{UID: k.UID, Thumbprint: k.Thumbprint})
	if err != nil {
		return err
	}
	if n > 0 {
		return fault.AlreadyExists("the service principal has this key already")
	}
	return q.InsertClientKey(ctx, db.InsertClientKeyParams{
		KeyID: k.ID, UID: k.UID, Kind: int64(k.Kind), Thumbprint: k.Thumbprint, Der: k.DER, CreateTime: micros(k.CreateTime), ExpireTime: micros(k.ExpireTime),
	})
}

// ClientKeys are those of a service principal that are not over at now, the oldest first.
func (s *Store) ClientKeys(ctx context.Context, q sqldb.DBTX, uid string, now time.Time) ([]ClientKey, error) {
	rows, err := db.New(q).ListClientKeys(ctx, db.ListClientKeysParams{UID: uid, ExpireTime: micros(now)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]ClientKey, 0, len(rows))
	for _, r := range rows {
		out = append(out, ClientKey{
			ID: r.KeyID, UID: r.UID, Kind: identityv1.ServicePrincipalCredential_Kind(r.Kind), Thumbprint: r.Thumbprint, DER: r.Der,
			CreateTime: fromMicros(r.CreateTime), ExpireTime: fromMicros(r.ExpireTime),
		})
	}
	return out, nil
}

// ClientSecrets are those of a service principal that are not over at now, the oldest first.
func (s *Store) ClientSecrets(ctx context.Context, q sqldb.DBTX, uid string, now time.Time) ([]ClientSecret, error) {
	rows, err := db.New(q).ListClientSecrets(ctx, db.ListClientSecretsParams{UID: uid, ExpireTime: micros(now)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]ClientSecret, 0, len(rows))
	for _, r := range rows {
		out = append(out, ClientSecret{ID: r.SecretID, UID: r.UID, CreateTime: fromMicros(r.CreateTime), ExpireTime: fromMicros(r.ExpireTime)})
	}
	return out, nil
}

// HasCredential reports whether a service principal has the secret or key with this id, and it is not over at now.
func (s *Store) HasCredential(ctx context.Context, q sqldb.DBTX, uid, id string, now time.Time) (bool, error) {
	secrets, err := s.ClientSecrets(ctx, q, uid, now)
	if err != nil || slices.ContainsFunc(secrets, func(c ClientSecret) bool { return c.ID == id }) {
		return err == nil, err
	}
	keys, err := s.ClientKeys(ctx, q, uid, now)
	return err == nil && slices.ContainsFunc(keys, func(k ClientKey) bool { return k.ID == id }), err
}

// DeleteClientCredential removes one secret or key of a service principal; ok is false if it has none of this id.
func (s *Store) DeleteClientCredential(ctx context.Context, tx *sqldb.Tx, uid, id string) (ok bool, err error) {
	q := db.New(tx)
	n, err := q.DeleteClientSecret(ctx, db.DeleteClientSecretParams{UID: uid, SecretID: id})
	if err != nil || n > 0 {
		return n > 0, err
	}
	n, err = q.DeleteClientKey(ctx, db.DeleteClientKeyParams{UID: uid, KeyID: id})
	return n > 0, err
}
