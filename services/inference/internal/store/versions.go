package store

import (
	"bytes"
	"context"
	"maps"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/inference/internal/store/db"
)

// requestKept is how long a request id gives the same version again.
const requestKept = 24 * time.Hour

// Version is a version as it is stored, without its manifest.
type Version struct {
	UID, Workspace, Model string
	Number                int64
	// Body has description and tags, and of the manifest what lists show: total_bytes, digest and the sources.
	Body             *inferencev1.ModelVersion
	Revision         int64
	Created, Updated time.Time
	CreatedBy        string
}

// User uses a version: a deployment.
type User struct{ Version, UID, Name string }

// InUse refuses to remove or rename what somebody uses.
func InUse(what string, u User) error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "%s is used by %s; delete that first, or give it another version", what, u.Name).With("user", u.Name)
}

func versionAAD(workspace, uid, field string, number int64) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "model_version", ID: uid, Field: field, Version: number}
}

func useAAD(workspace, version, user string) envelope.AAD {
	return versionAAD(workspace, version, "use/"+user, 0)
}

func version(key *envelope.Key, m *Model, row db.GetVersionRow) (*Version, error) {
	if row.WorkspaceUID != m.Workspace || row.ModelUID != m.UID {
		return nil, errDamaged("a stored version belongs elsewhere")
	}
	v := &Version{
		UID: row.UID, Workspace: row.WorkspaceUID, Model: row.ModelUID, Number: row.Number, Body: &inferencev1.ModelVersion{}, Revision: row.Revision,
		Created: instant(row.CreateTime), Updated: instant(row.UpdateTime), CreatedBy: row.CreatedBy,
	}
	if err := open(key, versionAAD(v.Workspace, v.UID, "body", v.Revision), row.Body, v.Body); err != nil {
		return nil, err
	}
	if v.Body.GetVersion() != v.Number {
		return nil, errDamaged("a stored version has another number")
	}
	return v, nil
}

// users are those of a model, in the order of its versions.
func users(ctx context.Context, q *db.Queries, key *envelope.Key, m *Model) ([]User, error) {
	rows, err := q.UsesOfModel(ctx, m.UID)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]User, 0, len(rows))
	for _, row := range rows {
		name, err := key.OpenString(useAAD(m.Workspace, row.VersionUID, row.UserUID), row.UserName)
		if err != nil {
			return nil, err
		}
		out = append(out, User{Version: row.VersionUID, UID: row.UserUID, Name: name})
	}
	return out, nil
}

// Users are those who use the model's versions, in the order of the versions.
func (s *Store) Users(ctx context.Context, m *Model) ([]User, error) {
	key, err := s.keys.Key(ctx, m.Workspace)
	if err != nil {
		return nil, err
	}
	return users(ctx, db.New(s.db.Reader()), key, m)
}

// Version finds a version of a model by its number.
func (s *Store) Version(ctx context.Context, m *Model, number int64) (*Version, error) {
	key, err := s.keys.Key(ctx, m.Workspace)
	if err != nil {
		return nil, err
	}
	row, err := db.New(s.db.Reader()).GetVersion(ctx, db.GetVersionParams{ModelUID: m.UID, Number: number})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return version(key, m, row)
}

// Manifest opens the signed manifest of a version.
func (s *Store) Manifest(ctx context.Context, v *Version) ([]byte, error) {
	key, err := s.keys.Key(ctx, v.Workspace)
	if err != nil {
		return nil, err
	}
	sealed, err := db.New(s.db.Reader()).GetManifest(ctx, v.UID)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return key.Open(versionAAD(v.Workspace, v.UID, "manifest", v.Number), sealed)
}

// ListVersions gives versions of a model below a number, the highest first; 0 is from the top.
func (s *Store) ListVersions(ctx context.Context, m *Model, below int64, limit int) ([]*Version, error) {
	key, err := s.keys.Key(ctx, m.Workspace)
	if err != nil {
		return nil, err
	}
	if below == 0 {
		below = 1<<63 - 1
	}
	rows, err := db.New(s.db.Reader()).ListVersions(ctx, db.ListVersionsParams{ModelUID: m.UID, Number: below, Column3: int64(limit)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]*Version, 0, len(rows))
	for _, row := range rows {
		v, err := version(key, m, db.GetVersionRow(row))
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// BeginVersion notes where the blobs of a version will be, before the first is written.
func (s *Store) BeginVersion(ctx context.Context, l Leftover, now time.Time) error {
	return s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error { return putLeftover(ctx, db.New(tx), l, now) })
}

// Request is what makes a call repeatable: the caller's id for it, who he is, and what he asked. The zero value is none.
type Request struct{ ID, Principal, Content string }

func (r Request) macs(key *envelope.Key) (id, content []byte) {
	if r.ID == "" {
		return []byte{}, []byte{}
	}
	return key.MAC("model request", r.Principal, r.ID), key.MAC("model request content", r.Principal, r.Content)
}

// earlier finds what a request made within the last day.
func earlier(ctx context.Context, q *db.Queries, key *envelope.Key, workspace string, r Request, now time.Time) (m *Model, v *Version, found bool, err error) {
	if r.ID == "" {
		return nil, nil, false, nil
	}
	id, content := r.macs(key)
	was, err := q.GetVersionByRequest(ctx, db.GetVersionByRequestParams{WorkspaceUID: workspace, RequestMac: id, CreateTime: micros(now.Add(-requestKept))})
	if err = sqldb.Fault(err); fault.Is(err, codes.NotFound) {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, err
	}
	if !bytes.Equal(was.ContentMac, content) {
		return nil, nil, false, fault.New(codes.AlreadyExists, faultv1.Reason_REQUEST_ID_REUSED, "this request_id was used for another request; take a new one")
	}
	row, err := q.GetVersionByUID(ctx, was.UID)
	if err != nil {
		return nil, nil, false, sqldb.Fault(err)
	}
	if m, err = modelIn(ctx, q, key, workspace, row.ModelUID); err != nil {
		return nil, nil, false, err
	}
	v, err = version(key, m, db.GetVersionRow(row))
	return m, v, err == nil, err
}

// Earlier finds the version that the same request made within the last day.
func (s *Store) Earlier(ctx context.Context, workspace string, r Request, now time.Time) (m *Model, v *Version, found bool, err error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return nil, nil, false, err
	}
	return earlier(ctx, db.New(s.db.Reader()), key, workspace, r, now)
}

// NewVersion is a version to be. Version's blobs are stored, at the place that BeginVersion noted.
type NewVersion struct {
	Version
	// Into is the model; if it is not there, it is made from Create, or refused where that is nil.
	Into   string
	Create *Model
	// Sign makes the signed manifest once the model and the number are known, and notes in Body what lists show of it.
	Sign    func(m *Model, v *Version) ([]byte, error)
	Request Request
}

// AddVersion adds a version to a model with the next number, or gives the one that the same request made. record is called with what
// is new.
func (s *Store) AddVersion(ctx context.Context, in NewVersion, record func(ctx context.Context, tx *sqldb.Tx, m *Model, v *Version) error) (m *Model, v *Version, added bool, err error) {
	key, err := s.keys.Key(ctx, in.Workspace)
	if err != nil {
		return nil, nil, false, err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		var found bool
		if m, v, found, err = earlier(ctx, q, key, in.Workspace, in.Request, in.Created); err != nil || found {
			return err
		}
		n, err := q.DeleteLeftover(ctx, in.UID)
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.FailedPrecondition("the workspace is being removed")
		}
		if m, err = into(ctx, q, key, in); err != nil {
			return err
		}
		if v, err = addVersion(ctx, q, key, m, in); err != nil {
			return err
		}
		added = true
		m.Latest = v.Number
		return record(ctx, tx, m, v)
	})
	if err != nil {
		return nil, nil, false, err
	}
	return m, v, added, nil
}

// into finds the model that a version is for, or makes it.
func into(ctx context.Context, q *db.Queries, key *envelope.Key, in NewVersion) (*Model, error) {
	if in.Create != nil {
		if _, err := insertModel(ctx, q, key, in.Create); err != nil {
			return nil, err
		}
	}
	row, err := q.GetModel(ctx, db.GetModelParams{WorkspaceUID: in.Workspace, NameMac: modelMAC(key, in.Workspace, in.Into)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	return model(ctx, q, key, row)
}

func addVersion(ctx context.Context, q *db.Queries, key *envelope.Key, m *Model, in NewVersion) (*Version, error) {
	v := in.Version
	var err error
	if v.Number, err = q.NextNumber(ctx, m.UID); err != nil {
		return nil, sqldb.Fault(err)
	}
	v.Model, v.Revision, v.Updated = m.UID, 1, v.Created
	v.Body.Version = v.Number
	signed, err := in.Sign(m, &v)
	if err != nil {
		return nil, err
	}
	manifest, err := key.Seal(versionAAD(v.Workspace, v.UID, "manifest", v.Number), signed)
	if err != nil {
		return nil, err
	}
	body, err := seal(key, versionAAD(v.Workspace, v.UID, "body", 1), v.Body)
	if err != nil {
		return nil, err
	}
	request, content := in.Request.macs(key)
	return &v, sqldb.Fault(q.InsertVersion(ctx, db.InsertVersionParams{
		UID: v.UID, ModelUID: m.UID, WorkspaceUID: v.Workspace, Number: v.Number, Manifest: manifest, Body: body, RequestMac: request, ContentMac: content,
		CreateTime: micros(v.Created), CreatedBy: v.CreatedBy,
	}))
}

// ChangeVersion reads a version in a transaction, lets change alter its description and tags, and stores it.
func (s *Store) ChangeVersion(ctx context.Context, m *Model, number int64, now time.Time, change func(v *Version) error, record Record) (out *Version, err error) {
	key, err := s.keys.Key(ctx, m.Workspace)
	if err != nil {
		return nil, err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		row, err := q.GetVersion(ctx, db.GetVersionParams{ModelUID: m.UID, Number: number})
		if err != nil {
			return sqldb.Fault(err)
		}
		v, err := version(key, m, row)
		if err != nil {
			return err
		}
		if err := change(v); err != nil {
			return err
		}
		body, err := seal(key, versionAAD(v.Workspace, v.UID, "body", v.Revision+1), v.Body)
		if err != nil {
			return err
		}
		n, err := q.UpdateVersion(ctx, db.UpdateVersionParams{UID: v.UID, Revision: v.Revision, Body: body, UpdateTime: micros(now)})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.Aborted("the version was changed in between; repeat the call")
		}
		v.Revision++
		v.Updated = now
		out = v
		return record(ctx, tx)
	})
	return out, err
}

// DeleteVersion removes a version that nobody uses, and the aliases that name it. Its blobs are left over until ForgetLeftover.
func (s *Store) DeleteVersion(ctx context.Context, v *Version, folder string, now time.Time, record Record) (left Leftover, err error) {
	key, err := s.keys.Key(ctx, v.Workspace)
	if err != nil {
		return Leftover{}, err
	}
	left = Leftover{Version: v.UID, Workspace: v.Workspace, Folder: folder}
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		m, err := modelIn(ctx, q, key, v.Workspace, v.Model)
		if err != nil {
			return err
		}
		who, err := users(ctx, q, key, m)
		if err != nil {
			return err
		}
		for _, u := range who {
			if u.Version == v.UID {
				return InUse("the version", u)
			}
		}
		n, err := q.DeleteVersion(ctx, v.UID)
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.NotFound("the version is gone")
		}
		before := len(m.Body.GetAliases())
		maps.DeleteFunc(m.Body.GetAliases(), func(_ string, number int64) bool { return number == v.Number })
		if len(m.Body.GetAliases()) != before {
			if err := putModel(ctx, q, key, m, now); err != nil {
				return err
			}
		}
		if err := putLeftover(ctx, q, left, now); err != nil {
			return err
		}
		return record(ctx, tx)
	})
	return left, err
}

// Hold notes that a user, a deployment, uses a version from now on, so that it stays. NOT_FOUND if it is gone. The version was looked
// up shortly before, so its workspace's key is at hand.
func (s *Store) Hold(ctx context.Context, tx *sqldb.Tx, versionUID, userUID, userName string) error {
	q := db.New(tx)
	row, err := q.GetVersionByUID(ctx, versionUID)
	if err != nil {
		return sqldb.Fault(err)
	}
	key, err := s.keys.Key(ctx, row.WorkspaceUID)
	if err != nil {
		return err
	}
	name, err := key.SealString(useAAD(row.WorkspaceUID, versionUID, userUID), userName)
	if err != nil {
		return err
	}
	return sqldb.Fault(q.HoldVersion(ctx, db.HoldVersionParams{VersionUID: versionUID, UserUID: userUID, UserName: name}))
}

// Release notes that a user uses no version any more. It is no error if it used none.
func Release(ctx context.Context, tx *sqldb.Tx, userUID string) error {
	return sqldb.Fault(db.New(tx).ReleaseUser(ctx, userUID))
}
