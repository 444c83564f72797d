package store

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store/db"
)

// Model is a model as it is stored.
type Model struct {
	UID, Workspace, ID string
	// Body has description, tags and aliases.
	Body *inferencev1.Model
	// Revision rises with each change of the model, but not with a new version.
	Revision int64
	// Latest is the highest number of a version that is there, 0 for none.
	Latest           int64
	Created, Updated time.Time
	CreatedBy        string
}

func modelAAD(workspace, uid, field string, revision int64) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "model", ID: uid, Field: field, Version: revision}
}

func modelMAC(key *envelope.Key, workspace, id string) []byte { return key.MAC("model", workspace, id) }

// seal encrypts a message as one field of a record.
func seal(key *envelope.Key, aad envelope.AAD, m proto.Message) ([]byte, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fault.Internal(err, "a record cannot be stored")
	}
	return key.Seal(aad, b)
}

func open(key *envelope.Key, aad envelope.AAD, sealed []byte, m proto.Message) error {
	b, err := key.Open(aad, sealed)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return errDamaged("a stored record cannot be read")
	}
	return nil
}

func errDamaged(format string, args ...any) error {
	return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, format, args...)
}

// model opens a row.
func model(ctx context.Context, q *db.Queries, key *envelope.Key, row db.Model) (*Model, error) {
	m := &Model{
		UID: row.UID, Workspace: row.WorkspaceUID, Body: &inferencev1.Model{}, Revision: row.Revision,
		Created: instant(row.CreateTime), Updated: instant(row.UpdateTime), CreatedBy: row.CreatedBy,
	}
	var err error
	if m.ID, err = key.OpenString(modelAAD(m.Workspace, m.UID, "name", 0), row.Name); err != nil {
		return nil, err
	}
	if err := open(key, modelAAD(m.Workspace, m.UID, "body", m.Revision), row.Body, m.Body); err != nil {
		return nil, err
	}
	m.Latest, err = q.LatestNumber(ctx, m.UID)
	return m, sqldb.Fault(err)
}

// insertModel makes a model, and says whether it is new.
func insertModel(ctx context.Context, q *db.Queries, key *envelope.Key, m *Model) (bool, error) {
	name, err := key.SealString(modelAAD(m.Workspace, m.UID, "name", 0), m.ID)
	if err != nil {
		return false, err
	}
	body, err := seal(key, modelAAD(m.Workspace, m.UID, "body", 1), m.Body)
	if err != nil {
		return false, err
	}
	n, err := q.InsertModel(ctx, db.InsertModelParams{
		UID: m.UID, WorkspaceUID: m.Workspace, Name: name, NameMac: modelMAC(key, m.Workspace, m.ID), Body: body, CreateTime: micros(m.Created), CreatedBy: m.CreatedBy,
	})
	return n > 0, sqldb.Fault(err)
}

// InsertModel makes a model.
func (s *Store) InsertModel(ctx context.Context, m *Model, record Record) error {
	key, err := s.keys.Key(ctx, m.Workspace)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		added, err := insertModel(ctx, db.New(tx), key, m)
		if err != nil {
			return err
		}
		if !added {
			return errModelExists()
		}
		m.Revision, m.Updated = 1, m.Created
		return record(ctx, tx)
	})
}

func errModelExists() error {
	return fault.AlreadyExists("the workspace has a model of that name already; choose another id, or add a version to it")
}

// Model finds a model by its id.
func (s *Store) Model(ctx context.Context, workspace, id string) (*Model, error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	q := db.New(s.db.Reader())
	row, err := q.GetModel(ctx, db.GetModelParams{WorkspaceUID: workspace, NameMac: modelMAC(key, workspace, id)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return model(ctx, q, key, row)
}

// ListModels gives models after the cursor, newest first.
func (s *Store) ListModels(ctx context.Context, workspace string, after Cursor, limit int) ([]*Model, error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	if after == (Cursor{}) {
		after.Time = 1<<63 - 1
	}
	q := db.New(s.db.Reader())
	rows, err := q.ListModels(ctx, db.ListModelsParams{WorkspaceUID: workspace, CreateTime: after.Time, UID: after.UID, Column4: int64(limit)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]*Model, 0, len(rows))
	for _, row := range rows {
		m, err := model(ctx, q, key, row)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// modelIn finds a model in a transaction.
func modelIn(ctx context.Context, q *db.Queries, key *envelope.Key, workspace, uid string) (*Model, error) {
	row, err := q.GetModelByUID(ctx, uid)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	if row.WorkspaceUID != workspace {
		return nil, errDamaged("a stored model belongs elsewhere")
	}
	return model(ctx, q, key, row)
}

// putModel stores what has changed of a model.
func putModel(ctx context.Context, q *db.Queries, key *envelope.Key, m *Model, now time.Time) error {
	name, err := key.SealString(modelAAD(m.Workspace, m.UID, "name", 0), m.ID)
	if err != nil {
		return err
	}
	body, err := seal(key, modelAAD(m.Workspace, m.UID, "body", m.Revision+1), m.Body)
	if err != nil {
		return err
	}
	n, err := q.UpdateModel(ctx, db.UpdateModelParams{UID: m.UID, Revision: m.Revision, Name: name, NameMac: modelMAC(key, m.Workspace, m.ID), Body: body, UpdateTime: micros(now)})
	if err = sqldb.Fault(err); fault.Is(err, codes.AlreadyExists) {
		return errModelExists()
	}
	if err == nil && n == 0 {
		err = fault.Aborted("the model was changed in between; repeat the call")
	}
	m.Revision++
	m.Updated = now
	return err
}

// Change is what the change of a model may look at in its transaction.
type Change struct {
	// Users use the model, or a version of it, now.
	Users []User
	q     *db.Queries
}

// HasVersion reports whether a model has a version of that number.
func (c *Change) HasVersion(ctx context.Context, m *Model, number int64) (bool, error) {
	_, err := c.q.GetVersion(ctx, db.GetVersionParams{ModelUID: m.UID, Number: number})
	if err = sqldb.Fault(err); fault.Is(err, codes.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// ChangeModel reads a model in a transaction, lets change alter its id and body, and stores it. A change that returns an error
// changes nothing.
func (s *Store) ChangeModel(ctx context.Context, workspace, uid string, now time.Time, change func(ctx context.Context, c *Change, m *Model) error, record Record) (out *Model, err error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		c := &Change{q: db.New(tx)}
		m, err := modelIn(ctx, c.q, key, workspace, uid)
		if err != nil {
			return err
		}
		if c.Users, err = users(ctx, c.q, key, m); err != nil {
			return err
		}
		if err := change(ctx, c, m); err != nil {
			return err
		}
		if err := putModel(ctx, c.q, key, m, now); err != nil {
			return err
		}
		out = m
		return record(ctx, tx)
	})
	return out, err
}

// DeleteModel removes a model that nobody uses, with all its versions. folder says where the blobs of a version are; they are left
// over until ForgetLeftover.
func (s *Store) DeleteModel(ctx context.Context, workspace, uid string, now time.Time, folder func(key *envelope.Key, version string) string, record Record) (left []Leftover, err error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		m, err := modelIn(ctx, q, key, workspace, uid)
		if err != nil {
			return err
		}
		who, err := users(ctx, q, key, m)
		if err != nil {
			return err
		}
		if len(who) > 0 {
			return InUse("the model", who[0])
		}
		versions, err := q.VersionsOfModel(ctx, uid)
		if err != nil {
			return sqldb.Fault(err)
		}
		left = nil
		for _, v := range versions {
			l := Leftover{Version: v, Workspace: workspace, Folder: folder(key, v)}
			if err := putLeftover(ctx, q, l, now); err != nil {
				return err
			}
			left = append(left, l)
		}
		if err := q.DeleteVersionsOfModel(ctx, uid); err != nil {
			return sqldb.Fault(err)
		}
		if _, err := q.DeleteModel(ctx, uid); err != nil {
			return sqldb.Fault(err)
		}
		return record(ctx, tx)
	})
	return left, err
}

// Leftover is the place of blobs that belong to no version.
type Leftover struct{ Version, Workspace, Folder string }

func putLeftover(ctx context.Context, q *db.Queries, l Leftover, now time.Time) error {
	return sqldb.Fault(q.PutLeftover(ctx, db.PutLeftoverParams{VersionUID: l.Version, WorkspaceUID: l.Workspace, Folder: l.Folder, CreateTime: micros(now)}))
}

// Leftovers lists the places.
func (s *Store) Leftovers(ctx context.Context) ([]Leftover, error) {
	rows, err := db.New(s.db.Reader()).ListLeftovers(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Leftover, 0, len(rows))
	for _, row := range rows {
		out = append(out, Leftover{Version: row.VersionUID, Workspace: row.WorkspaceUID, Folder: row.Folder})
	}
	return out, nil
}

// IsLeftover reports whether the place of a version's blobs is still left over.
func (s *Store) IsLeftover(ctx context.Context, version string) (bool, error) {
	n, err := db.New(s.db.Reader()).CountLeftovers(ctx, version)
	return n > 0, sqldb.Fault(err)
}

// ForgetLeftover says that a place has been cleared.
func (s *Store) ForgetLeftover(ctx context.Context, version string) error {
	return s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := db.New(tx).DeleteLeftover(ctx, version)
		return sqldb.Fault(err)
	})
}

// PurgeModels removes every row of a workspace's models. Versions that are being registered fail afterwards, so the place of all of the
// workspace's blobs is left over.
func PurgeModels(ctx context.Context, tx *sqldb.Tx, workspace string, now time.Time) error {
	q := db.New(tx)
	for _, f := range []func(context.Context, string) error{q.PurgeUses, q.PurgeVersions, q.PurgeModels, q.PurgeLeftovers} {
		if err := f(ctx, workspace); err != nil {
			return sqldb.Fault(err)
		}
	}
	return putLeftover(ctx, q, Leftover{Version: workspace, Workspace: workspace, Folder: workspace}, now)
}

// SigningKey is a sealed key for manifests.
type SigningKey struct {
	ID      string
	Sealed  []byte
	Created time.Time
}

// SigningKeys lists them, the oldest first.
func (s *Store) SigningKeys(ctx context.Context) ([]SigningKey, error) {
	rows, err := db.New(s.db.Reader()).ListSigningKeys(ctx)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]SigningKey, 0, len(rows))
	for _, row := range rows {
		out = append(out, SigningKey{ID: row.KeyID, Sealed: row.PrivateKey, Created: instant(row.CreateTime)})
	}
	return out, nil
}

// FirstSigningKey stores a key where there is none, and reports whether it did.
func (s *Store) FirstSigningKey(ctx context.Context, k SigningKey) (stored bool, err error) {
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		rows, err := q.ListSigningKeys(ctx)
		if err != nil || len(rows) > 0 {
			return sqldb.Fault(err)
		}
		stored = true
		return sqldb.Fault(q.InsertSigningKey(ctx, db.InsertSigningKeyParams{KeyID: k.ID, PrivateKey: k.Sealed, CreateTime: micros(k.Created)}))
	})
	return stored, err
}
