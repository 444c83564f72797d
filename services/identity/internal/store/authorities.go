package store

import (
	"context"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/redact"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/rotation"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// Authority is a root of the mesh with its key.
type Authority struct {
	rotation.Root
	DER     []byte
	Key     redact.Secret // PKCS #8; the caller wipes it
	Counted bool          // what it has signed stands in the leaves
}

// Plans are the roots as the rules of their rotation see them.
func Plans(as []Authority) []rotation.Root {
	out := make([]rotation.Root, len(as))
	for i, a := range as {
		out[i] = a.Root
	}
	return out
}

// Wipe clears the keys.
func Wipe(as []Authority) {
	for i := range as {
		as[i].Key.Wipe()
	}
}

// InsertAuthority stores a root, its key sealed.
func (s *Store) InsertAuthority(ctx context.Context, tx *sqldb.Tx, a Authority) error {
	sealed, err := s.box.Seal(ctx, kindAuthority, a.Pin, a.Key.Reveal())
	if err != nil {
		return err
	}
	if err := db.New(tx).InsertAuthority(ctx, db.InsertAuthorityParams{Pin: a.Pin, Root: a.DER, PrivateKey: sealed, Phase: string(a.Phase), CreateTime: micros(a.Made), SinceTime: micros(a.Since), Manual: flag(a.Manual)}); err != nil {
		return err
	}
	return s.nextBundle(ctx, tx, time.Time{})
}

// Authorities gives all roots, the oldest first.
func (s *Store) Authorities(ctx context.Context, q sqldb.DBTX) ([]Authority, error) {
	rows, err := db.New(q).ListAuthorities(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Authority, 0, len(rows))
	for _, row := range rows {
		key, err := s.box.Open(ctx, kindAuthority, row.Pin, row.PrivateKey)
		if err != nil {
			Wipe(out)
			return nil, damaged("authority", err)
		}
		out = append(out, Authority{
			Root: rotation.Root{
				Pin: row.Pin, Phase: rotation.Phase(row.Phase), Signed: fromMicros(row.SignedTime), Quiet: fromMicros(row.QuietTime),
				Made: fromMicros(row.CreateTime), Since: fromMicros(row.SinceTime), Manual: row.Manual == 1,
			},
			DER: row.Root, Key: redact.New(key), Counted: row.Counted == 1,
		})
	}
	return out, nil
}

// SetAuthorities writes what has changed from old to next, which are the same roots in the same order. Those that stop signing are written
// first: one signs at any time.
func (s *Store) SetAuthorities(ctx context.Context, tx *sqldb.Tx, old, next []rotation.Root) error {
	for _, active := range []bool{false, true} {
		for i, r := range next {
			if r == old[i] || (r.Phase == rotation.Active) != active {
				continue
			}
			n, err := db.New(tx).SetAuthority(ctx, db.SetAuthorityParams{Pin: r.Pin, Phase: string(r.Phase), SignedTime: micros(r.Signed), QuietTime: micros(r.Quiet), SinceTime: micros(r.Since), Manual: flag(r.Manual)})
			if err != nil {
				return err
			}
			if n != 1 {
				return fault.Internal(nil, "a root that was read in this transaction is gone")
			}
		}
	}
	return nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// RevokeAuthority removes a root and its key, and remembers that it was there. Who holds leaves of it stays known: he may still believe it.
func (s *Store) RevokeAuthority(ctx context.Context, tx *sqldb.Tx, pin string, now time.Time) error {
	q := db.New(tx)
	n, err := q.DeleteAuthority(ctx, pin)
	if err == nil && n != 1 {
		return fault.Internal(nil, "a root that was read in this transaction is gone")
	}
	if err != nil {
		return err
	}
	if err := q.InsertRevokedAuthority(ctx, db.InsertRevokedAuthorityParams{Pin: pin, RevokeTime: micros(now)}); err != nil {
		return err
	}
	return s.nextBundle(ctx, tx, time.Time{})
}

// RevokedAuthority reports whether a root was one of this installation and is revoked.
func (s *Store) RevokedAuthority(ctx context.Context, q sqldb.DBTX, pin string) (bool, error) {
	n, err := db.New(q).CountRevokedAuthorities(ctx, pin)
	return n > 0, sqldb.Fault(err)
}

// Signs reports whether a root signs.
func (s *Store) Signs(ctx context.Context, q sqldb.DBTX, pin string) (bool, error) {
	p, err := db.New(q).GetAuthorityPhase(ctx, pin)
	if ok, err := found(err); !ok {
		return false, err
	}
	return rotation.Phase(p) == rotation.Active, nil
}

// uncounted holds what a root has signed before leaves were written down.
const uncounted = "earlier"

// CountAuthority notes that a root, which has signed what was not written down, may have leaves in use until end.
func (s *Store) CountAuthority(ctx context.Context, tx *sqldb.Tx, pin string, end time.Time) error {
	q := db.New(tx)
	if err := q.CountAuthority(ctx, pin); err != nil {
		return err
	}
	return q.PutLeaf(ctx, db.PutLeafParams{Holder: uncounted, Pin: pin, Bundle: pin, ExpireTime: micros(end)})
}

// PutLeaf notes a certificate. With replaces it takes the place of every other one of its holder, whose roots are left by him now.
func (s *Store) PutLeaf(ctx context.Context, tx *sqldb.Tx, l rotation.Leaf, replaces bool, now time.Time) error {
	q := db.New(tx)
	if replaces {
		if err := q.QuietAuthorities(ctx, db.QuietAuthoritiesParams{QuietTime: micros(now), Holder: l.Holder, Pin: l.Pin}); err != nil {
			return err
		}
		if err := q.DeleteOtherLeaves(ctx, db.DeleteOtherLeavesParams{Holder: l.Holder, Pin: l.Pin}); err != nil {
			return err
		}
	}
	return q.PutLeaf(ctx, db.PutLeafParams{Holder: l.Holder, Pin: l.Pin, Bundle: strings.Join(l.Bundle, " "), ExpireTime: micros(l.Expire)})
}

// Leaves gives the certificates that are remembered, also those that have ended lately.
func (s *Store) Leaves(ctx context.Context, q sqldb.DBTX) ([]rotation.Leaf, error) {
	rows, err := db.New(q).ListLeaves(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]rotation.Leaf, len(rows))
	for i, row := range rows {
		out[i] = rotation.Leaf{Holder: row.Holder, Pin: row.Pin, Bundle: strings.Fields(row.Bundle), Expire: fromMicros(row.ExpireTime)}
	}
	return out, nil
}
