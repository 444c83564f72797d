package store

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// A2: a credential is of one factor, its count only rises, its row is bound to its user, and it is free again when the factor goes.
func TestSecurityKeys(t *testing.T) {
	each(t, func(t *testing.T, s *Store, db *sqldb.DB) {
		ada, bob := insert(t, s, db, User, "ada"), insert(t, s, db, User, "bob")
		credential := []byte("credential of a key")
		add := func(id, uid string) (ok bool) {
			write(t, db, func(ctx context.Context, tx *sqldb.Tx) (err error) {
				ok, err = s.InsertKey(ctx, tx, Factor{ID: id, UID: uid, Kind: WebAuthn, Secret: redact.FromString(`{"id":"x"}`), Name: "blue", Created: start}, credential, 7, start)
				return err
			})
			return ok
		}
		if !add("fac_1", ada.UID) || add("fac_2", bob.UID) || add("fac_3", ada.UID) {
			t.Error("a credential is of two factors")
		}
		f, err := s.Factors(t.Context(), db.Reader(), ada.UID)
		if err != nil || len(f) != 1 || !f[0].Proved || f[0].LastUsed != 7 || f[0].Name != "blue" || f[0].Kind != WebAuthn || f[0].Secret.RevealString() != `{"id":"x"}` {
			t.Fatalf("%+v %v", f, err)
		}
		use := func(count int64) (ok bool) {
			write(t, db, func(ctx context.Context, tx *sqldb.Tx) (err error) {
				ok, err = s.UseFactor(ctx, tx, ada.UID, "fac_1", count, start)
				return err
			})
			return ok
		}
		if use(7) || use(6) || use(0) || !use(8) || use(8) {
			t.Error("a count that does not rise is taken, or one that does is not")
		}
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			if ok, err := s.DeleteFactor(ctx, tx, ada.UID, "fac_1"); err != nil || !ok {
				t.Error(ok, err)
			}
			return nil
		})
		if !add("fac_4", bob.UID) {
			t.Error("the credential of a factor that was removed is not free")
		}
		// A row that is moved to another user does not open.
		write(t, db, func(ctx context.Context, tx *sqldb.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE factors SET uid = $1 WHERE factor_id = 'fac_4'", ada.UID)
			return err
		})
		if _, err := s.Factors(t.Context(), db.Reader(), ada.UID); !fault.Is(err, codes.DataLoss) {
			t.Errorf("a moved row: %v", err)
		}
	})
}
