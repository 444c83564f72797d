package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

const (
	kindApplication = "application"
	kindCode        = "authorization-code"
	kindSuccessor   = "refresh-successor"
	macApplication  = "application-name"
	macUserCode     = "device-user-code"
)

// Application is a client of the OpenID provider.
type Application struct {
	UID          string    `json:"-"`
	ID           string    `json:"id"`
	DisplayName  string    `json:"display_name"`
	RedirectURIs []string  `json:"redirect_uris"`
	LogoutURIs   []string  `json:"logout_uris"`
	Confidential bool      `json:"confidential"`
	GrantTypes   []string  `json:"grant_types"`
	APIAccess    bool      `json:"api_access"`
	CreateTime   time.Time `json:"-"`
}

// Name is the resource name.
func (a Application) Name() string { return "applications/" + a.ID }

// InsertApplication stores a new application. An id that is taken is ALREADY_EXISTS.
func (s *Store) InsertApplication(ctx context.Context, tx *sqldb.Tx, a Application) error {
	mac, err := s.box.MAC(ctx, macApplication, "", a.ID)
	if err != nil {
		return err
	}
	q := db.New(tx)
	if _, err := q.FindApplication(ctx, mac); err == nil {
		return fault.AlreadyExists("%s exists; choose another id", a.Name())
	} else if _, err := found(err); err != nil {
		return err
	}
	plain, err := json.Marshal(a)
	if err != nil {
		return fault.Internal(err, "an application could not be encoded")
	}
	sealed, err := s.box.Seal(ctx, kindApplication, a.UID, plain)
	if err != nil {
		return err
	}
	return q.InsertApplication(ctx, db.InsertApplicationParams{UID: a.UID, NameMac: mac, Record: sealed, CreateTime: micros(a.CreateTime)})
}

func (s *Store) openApplication(ctx context.Context, uid string, record []byte, created int64) (Application, error) {
	plain, err := s.box.Open(ctx, kindApplication, uid, record)
	if err != nil {
		return Application{}, damaged("application", err)
	}
	var a Application
	if err := json.Unmarshal(plain, &a); err != nil {
		return Application{}, damaged("application", err)
	}
	a.UID, a.CreateTime = uid, fromMicros(created)
	return a, nil
}

// Application finds one by its uid, the client_id.
func (s *Store) Application(ctx context.Context, q sqldb.DBTX, uid string) (Application, bool, error) {
	row, err := db.New(q).GetApplication(ctx, uid)
	if ok, err := found(err); !ok {
		return Application{}, false, err
	}
	a, err := s.openApplication(ctx, row.UID, row.Record, row.CreateTime)
	return a, err == nil, err
}

// FindApplication finds one by the id in its name.
func (s *Store) FindApplication(ctx context.Context, q sqldb.DBTX, id string) (Application, bool, error) {
	mac, err := s.box.MAC(ctx, macApplication, "", id)
	if err != nil {
		return Application{}, false, err
	}
	row, err := db.New(q).FindApplication(ctx, mac)
	if ok, err := found(err); !ok {
		return Application{}, false, err
	}
	a, err := s.openApplication(ctx, row.UID, row.Record, row.CreateTime)
	return a, err == nil, err
}

// ListApplications gives up to n, the oldest first.
func (s *Store) ListApplications(ctx context.Context, q sqldb.DBTX, after Cursor, n int) ([]Application, error) {
	rows, err := db.New(q).ListApplications(ctx, db.ListApplicationsParams{Limit: int32(n), AfterTime: micros(after.CreateTime), AfterUID: after.UID})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Application, len(rows))
	for i, row := range rows {
		if out[i], err = s.openApplication(ctx, row.UID, row.Record, row.CreateTime); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// DeleteApplication removes an application with its secrets and keys, and gives the sessions of what it was given.
func (s *Store) DeleteApplication(ctx context.Context, tx *sqldb.Tx, uid string) (sids []string, err error) {
	q := db.New(tx)
	if sids, err = q.ListGrantsOfClient(ctx, uid); err != nil {
		return nil, err
	}
	for _, sid := range sids {
		if err := q.DeleteSession(ctx, sid); err != nil {
			return nil, err
		}
	}
	_, err = q.DeleteApplication(ctx, uid)
	return sids, err
}

// InsertApplicationSecret stores the digest of a secret.
func (s *Store) InsertApplicationSecret(ctx context.Context, tx *sqldb.Tx, c ClientSecret, secret redact.Secret, now time.Time) error {
	return db.New(tx).InsertApplicationSecret(ctx, db.InsertApplicationSecretParams{
		SecretID: c.ID, UID: c.UID, Digest: digest(secret), CreateTime: micros(now), ExpireTime: micros(c.ExpireTime),
	})
}

// CountApplicationSecrets counts those of an application that are not over.
func (s *Store) CountApplicationSecrets(ctx context.Context, q sqldb.DBTX, uid string, now time.Time) (int, error) {
	n, err := db.New(q).CountApplicationSecrets(ctx, db.CountApplicationSecretsParams{UID: uid, ExpireTime: micros(now)})
	return int(n), sqldb.Fault(err)
}

// FindApplicationSecret finds a secret by its digest, whosesoever it is and whether it is over or not.
func (s *Store) FindApplicationSecret(ctx context.Context, q sqldb.DBTX, secret redact.Secret) (ClientSecret, bool, error) {
	row, err := db.New(q).FindApplicationSecret(ctx, digest(secret))
	if ok, err := found(err); !ok {
		return ClientSecret{}, false, err
	}
	return ClientSecret{ID: row.SecretID, UID: row.UID, ExpireTime: fromMicros(row.ExpireTime)}, true, nil
}

// PutApplicationKey stores a public key of an application, as SubjectPublicKeyInfo; again with the same key it sets its end.
func (s *Store) PutApplicationKey(ctx context.Context, tx *sqldb.Tx, uid, kid string, spki []byte, now, expire time.Time) error {
	return db.New(tx).PutApplicationKey(ctx, db.PutApplicationKeyParams{UID: uid, Kid: kid, PublicKey: spki, CreateTime: micros(now), ExpireTime: micros(expire)})
}

// ApplicationKey finds a key of an application that is not over.
func (s *Store) ApplicationKey(ctx context.Context, q sqldb.DBTX, uid, kid string, now time.Time) (spki []byte, ok bool, err error) {
	row, err := db.New(q).GetApplicationKey(ctx, db.GetApplicationKeyParams{UID: uid, Kid: kid})
	if ok, err := found(err); !ok {
		return nil, false, err
	}
	return row.PublicKey, row.ExpireTime > micros(now), nil
}

// CountApplicationKeys counts the keys of an application that are not over.
func (s *Store) CountApplicationKeys(ctx context.Context, q sqldb.DBTX, uid string, now time.Time) (int, error) {
	n, err := db.New(q).CountApplicationKeys(ctx, db.CountApplicationKeysParams{UID: uid, ExpireTime: micros(now)})
	return int(n), sqldb.Fault(err)
}

// UseAssertion uses up an assertion of a client; first is false if it was used before.
func (s *Store) UseAssertion(ctx context.Context, tx *sqldb.Tx, client, jti string, expire time.Time) (first bool, err error) {
	sum := sha256.Sum256([]byte(client + "\x00" + jti))
	n, err := db.New(tx).UseAssertion(ctx, db.UseAssertionParams{Digest: sum[:], ExpireTime: micros(expire)})
	return n == 1, err
}
