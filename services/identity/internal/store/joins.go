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

// The kinds of join token. One kind never opens what another does.
const (
	JoinService = "service"
	JoinAgent   = "agent"
	JoinBrowser = "browser"
	// JoinPassword lets a user set his password; Submitter is the user.
	JoinPassword = "password"
)

// Join is what a join token lets in: an instance of a service, the agent of a run, a browser into a session, or a user to his password.
type Join struct {
	Kind string
	// Of a service. Of a browser, Instance is the session.
	Service, Instance string
	// Of an agent. Of a browser, Submitter is the principal.
	Agent, Run, Workspace, Submitter string
	Actions                          []string
}

// InsertJoin stores the digest of a join token with what it lets in.
func (s *Store) InsertJoin(ctx context.Context, tx *sqldb.Tx, secret redact.Secret, j Join, now, expire time.Time) error {
	id := digest(secret)
	sealed := []byte{}
	if j.Kind == JoinAgent {
		plain, err := json.Marshal(j.Actions)
		if err != nil {
			return fault.Internal(err, "the actions of an agent could not be encoded")
		}
		if sealed, err = s.box.Seal(ctx, kindActions, actionsID(id, j), plain); err != nil {
			return err
		}
	}
	return db.New(tx).InsertJoinToken(ctx, db.InsertJoinTokenParams{
		Digest: id, Kind: j.Kind, Service: j.Service, Instance: j.Instance, AgentUID: j.Agent, RunUID: j.Run,
		WorkspaceUID: j.Workspace, Submitter: j.Submitter, Actions: sealed, CreateTime: micros(now), ExpireTime: micros(expire),
	})
}

// actionsID binds the sealed actions to everything else that the agent's token will say.
func actionsID(id []byte, j Join) string {
	return hex.EncodeToString(id) + "/" + j.Agent + "/" + j.Run + "/" + j.Workspace + "/" + j.Submitter
}

// UseJoin uses a join token up for the key with this fingerprint. The same key may repeat it, for its answer may have been lost; for
// every other key, another kind, and after its time, ok is false.
func (s *Store) UseJoin(ctx context.Context, tx *sqldb.Tx, kind string, secret redact.Secret, fingerprint string, now time.Time) (j Join, ok bool, err error) {
	if fingerprint == "" || secret.Empty() {
		return Join{}, false, nil
	}
	id := digest(secret)
	row, err := db.New(tx).UseJoinToken(ctx, db.UseJoinTokenParams{Digest: id, Kind: kind, UsedBy: fingerprint, ExpireTime: micros(now)})
	if ok, err := found(err); !ok {
		return Join{}, false, err
	}
	j = Join{
		Kind: kind, Service: row.Service, Instance: row.Instance, Agent: row.AgentUID, Run: row.RunUID, Workspace: row.WorkspaceUID,
		Submitter: row.Submitter,
	}
	if kind == JoinAgent {
		plain, err := s.box.Open(ctx, kindActions, actionsID(id, j), row.Actions)
		if err != nil {
			return Join{}, false, damaged("join token", err)
		}
		if err := json.Unmarshal(plain, &j.Actions); err != nil {
			return Join{}, false, damaged("join token", err)
		}
	}
	return j, true, nil
}

// JoinOf finds whom a code that was not used is for.
func (s *Store) JoinOf(ctx context.Context, q sqldb.DBTX, kind string, secret redact.Secret, now time.Time) (submitter string, ok bool, err error) {
	submitter, err = db.New(q).GetJoinSubmitter(ctx, db.GetJoinSubmitterParams{Digest: digest(secret), Kind: kind, ExpireTime: micros(now)})
	ok, err = found(err)
	return submitter, ok, err
}

// DropJoinsFor makes the codes of a kind that a principal has useless.
func (s *Store) DropJoinsFor(ctx context.Context, tx *sqldb.Tx, kind, submitter string) error {
	return db.New(tx).DeleteJoinsOfSubmitter(ctx, db.DeleteJoinsOfSubmitterParams{Submitter: submitter, Kind: kind})
}

// DropJoin makes a join token useless for its own key too.
func (s *Store) DropJoin(ctx context.Context, tx *sqldb.Tx, secret redact.Secret) error {
	return db.New(tx).DeleteJoinToken(ctx, digest(secret))
}

// DropJoinsOf makes the join tokens of a run useless.
func (s *Store) DropJoinsOf(ctx context.Context, tx *sqldb.Tx, runUID string) error {
	return db.New(tx).DeleteJoinTokensOfRun(ctx, runUID)
}

// DropUnusedJoinsOf makes the join tokens of a run useless with which no agent has come, and says whether one has come with another.
func (s *Store) DropUnusedJoinsOf(ctx context.Context, tx *sqldb.Tx, runUID string) (came bool, err error) {
	q := db.New(tx)
	if err := q.DeleteUnusedJoinTokensOfRun(ctx, runUID); err != nil {
		return false, err
	}
	n, err := q.CountJoinTokensOfRun(ctx, runUID)
	return n > 0, err
}

// PinnedKey is the fingerprint of the key that an instance of a service proves; ok is false before it enrolled.
func (s *Store) PinnedKey(ctx context.Context, q sqldb.DBTX, service, instance string) (fingerprint string, ok bool, err error) {
	fingerprint, err = db.New(q).GetPinnedKey(ctx, db.GetPinnedKeyParams{Service: service, Instance: instance})
	ok, err = found(err)
	return fingerprint, ok, err
}

// Pin stores the key of an instance, in place of an earlier one.
func (s *Store) Pin(ctx context.Context, tx *sqldb.Tx, service, instance, fingerprint string, now time.Time) error {
	return db.New(tx).PutPinnedKey(ctx, db.PutPinnedKeyParams{Service: service, Instance: instance, Fingerprint: fingerprint, CreateTime: micros(now)})
}
