package store

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store/db"
)

// Deleted says whether a run is marked as deleted, and by what.
type Deleted int64

// How a run was deleted.
const (
	NotDeleted            Deleted = 0
	DeletedItself         Deleted = 1
	DeletedWithExperiment Deleted = 2
)

// sealLabels seals display name and user of a run, nil where nothing was said of them.
func sealLabels(key *envelope.Key, r *Run) ([]byte, error) {
	if r.Labels == nil {
		return nil, nil
	}
	b, err := proto.Marshal(&computev1.CreateTrackedRunRequest{DisplayName: r.Labels.GetDisplayName(), User: r.Labels.GetUser()})
	if err != nil {
		return nil, fault.Internal(err, "the run cannot be stored")
	}
	return key.Seal(runAAD(r.Workspace, r.UID, "labels"), b)
}

func openLabels(key *envelope.Key, r *Run, sealed []byte) error {
	if len(sealed) == 0 {
		return nil
	}
	b, err := key.Open(runAAD(r.Workspace, r.UID, "labels"), sealed)
	if err != nil {
		return err
	}
	r.Labels = &computev1.CreateTrackedRunRequest{}
	if proto.Unmarshal(b, r.Labels) != nil {
		return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the stored run cannot be read")
	}
	return nil
}

// Relabel stores the labels of a run, in the transaction of an Update.
func (s *Store) Relabel(ctx context.Context, tx *sqldb.Tx, r *Run) error {
	key, err := s.keys.Key(ctx, r.Workspace)
	if err != nil {
		return err
	}
	labels, err := sealLabels(key, r)
	if err != nil {
		return err
	}
	return sqldb.Fault(db.New(tx).SetRunLabels(ctx, db.SetRunLabelsParams{UID: r.UID, Labels: labels}))
}

// Mark stores whether a run is deleted, in the transaction of an Update.
func (s *Store) Mark(ctx context.Context, tx *sqldb.Tx, r *Run) error {
	return sqldb.Fault(db.New(tx).SetRunDeleted(ctx, db.SetRunDeletedParams{UID: r.UID, Deleted: int64(r.Deleted)}))
}
