package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// The kinds of factor: an authenticator app, and a security key or passkey.
const (
	TOTP     = "totp"
	WebAuthn = "webauthn"
)

// Factor is what a user proves himself with beside his password.
type Factor struct {
	ID, UID, Kind string
	// Secret and Name are sealed. Of a security key Secret is the credential.
	Secret redact.Secret
	Name   string
	// Proved factors count; LastUsed is the step that was accepted last, of a security key its count of signatures.
	Proved         bool
	LastUsed       int64
	Created, Using time.Time
}

type factorRecord struct {
	Secret []byte `json:"secret"`
	Name   string `json:"name"`
}

// factorID binds a sealed secret to its row, its user and its kind.
func factorID(id, uid, kind string) string { return id + "/" + uid + "/" + kind }

// InsertFactor stores a factor that is not proved.
func (s *Store) InsertFactor(ctx context.Context, tx *sqldb.Tx, f Factor, now time.Time) error {
	plain, err := json.Marshal(factorRecord{Secret: f.Secret.Reveal(), Name: f.Name})
	if err != nil {
		return fault.Internal(err, "a factor could not be encoded")
	}
	defer clear(plain)
	sealed, err := s.box.Seal(ctx, kindFactor, factorID(f.ID, f.UID, f.Kind), plain)
	if err != nil {
		return err
	}
	return db.New(tx).InsertFactor(ctx, db.InsertFactorParams{FactorID: f.ID, UID: f.UID, Kind: f.Kind, Record: sealed, CreateTime: micros(now)})
}

// InsertKey stores a security key, which is proved by being made, with its first count. ok is false if the credential is registered, whoever's it is.
func (s *Store) InsertKey(ctx context.Context, tx *sqldb.Tx, f Factor, credential []byte, count uint32, now time.Time) (ok bool, err error) {
	mac, err := s.box.MAC(ctx, macCredential, "", hex.EncodeToString(credential))
	if err != nil {
		return false, err
	}
	q := db.New(tx)
	if n, err := q.CountWebAuthnCredential(ctx, mac); err != nil || n > 0 {
		return false, sqldb.Fault(err)
	}
	if err := s.InsertFactor(ctx, tx, f, now); err != nil {
		return false, err
	}
	if err := q.InsertWebAuthnCredential(ctx, db.InsertWebAuthnCredentialParams{Credential: mac, FactorID: f.ID}); err != nil {
		return false, err
	}
	return s.ProveFactor(ctx, tx, f.UID, f.ID, int64(count), now)
}

// Factors are those of a user, proved or not, the oldest first.
func (s *Store) Factors(ctx context.Context, q sqldb.DBTX, uid string) ([]Factor, error) {
	rows, err := db.New(q).ListFactors(ctx, uid)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Factor, 0, len(rows))
	for _, row := range rows {
		plain, err := s.box.Open(ctx, kindFactor, factorID(row.FactorID, row.UID, row.Kind), row.Record)
		if err != nil {
			return nil, damaged("factor", err)
		}
		var r factorRecord
		if err := json.Unmarshal(plain, &r); err != nil {
			return nil, damaged("factor", err)
		}
		clear(plain)
		out = append(out, Factor{
			ID: row.FactorID, UID: row.UID, Kind: row.Kind, Secret: redact.New(r.Secret), Name: r.Name, Proved: row.Proved != 0, LastUsed: row.LastUsed,
			Created: fromMicros(row.CreateTime), Using: fromMicros(row.UseTime),
		})
	}
	return out, nil
}

// ProveFactor makes a factor count, once; step is the one that its first code was of.
func (s *Store) ProveFactor(ctx context.Context, tx *sqldb.Tx, uid, id string, step int64, now time.Time) (bool, error) {
	n, err := db.New(tx).ProveFactor(ctx, db.ProveFactorParams{UID: uid, FactorID: id, LastUsed: step, UseTime: micros(now)})
	return n == 1, err
}

// UseFactor raises the last step of a factor; false if it was as high already: the code was used.
func (s *Store) UseFactor(ctx context.Context, tx *sqldb.Tx, uid, id string, step int64, now time.Time) (bool, error) {
	n, err := db.New(tx).UseFactor(ctx, db.UseFactorParams{UID: uid, FactorID: id, LastUsed: step, UseTime: micros(now)})
	return n == 1, err
}

// DeleteFactor removes one.
func (s *Store) DeleteFactor(ctx context.Context, tx *sqldb.Tx, uid, id string) (bool, error) {
	n, err := db.New(tx).DeleteFactor(ctx, db.DeleteFactorParams{UID: uid, FactorID: id})
	return n == 1, err
}

// DropUnproved removes a user's factors that were not proved.
func (s *Store) DropUnproved(ctx context.Context, tx *sqldb.Tx, uid string) error {
	_, err := db.New(tx).DeleteUnprovedFactorsOf(ctx, uid)
	return err
}

// DropFactors removes all of a user's factors and recovery codes, and starts his count of tries over.
func (s *Store) DropFactors(ctx context.Context, tx *sqldb.Tx, uid string) (removed int, err error) {
	q := db.New(tx)
	n, err := q.DeleteFactorsOf(ctx, uid)
	if err != nil {
		return 0, err
	}
	if err := q.DeleteRecoveryCodesOf(ctx, uid); err != nil {
		return 0, err
	}
	return int(n), q.ForgetFactorTries(ctx, uid)
}

// SetRecoveryCodes stores the digests of a user's recovery codes, in place of those before. Without codes there are none.
func (s *Store) SetRecoveryCodes(ctx context.Context, tx *sqldb.Tx, uid string, codes []redact.Secret) error {
	q := db.New(tx)
	if err := q.DeleteRecoveryCodesOf(ctx, uid); err != nil {
		return err
	}
	for _, c := range codes {
		if err := q.InsertRecoveryCode(ctx, db.InsertRecoveryCodeParams{UID: uid, Digest: digest(c)}); err != nil {
			return err
		}
	}
	return nil
}

// RecoveryCodes counts those that are left.
func (s *Store) RecoveryCodes(ctx context.Context, q sqldb.DBTX, uid string) (int, error) {
	n, err := db.New(q).CountRecoveryCodes(ctx, uid)
	return int(n), sqldb.Fault(err)
}

// UseRecoveryCode uses one up; false if there is none such.
func (s *Store) UseRecoveryCode(ctx context.Context, tx *sqldb.Tx, uid string, code redact.Secret) (bool, error) {
	n, err := db.New(tx).DeleteRecoveryCode(ctx, db.DeleteRecoveryCodeParams{UID: uid, Digest: digest(code)})
	return n == 1, err
}

// CountFactorTry counts a try of a user's and gives the number of those since the last right one, and until when no more are let through
// that come after failed ones before this.
func (s *Store) CountFactorTry(ctx context.Context, tx *sqldb.Tx, uid string) (failed int, wait time.Time, err error) {
	row, err := db.New(tx).CountFactorTry(ctx, uid)
	return int(row.Failed), fromMicros(row.WaitUntil), err
}

// SetFactorWait lets no try of a user through before a time.
func (s *Store) SetFactorWait(ctx context.Context, tx *sqldb.Tx, uid string, until time.Time) error {
	return db.New(tx).SetFactorWait(ctx, db.SetFactorWaitParams{UID: uid, WaitUntil: micros(until)})
}

// ForgetFactorTries starts a user's count over.
func (s *Store) ForgetFactorTries(ctx context.Context, tx *sqldb.Tx, uid string) error {
	return db.New(tx).ForgetFactorTries(ctx, uid)
}

// SignIn is a sign-in between password and factor.
type SignIn struct {
	UID string `json:"-"`
	// Checked is the digest of the stored hash that the password was checked against.
	Checked []byte `json:"checked"`
	// For is what the sign-in is to give.
	For string `json:"for"`
	// Enrol says that the user has no factor, and that one is required. Factor is the one that he enrols, "" before.
	Enrol  bool   `json:"enrol,omitempty"`
	Factor string `json:"factor,omitempty"`
	// Asked is what a security key was asked last, and has not answered.
	Asked []byte `json:"asked,omitempty"`
}

func signInID(id []byte, uid string) string { return hex.EncodeToString(id) + "/" + uid }

func (s *Store) sealSignIn(ctx context.Context, id []byte, in SignIn) ([]byte, error) {
	plain, err := json.Marshal(in)
	if err != nil {
		return nil, fault.Internal(err, "a sign-in could not be encoded")
	}
	return s.box.Seal(ctx, kindSignIn, signInID(id, in.UID), plain)
}

// InsertSignIn stores the digest of a state with what it stands for.
func (s *Store) InsertSignIn(ctx context.Context, tx *sqldb.Tx, state redact.Secret, in SignIn, now, expire time.Time) error {
	id := digest(state)
	sealed, err := s.sealSignIn(ctx, id, in)
	if err != nil {
		return err
	}
	return db.New(tx).InsertSignInState(ctx, db.InsertSignInStateParams{Digest: id, UID: in.UID, Record: sealed, CreateTime: micros(now), ExpireTime: micros(expire)})
}

// FindSignIn finds a sign-in by its state; ok is false for one that is over or used up.
func (s *Store) FindSignIn(ctx context.Context, q sqldb.DBTX, state redact.Secret, now time.Time) (in SignIn, tries int, ok bool, err error) {
	id := digest(state)
	row, err := db.New(q).GetSignInState(ctx, db.GetSignInStateParams{Digest: id, ExpireTime: micros(now)})
	if ok, err := found(err); !ok {
		return SignIn{}, 0, false, err
	}
	plain, err := s.box.Open(ctx, kindSignIn, signInID(id, row.UID), row.Record)
	if err != nil {
		return SignIn{}, 0, false, damaged("sign-in", err)
	}
	if err := json.Unmarshal(plain, &in); err != nil {
		return SignIn{}, 0, false, damaged("sign-in", err)
	}
	in.UID = row.UID
	return in, int(row.Tries), true, nil
}

// TrySignIn counts a try at a state; false if it had most already.
func (s *Store) TrySignIn(ctx context.Context, tx *sqldb.Tx, state redact.Secret, most int, now time.Time) (bool, error) {
	n, err := db.New(tx).CountSignInTry(ctx, db.CountSignInTryParams{Digest: digest(state), ExpireTime: micros(now), Tries: int64(most)})
	return n == 1, err
}

// ChangeSignIn changes what a state stands for.
func (s *Store) ChangeSignIn(ctx context.Context, tx *sqldb.Tx, state redact.Secret, in SignIn, now time.Time) error {
	id := digest(state)
	sealed, err := s.sealSignIn(ctx, id, in)
	if err != nil {
		return err
	}
	n, err := db.New(tx).ChangeSignInState(ctx, db.ChangeSignInStateParams{Digest: id, Record: sealed, ExpireTime: micros(now)})
	if err == nil && n != 1 {
		return fault.Aborted("the sign-in ended meanwhile; start again")
	}
	return err
}

// UseSignIn uses a state up; false if it was.
func (s *Store) UseSignIn(ctx context.Context, tx *sqldb.Tx, state redact.Secret) (bool, error) {
	n, err := db.New(tx).DeleteSignInState(ctx, digest(state))
	return n == 1, err
}

// DropSignIns ends a user's sign-ins that are between password and factor.
func (s *Store) DropSignIns(ctx context.Context, tx *sqldb.Tx, uid string) error {
	return db.New(tx).DeleteSignInStatesOf(ctx, uid)
}

// RequireMFA reports whether the installation wants a second factor of every user.
func (s *Store) RequireMFA(ctx context.Context, q sqldb.DBTX) (bool, error) {
	v, err := db.New(q).GetRequireMFA(ctx)
	return v != 0, sqldb.Fault(err)
}

// SetRequireMFA stores it.
func (s *Store) SetRequireMFA(ctx context.Context, tx *sqldb.Tx, on bool) error {
	v := int64(0)
	if on {
		v = 1
	}
	return db.New(tx).SetRequireMFA(ctx, v)
}

// EndSessionsBelow forgets all sessions but those of an acr, and returns those that still mattered.
func (s *Store) EndSessionsBelow(ctx context.Context, tx *sqldb.Tx, acr string, now time.Time) ([]string, error) {
	q := db.New(tx)
	sids, err := q.ListSessionsBelow(ctx, db.ListSessionsBelowParams{Acr: acr, ExpireTime: micros(now)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return sids, q.DeleteSessionsBelow(ctx, acr)
}
