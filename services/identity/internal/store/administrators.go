package store

import (
	"context"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// LockInstallation makes changes that must not happen side by side wait for each other: it takes the row that Change takes.
func (s *Store) LockInstallation(ctx context.Context, tx *sqldb.Tx) error {
	return db.New(tx).LockInstallation(ctx)
}

// Reach walks from users and groups to the enabled users of our own that they are or have in them, at whatever depth, and calls each once with the
// uid that led to him first. It ends when each returns false.
func (s *Store) Reach(ctx context.Context, q sqldb.DBTX, uids []string, each func(user, from string) bool) error {
	type at struct{ uid, from string }
	seen := make(map[string]bool)
	var next []at
	for _, uid := range uids {
		next = append(next, at{uid, uid})
	}
	rows := db.New(q)
	for len(next) > 0 {
		here := next[0]
		next = next[1:]
		if seen[here.uid] {
			continue
		}
		seen[here.uid] = true
		p, err := rows.GetPrincipal(ctx, here.uid)
		if ok, err := found(err); err != nil {
			return err
		} else if !ok {
			continue // deleted
		}
		switch p.Kind {
		case int64(User):
			if p.Disabled != 0 {
				continue
			}
			// Whether he gets in is for another installation to say: he does not count.
			if n, err := rows.CountHomesOf(ctx, here.uid); err != nil {
				return sqldb.Fault(err)
			} else if n == 0 && !each(here.uid, here.from) {
				return nil
			}
		case int64(Group):
			members, err := rows.ListMembers(ctx, here.uid)
			if err != nil {
				return sqldb.Fault(err)
			}
			for _, m := range members {
				next = append(next, at{m, here.from})
			}
		}
	}
	return nil
}

// Kept is a user who stays an administrator for a while, and what makes him one: himself, or a group.
type Kept struct{ User, Via string }

// KeepAdministrator stores one.
func (s *Store) KeepAdministrator(ctx context.Context, tx *sqldb.Tx, k Kept, until time.Time) error {
	return db.New(tx).KeepAdministrator(ctx, db.KeepAdministratorParams{UID: k.User, Via: k.Via, ExpireTime: micros(until)})
}

// KeptAdministrators are those whose time is not over.
func (s *Store) KeptAdministrators(ctx context.Context, q sqldb.DBTX, now time.Time) ([]Kept, error) {
	rows, err := db.New(q).ListKeptAdministrators(ctx, micros(now))
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Kept, 0, len(rows))
	for _, r := range rows {
		out = append(out, Kept{User: r.UID, Via: r.Via})
	}
	return out, nil
}
