// Package store keeps what the workspace service owns: the tree of subscriptions, resource groups and workspaces, the role
// assignments in it, and which snapshots and blobs a workspace has.
//
// Trust boundary: rows come from a database that others may have changed. Names are ciphertext under the service's own key and
// found by HMAC; what a tenant wrote of a workspace beside its name is under a key of that workspace, which goes with it.
//
// Invariants: every change of the authorization state takes the next number from one locked row, and stores itself under that number,
// in the transaction of the change. A name stands once below its parent, whatever state it is in.
//
// Failure: driver errors become kinds of pkg/fault here. What does not open is reported as damaged and not guessed at.
package store

import (
	"context"
	"embed"
	"encoding/binary"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store/db"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations of the tables that the store owns.
func Migrations() sqldb.MigrationSet {
	return sqldb.MigrationSet{Name: "workspace", FS: migrations, Dir: "migrations"}
}

// Store is the database of the service. It is safe for concurrent use.
type Store struct {
	db  *sqldb.DB
	own *envelope.Keyring
	now func() time.Time
}

// New makes a store on a database that has the migrations. own are keys under the service's own seal.
func New(db *sqldb.DB, own *envelope.Keyring, now func() time.Time) *Store {
	return &Store{db: db, own: own, now: now}
}

// Tx is a transaction of the store. It notes what changes in the authorization state.
type Tx struct {
	raw   *sqldb.Tx
	q     *db.Queries
	key   *envelope.Key
	now   time.Time
	delta workspacev1.WatchAuthorizationResponse
}

// Raw is the transaction itself, for the audit record.
func (t *Tx) Raw() *sqldb.Tx { return t.raw }

// Key is the service's own key: for page tokens.
func (s *Store) Key(ctx context.Context) (*envelope.Key, error) {
	return s.own.Key(ctx, envelope.ServiceOwner)
}

// Change runs fn in a write transaction and, if it changed the authorization state, stores the change under its number, which is
// returned; 0 if nothing of it changed.
func (s *Store) Change(ctx context.Context, fn func(ctx context.Context, t *Tx) error) (seq uint64, err error) {
	key, err := s.Key(ctx)
	if err != nil {
		return 0, err
	}
	err = s.db.Write(ctx, func(ctx context.Context, raw *sqldb.Tx) error {
		t := &Tx{raw: raw, q: db.New(raw), key: key, now: s.now()}
		if err := fn(ctx, t); err != nil {
			return err
		}
		seq, err = t.store(ctx)
		return err
	})
	if err != nil {
		return 0, err
	}
	return seq, nil
}

// store writes the noted change under the next number.
func (t *Tx) store(ctx context.Context) (uint64, error) {
	if len(t.delta.GetScopes()) == 0 && len(t.delta.GetAssignments()) == 0 && len(t.delta.GetRemoved()) == 0 {
		return 0, nil
	}
	seq, err := t.q.NextSeq(ctx)
	if err != nil {
		return 0, sqldb.Fault(err)
	}
	t.delta.Seq = number(seq)
	plain, err := proto.Marshal(&t.delta)
	if err != nil {
		return 0, fault.Internal(err, "a change of the authorization state could not be encoded")
	}
	sealed, err := t.key.Seal(changeAAD(seq), plain)
	if err != nil {
		return 0, err
	}
	if err := t.q.InsertChange(ctx, db.InsertChangeParams{Seq: seq, Message: sealed, CreateTime: t.now.UnixMicro()}); err != nil {
		return 0, sqldb.Fault(err)
	}
	return t.delta.Seq, sqldb.Fault(t.raw.Signal(ctx, Changed))
}

// Changed is the topic that is signalled with each change of the authorization state.
const Changed = "authorization"

// Read runs fn on one snapshot of the database.
func (s *Store) Read(ctx context.Context, fn func(ctx context.Context, t *Tx) error) error {
	key, err := s.Key(ctx)
	if err != nil {
		return err
	}
	return s.db.Read(ctx, func(ctx context.Context, raw *sqldb.Tx) error {
		return fn(ctx, &Tx{raw: raw, q: db.New(raw), key: key, now: s.now()})
	})
}

// Cursor is the place in a list after which the next page starts.
type Cursor struct {
	Time int64
	UID  string
}

// Bytes is the cursor as it goes into a page token.
func (c Cursor) Bytes() []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(c.Time)), c.UID...)
}

// ParseCursor reads what Bytes wrote.
func ParseCursor(b []byte) (Cursor, error) {
	if len(b) < 8 {
		return Cursor{}, fault.New(codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID, "the page token is not one of ours")
	}
	return Cursor{int64(binary.BigEndian.Uint64(b)), string(b[8:])}, nil
}

func number(seq int64) uint64 { return uint64(seq) }

func damaged(what string) error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "a stored %s is damaged", what)
}

func changeAAD(seq int64) envelope.AAD {
	return envelope.AAD{Owner: envelope.ServiceOwner, Kind: "authorization_change", ID: "change", Version: seq}
}

func nameAAD(uid string) envelope.AAD {
	return envelope.AAD{Owner: envelope.ServiceOwner, Kind: "scope", ID: uid, Field: "name"}
}

func bodyAAD(uid string) envelope.AAD {
	return envelope.AAD{Owner: uid, Kind: "scope", ID: uid, Field: "body", Version: 1}
}
