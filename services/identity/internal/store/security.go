package store

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store/db"
)

// The kinds of revocation in the table.
const (
	byID      = "jti"
	bySession = "sid"
	byRun     = "run"
	byKey     = "key"
	bySubject = "subject"
)

const (
	// keepChanges is how long a change can be sent on by itself; who was away for longer starts over.
	keepChanges = 10 * time.Minute
	// keepUnproved is how long a factor that was enrolled waits to be proved.
	keepUnproved = time.Hour
	// keepLeaves is how long a certificate that has ended is remembered.
	keepLeaves = 24 * time.Hour
	// perMessage bounds how much of a full state stands in one message, and changesAtOnce how many changes are read at once.
	perMessage    = 500
	changesAtOnce = 256
)

// Change stores revocations and tells of the groups whose members have changed in this transaction, under the next number of
// the security stream. With neither it does nothing.
func (s *Store) Change(ctx context.Context, tx *sqldb.Tx, now time.Time, revoked []*identityv1.Revocation, groups []string) error {
	if len(revoked) == 0 && len(groups) == 0 {
		return nil
	}
	return s.change(ctx, tx, now, &identityv1.WatchSecurityResponse{Revocations: revoked}, groups)
}

// ChangeKeys tells that the signing keys are others, in this transaction, and revokes what those named have signed.
func (s *Store) ChangeKeys(ctx context.Context, tx *sqldb.Tx, now time.Time, revoked []*identityv1.Revocation) error {
	return s.change(ctx, tx, now, &identityv1.WatchSecurityResponse{KeysChanged: true, Revocations: revoked}, nil)
}

func (s *Store) change(ctx context.Context, tx *sqldb.Tx, now time.Time, m *identityv1.WatchSecurityResponse, groups []string) error {
	q, revoked := db.New(tx), m.GetRevocations()
	for _, r := range revoked {
		kind, value := revocationKey(r)
		if value == "" {
			return fault.Internal(nil, "a revocation of nothing")
		}
		if err := q.PutRevocation(ctx, db.PutRevocationParams{
			Kind: kind, Value: value, IssuedUntil: stampMicros(r.GetIssuedUntil()), ExpireTime: stampMicros(r.GetExpireTime()),
			DeliverUntil: stampMicros(r.GetDeliverUntil()),
		}); err != nil {
			return err
		}
	}
	for _, g := range groups {
		members, err := q.ListMembers(ctx, g)
		if err != nil {
			return err
		}
		m.Groups = append(m.Groups, &identityv1.GroupMembers{GroupUid: g, MemberUids: members})
	}
	seq, err := q.NextSecuritySeq(ctx)
	if err != nil {
		return err
	}
	m.Seq = uint64(seq)
	raw, err := proto.Marshal(m)
	if err != nil {
		return fault.Internal(err, "a security change could not be encoded")
	}
	if err := q.InsertSecurityChange(ctx, db.InsertSecurityChangeParams{Seq: seq, Message: raw, CreateTime: micros(now)}); err != nil {
		return err
	}
	return tx.Signal(ctx, Changed)
}

// Changed is the topic that is signalled with each change of the security state.
const Changed = "security"

func stampMicros(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return t.AsTime().UnixMicro()
}

func revocationKey(r *identityv1.Revocation) (kind, value string) {
	switch {
	case r.GetJti() != "":
		return byID, r.GetJti()
	case r.GetSid() != "":
		return bySession, r.GetSid()
	case r.GetRunUid() != "":
		return byRun, r.GetRunUid()
	case r.GetKeyId() != "":
		return byKey, r.GetKeyId()
	default:
		return bySubject, r.GetSubject()
	}
}

func revocation(row db.Revocation) *identityv1.Revocation {
	r := &identityv1.Revocation{ExpireTime: timestamppb.New(fromMicros(row.ExpireTime))}
	switch row.Kind {
	case byID:
		r.Jti = row.Value
	case bySession:
		r.Sid = row.Value
	case byRun:
		r.RunUid = row.Value
		if row.DeliverUntil > 0 {
			r.DeliverUntil = timestamppb.New(fromMicros(row.DeliverUntil))
		}
	case byKey:
		r.KeyId = row.Value
	case bySubject:
		r.Subject = row.Value
		r.IssuedUntil = timestamppb.New(fromMicros(row.IssuedUntil))
	}
	return r
}

// FullState gives the whole security state as the messages of a stream: the first resets, the last is complete. q must be a
// transaction, so that all of it is of one moment.
func (s *Store) FullState(ctx context.Context, q *sqldb.Tx, now time.Time) ([]*identityv1.WatchSecurityResponse, error) {
	d := db.New(q)
	head, err := d.GetInstallation(ctx)
	if err != nil {
		return nil, err
	}
	revocations, err := d.ListRevocations(ctx, micros(now))
	if err != nil {
		return nil, err
	}
	memberships, err := d.ListMemberships(ctx)
	if err != nil {
		return nil, err
	}
	var groups []*identityv1.GroupMembers
	for _, m := range memberships {
		if n := len(groups); n == 0 || groups[n-1].GetGroupUid() != m.GroupUID {
			groups = append(groups, &identityv1.GroupMembers{GroupUid: m.GroupUID})
		}
		last := groups[len(groups)-1]
		last.MemberUids = append(last.MemberUids, m.MemberUID)
	}
	seq := uint64(head.SecuritySeq)
	out := []*identityv1.WatchSecurityResponse{{Seq: seq, Reset_: true}}
	room := perMessage
	next := func(size int) *identityv1.WatchSecurityResponse {
		if room < size {
			out = append(out, &identityv1.WatchSecurityResponse{Seq: seq})
			room = perMessage
		}
		room -= size
		return out[len(out)-1]
	}
	for _, r := range revocations {
		m := next(1)
		m.Revocations = append(m.Revocations, revocation(r))
	}
	for _, g := range groups {
		m := next(1 + len(g.GetMemberUids())/8)
		m.Groups = append(m.Groups, g)
	}
	out[len(out)-1].Complete = true
	return out, nil
}

// Changes gives what came after seq, in order, at most some hundreds at once. ok is false if the record of it is gone: the
// receiver needs the full state.
func (s *Store) Changes(ctx context.Context, q *sqldb.Tx, seq uint64) (out []*identityv1.WatchSecurityResponse, ok bool, err error) {
	d := db.New(q)
	head, err := d.GetInstallation(ctx)
	if err != nil {
		return nil, false, err
	}
	if uint64(head.SecuritySeq) == seq {
		return nil, true, nil
	}
	rows, err := d.ListSecurityChanges(ctx, db.ListSecurityChangesParams{Seq: int64(seq), Limit: changesAtOnce})
	if err != nil {
		return nil, false, err
	}
	for i, row := range rows {
		if uint64(row.Seq) != seq+1+uint64(i) {
			return nil, false, nil
		}
		m := new(identityv1.WatchSecurityResponse)
		if err := proto.Unmarshal(row.Message, m); err != nil {
			return nil, false, damaged("security change", err)
		}
		m.Seq = uint64(row.Seq)
		out = append(out, m)
	}
	return out, len(out) > 0, nil
}

// IssuedUntil is the moment up to which tokens of a subject are revoked, the zero time if none are.
func (s *Store) IssuedUntil(ctx context.Context, q sqldb.DBTX, subject string) (time.Time, error) {
	row, err := db.New(q).GetRevocation(ctx, db.GetRevocationParams{Kind: bySubject, Value: subject})
	if ok, err := found(err); !ok {
		return time.Time{}, err
	}
	return fromMicros(row.IssuedUntil), nil
}

// Number is the number of the last change of the security state.
func (s *Store) Number(ctx context.Context, tx *sqldb.Tx) (uint64, error) {
	head, err := db.New(tx).GetInstallation(ctx)
	return uint64(head.SecuritySeq), err
}

// KeyRevoked reports whether what a signing key has signed was revoked.
func (s *Store) KeyRevoked(ctx context.Context, q sqldb.DBTX, kid string) (bool, error) {
	_, err := db.New(q).GetRevocation(ctx, db.GetRevocationParams{Kind: byKey, Value: kid})
	return found(err)
}

// RunRevoked reports whether the tokens of a run were revoked.
func (s *Store) RunRevoked(ctx context.Context, q sqldb.DBTX, runUID string, now time.Time) (bool, error) {
	row, err := db.New(q).GetRevocation(ctx, db.GetRevocationParams{Kind: byRun, Value: runUID})
	if ok, err := found(err); !ok {
		return false, err
	}
	return row.ExpireTime > micros(now), nil
}

// Purge deletes what no longer matters at the time now.
func (s *Store) Purge(ctx context.Context, tx *sqldb.Tx, now time.Time) error {
	q, at := db.New(tx), micros(now)
	for _, purge := range []func(context.Context, int64) (int64, error){
		q.DeleteExpiredSessions, q.DeleteExpiredRevocations, q.DeleteExpiredJoinTokens, q.DeleteExpiredClientSecrets,
		q.DeleteExpiredClientKeys, q.DeleteKeptAdministrators, q.DeleteExpiredSignInStates,
		q.DeleteExpiredCodes, q.DeleteExpiredRefresh, q.DeleteExpiredDevices, q.DeleteExpiredAssertions, q.DeleteExpiredHomeSessions, q.DeleteExpiredApplicationSecrets, q.DeleteExpiredApplicationKeys,
	} {
		if _, err := purge(ctx, at); err != nil {
			return err
		}
	}
	if _, err := q.DeleteUnprovedFactors(ctx, micros(now.Add(-keepUnproved))); err != nil {
		return err
	}
	// Longer than a connection that was made with one can last.
	if _, err := q.DeleteOldLeaves(ctx, micros(now.Add(-keepLeaves))); err != nil {
		return err
	}
	_, err := q.DeleteOldSecurityChanges(ctx, micros(now.Add(-keepChanges)))
	return err
}
