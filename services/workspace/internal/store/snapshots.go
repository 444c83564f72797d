package store

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/workspace/internal/store/db"
)

// blobStored is the state of a blob whose content is there in full.
const blobStored = 2

// Blobs gives the sizes of all blobs of a workspace that are stored in full, by name.
func (s *Store) Blobs(ctx context.Context, workspace string) (map[string]int64, error) {
	rows, err := db.New(s.db.Reader()).ListStoredBlobs(ctx, workspace)
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make(map[string]int64, len(rows))
	for _, row := range rows {
		out[row.Name] = row.Size
	}
	return out, nil
}

func errSweeping() error {
	return fault.Aborted("the same file is being cleaned away just now; send it again").Retry(time.Second)
}

// Begun is what is known of a blob that is going to be written.
type Begun struct {
	// Stored says that its content is there in full already, with Size bytes.
	Stored bool
	Size   int64
}

// Blob is a blob that is going to be written.
type Blob struct {
	Name string
	Size int64
}

// BeginBlob notes that a blob is going to be written, so that one that is never finished is found.
func (s *Store) BeginBlob(ctx context.Context, workspace string, b Blob) (out Begun, err error) {
	err = s.db.WriteGrouped(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		found, err := s.begin(ctx, db.New(tx), workspace, []Blob{b})
		if err == nil {
			out = found[0]
		}
		return err
	})
	return out, err
}

// BeginBlobs is BeginBlob for many, all or none, in one transaction. Callers give them in the order of their names, so that no two wait for each other.
func (s *Store) BeginBlobs(ctx context.Context, workspace string, blobs []Blob) (out []Begun, err error) {
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		out, err = s.begin(ctx, db.New(tx), workspace, blobs)
		return err
	})
	return out, err
}

func (s *Store) begin(ctx context.Context, q *db.Queries, workspace string, blobs []Blob) ([]Begun, error) {
	if err := live(ctx, q, workspace); err != nil {
		return nil, err
	}
	out := make([]Begun, 0, len(blobs))
	for _, b := range blobs {
		row, err := q.BeginBlob(ctx, db.BeginBlobParams{WorkspaceUID: workspace, Name: b.Name, Size: b.Size, TouchTime: s.now().UnixMicro()})
		if err = sqldb.Fault(err); fault.Is(err, codes.NotFound) {
			return nil, errSweeping()
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Begun{Stored: row.State == blobStored, Size: row.Size})
	}
	return out, nil
}

// FinishBlob notes that the content of a blob is stored.
func (s *Store) FinishBlob(ctx context.Context, workspace string, b Blob) error {
	return s.db.WriteGrouped(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return s.finish(ctx, db.New(tx), workspace, []Blob{b})
	})
}

// FinishBlobs is FinishBlob for many, all or none, in one transaction with record, in the order of their names.
func (s *Store) FinishBlobs(ctx context.Context, workspace string, blobs []Blob, record func(context.Context, *sqldb.Tx) error) error {
	return s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		if err := s.finish(ctx, db.New(tx), workspace, blobs); err != nil {
			return err
		}
		return record(ctx, tx)
	})
}

func (s *Store) finish(ctx context.Context, q *db.Queries, workspace string, blobs []Blob) error {
	if err := live(ctx, q, workspace); err != nil {
		return err
	}
	for _, b := range blobs {
		n, err := q.FinishBlob(ctx, db.FinishBlobParams{WorkspaceUID: workspace, Name: b.Name, Size: b.Size, TouchTime: s.now().UnixMicro()})
		if err != nil {
			return err
		}
		if n == 0 {
			return errSweeping()
		}
	}
	return nil
}

// live refuses what would be left behind by the removal of the workspace.
func live(ctx context.Context, q *db.Queries, workspace string) error {
	row, err := q.GetScope(ctx, workspace)
	if err = sqldb.Fault(err); err != nil && !fault.Is(err, codes.NotFound) {
		return err
	}
	if err != nil || State(row.State) != Active {
		return fault.FailedPrecondition("the workspace is being removed")
	}
	return nil
}

// markAtOnce is how many blobs are marked in one transaction, so that others get their turn.
const markAtOnce = 1000

// UseBlobs marks blobs as belonging to a snapshot: they stay as long as the workspace. It returns the first that is missing.
func (s *Store) UseBlobs(ctx context.Context, workspace string, names []string) (missing int, err error) {
	for start := 0; start < len(names); start += markAtOnce {
		part := names[start:min(start+markAtOnce, len(names))]
		missing = -1
		err := s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
			q := db.New(tx)
			for i, name := range part {
				n, err := q.UseBlob(ctx, db.UseBlobParams{WorkspaceUID: workspace, Name: name})
				if err != nil {
					return err
				}
				if n == 0 {
					missing = start + i
					return nil
				}
			}
			return nil
		})
		if err != nil || missing >= 0 {
			return missing, err
		}
	}
	return -1, nil
}

// Condemned is a blob that is being deleted.
type Condemned struct{ Workspace, Name string }

// Condemn marks blobs that no snapshot took and nobody has sent since before, and gives some of those that are marked. From then on
// nobody can use them.
func (s *Store) Condemn(ctx context.Context, write sqldb.WriteFunc, before time.Time, limit int) (out []Condemned, err error) {
	err = write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		if err := q.CondemnBlobs(ctx, before.UnixMicro()); err != nil {
			return err
		}
		rows, err := q.ListCondemned(ctx, int64(limit))
		for _, row := range rows {
			out = append(out, Condemned{row.WorkspaceUID, row.Name})
		}
		return err
	})
	return out, err
}

// Buried forgets a condemned blob whose content is gone.
func (s *Store) Buried(ctx context.Context, write sqldb.WriteFunc, c Condemned) error {
	return write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		return db.New(tx).DeleteCondemned(ctx, db.DeleteCondemnedParams{WorkspaceUID: c.Workspace, Name: c.Name})
	})
}

// RemoveSnapshots forgets all snapshots and blobs of a workspace.
func (t *Tx) RemoveSnapshots(ctx context.Context, workspace string) error {
	if err := t.q.DeleteSnapshotsOf(ctx, workspace); err != nil {
		return sqldb.Fault(err)
	}
	return sqldb.Fault(t.q.DeleteBlobsOf(ctx, workspace))
}

// Snapshot is a row of a snapshot.
type Snapshot struct {
	UID, Workspace, ID string
	TotalBytes         int64
	Created            time.Time
	CreatedBy          string
}

// Cursor is the place of the snapshot in a list.
func (s Snapshot) Cursor() Cursor { return Cursor{s.Created.UnixMicro(), s.UID} }

func snapshotAAD(workspace, uid string) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "snapshot", ID: uid, Field: "id"}
}

func snapshot(key *envelope.Key, row db.Snapshot) (Snapshot, error) {
	id, err := key.OpenString(snapshotAAD(row.WorkspaceUID, row.UID), row.ID)
	if err != nil {
		return Snapshot{}, err
	}
	return Snapshot{
		UID: row.UID, Workspace: row.WorkspaceUID, ID: id, TotalBytes: row.TotalBytes,
		Created: time.UnixMicro(row.CreateTime), CreatedBy: row.CreatedBy,
	}, nil
}

// AddSnapshot stores a snapshot, or returns the one of that id which is there. key is the workspace's. record is called if it is new.
func (s *Store) AddSnapshot(ctx context.Context, key *envelope.Key, in Snapshot, record func(context.Context, *sqldb.Tx) error) (out Snapshot, err error) {
	uid := resource.NewUID("snp")
	sealed, err := key.SealString(snapshotAAD(in.Workspace, uid), in.ID)
	if err != nil {
		return Snapshot{}, err
	}
	mac := key.MAC("snapshot", in.Workspace, in.ID)
	err = s.db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		if err := live(ctx, q, in.Workspace); err != nil {
			return err
		}
		n, err := q.InsertSnapshot(ctx, db.InsertSnapshotParams{
			UID: uid, WorkspaceUID: in.Workspace, ID: sealed, IDMac: mac, TotalBytes: in.TotalBytes, CreateTime: s.now().UnixMicro(), CreatedBy: in.CreatedBy,
		})
		if err != nil {
			return err
		}
		row, err := q.GetSnapshot(ctx, db.GetSnapshotParams{WorkspaceUID: in.Workspace, IDMac: mac})
		if err != nil {
			return err
		}
		if out, err = snapshot(key, row); err != nil || n == 0 {
			return err
		}
		return record(ctx, tx)
	})
	return out, err
}

// GetSnapshot finds a snapshot by its id; NOT_FOUND if there is none. key is the workspace's.
func (s *Store) GetSnapshot(ctx context.Context, key *envelope.Key, workspace, id string) (Snapshot, error) {
	row, err := db.New(s.db.Reader()).GetSnapshot(ctx, db.GetSnapshotParams{WorkspaceUID: workspace, IDMac: key.MAC("snapshot", workspace, id)})
	if err != nil {
		return Snapshot{}, sqldb.Fault(err)
	}
	return snapshot(key, row)
}

// ListSnapshots lists the snapshots of a workspace in the order of making. key is the workspace's.
func (s *Store) ListSnapshots(ctx context.Context, key *envelope.Key, workspace string, after Cursor, limit int) ([]Snapshot, error) {
	rows, err := db.New(s.db.Reader()).ListSnapshots(ctx, db.ListSnapshotsParams{WorkspaceUID: workspace, CreateTime: after.Time, UID: after.UID, Column4: int64(limit)})
	if err != nil {
		return nil, sqldb.Fault(err)
	}
	out := make([]Snapshot, 0, len(rows))
	for _, row := range rows {
		sn, err := snapshot(key, row)
		if err != nil {
			return nil, err
		}
		out = append(out, sn)
	}
	return out, nil
}
