package store

import (
	"context"
	"strings"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// Open is a session that is not over, as its user is shown it.
type Open struct {
	SID             string
	Created, Expire time.Time
	AuthTime        time.Time
	AMR             []string
	// Browser says that it is a browser's, and Grant what an application was given; neither is one by password.
	Browser bool
	Grant   *Grant
	// Refreshed is when a refresh token of it was used last, zero if none was.
	Refreshed time.Time
}

// OpenSessions gives up to n sessions of a user that are not over, newest first, older than the one at before; a zero cursor is the first page.
func (s *Store) OpenSessions(ctx context.Context, q sqldb.DBTX, uid string, now time.Time, before Cursor, n int) ([]Open, error) {
	at := int64(1<<63 - 1)
	if before.UID != "" {
		at = micros(before.CreateTime)
	}
	queries := db.New(q)
	rows, err := queries.ListSessionsNewest(ctx, db.ListSessionsNewestParams{UID: uid, ExpireTime: micros(now), BeforeTime: at, BeforeSid: before.UID, Limit: int32(n)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Open, 0, len(rows))
	for _, row := range rows {
		o := Open{SID: row.Sid, Created: fromMicros(row.CreateTime), Expire: fromMicros(row.ExpireTime), AuthTime: fromMicros(row.AuthTime), AMR: strings.Fields(row.Amr)}
		found, err := queries.IsBrowser(ctx, row.Sid)
		if err != nil {
			return nil, sqldb.Fault(err)
		}
		o.Browser = found > 0
		if g, ok, err := s.Grant(ctx, q, row.Sid, now); err != nil {
			return nil, err
		} else if ok {
			o.Grant = &g
			used, err := queries.LastRefresh(ctx, row.Sid)
			if err != nil {
				return nil, sqldb.Fault(err)
			}
			if used > 0 {
				o.Refreshed = fromMicros(used)
			}
		}
		out = append(out, o)
	}
	return out, nil
}

// CountSessions is how many sessions of a principal are not over.
func (s *Store) CountSessions(ctx context.Context, q sqldb.DBTX, uid string, now time.Time) (int, error) {
	n, err := db.New(q).CountSessionsOf(ctx, db.CountSessionsOfParams{UID: uid, ExpireTime: micros(now)})
	return int(n), sqldb.Fault(err)
}

// EndSessionsBut forgets the sessions of a principal but those that are named, and returns those that still mattered.
func (s *Store) EndSessionsBut(ctx context.Context, tx *sqldb.Tx, uid string, kept []string, now time.Time) (sids []string, err error) {
	q := db.New(tx)
	rows, err := q.ListSessionsOf(ctx, db.ListSessionsOfParams{UID: uid, ExpireTime: micros(now)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
next:
	for _, row := range rows {
		for _, k := range kept {
			if row.Sid == k {
				continue next
			}
		}
		if err := q.DeleteSession(ctx, row.Sid); err != nil {
			return nil, sqldb.Fault(err)
		}
		sids = append(sids, row.Sid)
	}
	return sids, nil
}

// GroupsWith are the uids of the groups that a principal is a direct member of, in order.
func (s *Store) GroupsWith(ctx context.Context, q sqldb.DBTX, uid string) ([]string, error) {
	out, err := db.New(q).ListGroupsWith(ctx, uid)
	return out, sqldb.Fault(err)
}

// MembersAfter gives up to n uids of a group's direct members, in order, that come after one.
func (s *Store) MembersAfter(ctx context.Context, q sqldb.DBTX, group, after string, n int) ([]string, error) {
	out, err := db.New(q).ListMembersAfter(ctx, db.ListMembersAfterParams{GroupUID: group, MemberUID: after, Limit: int32(n)})
	return out, sqldb.Fault(err)
}
