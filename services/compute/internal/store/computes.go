package store

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store/db"
)

// Compute is a target.
type Compute struct {
	UID, Workspace, ID string
	Kind               computev1.Compute_Kind
	MaxRuns            int
	Created            time.Time
	CreatedBy          string
}

func computeAAD(workspace, uid string) envelope.AAD {
	return envelope.AAD{Owner: workspace, Kind: "compute", ID: uid, Field: "name"}
}

// InsertCompute makes a target.
func (s *Store) InsertCompute(ctx context.Context, c Compute, record Record) error {
	key, err := s.keys.Key(ctx, c.Workspace)
	if err != nil {
		return err
	}
	name, err := key.SealString(computeAAD(c.Workspace, c.UID), c.ID)
	if err != nil {
		return err
	}
	return s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		n, err := db.New(tx).InsertCompute(ctx, db.InsertComputeParams{
			UID: c.UID, WorkspaceUID: c.Workspace, Name: name, NameMac: key.MAC("compute", c.Workspace, c.ID), Kind: int64(c.Kind),
			MaxRuns: int64(c.MaxRuns), CreateTime: micros(c.Created), CreatedBy: c.CreatedBy,
		})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.AlreadyExists("the workspace has a compute of that name already")
		}
		return record(ctx, tx)
	})
}

// Compute finds a target by its id.
func (s *Store) Compute(ctx context.Context, workspace, id string) (Compute, error) {
	key, err := s.keys.Key(ctx, workspace)
	if err != nil {
		return Compute{}, err
	}
	row, err := db.New(s.db.Reader()).GetCompute(ctx, db.GetComputeParams{WorkspaceUID: workspace, NameMac: key.MAC("compute", workspace, id)})
	if err != nil {
		return Compute{}, sqldb.Fault(err)
	}
	return s.compute(ctx, row)
}

// ComputeByUID finds a target by its uid.
func (s *Store) ComputeByUID(ctx context.Context, uid string) (Compute, error) {
	row, err := db.New(s.db.Reader()).GetComputeByUID(ctx, uid)
	if err != nil {
		return Compute{}, sqldb.Fault(err)
	}
	return s.compute(ctx, row)
}

func (s *Store) compute(ctx context.Context, row db.Compute) (Compute, error) {
	key, err := s.keys.Key(ctx, row.WorkspaceUID)
	if err != nil {
		return Compute{}, err
	}
	id, err := key.OpenString(computeAAD(row.WorkspaceUID, row.UID), row.Name)
	if err != nil {
		return Compute{}, err
	}
	return Compute{
		UID: row.UID, Workspace: row.WorkspaceUID, ID: id, Kind: computev1.Compute_Kind(row.Kind), MaxRuns: int(row.MaxRuns),
		Created: instant(row.CreateTime), CreatedBy: row.CreatedBy,
	}, nil
}

// ListComputes gives targets after the cursor, oldest first.
func (s *Store) ListComputes(ctx context.Context, workspace string, after Cursor, limit int) ([]Compute, Cursor, error) {
	rows, err := db.New(s.db.Reader()).ListComputes(ctx, db.ListComputesParams{WorkspaceUID: workspace, CreateTime: after.Time, UID: after.UID, Column4: int64(limit)})
	if err != nil {
		return nil, after, sqldb.Fault(err)
	}
	out := make([]Compute, 0, len(rows))
	for _, row := range rows {
		c, err := s.compute(ctx, row)
		if err != nil {
			return nil, after, err
		}
		out = append(out, c)
		after = Cursor{Time: row.CreateTime, UID: row.UID}
	}
	return out, after, nil
}

// DeleteCompute removes a target that no run waits for or runs on.
func (s *Store) DeleteCompute(ctx context.Context, uid string, record Record) error {
	return s.w.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		q := db.New(tx)
		n, err := q.ComputeRunsNotEnded(ctx, db.ComputeRunsNotEndedParams{ComputeUID: uid, State: int64(computev1.Run_STATE_COMPLETED)})
		if err != nil {
			return sqldb.Fault(err)
		}
		if n > 0 {
			return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "%d runs wait for this compute or run on it; cancel them first", n)
		}
		if n, err = q.DeleteCompute(ctx, uid); err != nil {
			return sqldb.Fault(err)
		}
		if n == 0 {
			return fault.NotFound("the compute is gone")
		}
		return record(ctx, tx)
	})
}
