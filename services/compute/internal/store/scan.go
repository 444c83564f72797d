package store

import (
	"context"
	"time"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store/db"
)

// Clear is what a row says of a run without being opened.
type Clear struct {
	Experiment     string
	State          computev1.Run_State
	Started, Ended time.Time // zero where it did not happen
}

// Scan says which runs of a workspace are read. Replicas never are.
type Scan struct {
	Workspace string
	// Experiment is the id of the one whose runs are read; "" for all.
	Experiment string
	// Oldest and Newest bound the start, both inclusive, in microseconds; 0 is a run that has not started. Newest 0 is no bound.
	Oldest, Newest int64
	// Least and Most bound how they are deleted, both inclusive.
	Least, Most Deleted
	// Keep says of a row, before it is opened, whether it is wanted; nil for all.
	Keep func(c Clear) bool
}

// ScanRuns reads up to limit rows after the cursor, the newest start first and then by uid, and opens those that are wanted. It gives
// the cursor of the last row, wanted or not, and whether there may be more.
func (s *Store) ScanRuns(ctx context.Context, scan Scan, after Cursor, limit int) (runs []*Run, last Cursor, more bool, err error) {
	if after == (Cursor{}) {
		if after.Time = scan.Newest; after.Time == 0 {
			after.Time = 1 << 62
		}
	}
	q := db.New(s.db.Reader())
	var rows []db.Run
	if scan.Experiment == "" {
		rows, err = q.ScanRuns(ctx, db.ScanRunsParams{
			WorkspaceUID: scan.Workspace, StartTime: after.Time, UID: after.UID, StartTime_2: scan.Oldest, Kind: int64(computev1.Run_KIND_REPLICA),
			Deleted: int64(scan.Least), Deleted_2: int64(scan.Most), Column8: int64(limit),
		})
	} else {
		rows, err = q.ScanRunsOfExperiment(ctx, db.ScanRunsOfExperimentParams{
			WorkspaceUID: scan.Workspace, Experiment: scan.Experiment, StartTime: after.Time, UID: after.UID, StartTime_2: scan.Oldest, Kind: int64(computev1.Run_KIND_REPLICA),
			Deleted: int64(scan.Least), Deleted_2: int64(scan.Most), Column8: int64(limit),
		})
	}
	if err != nil {
		return nil, after, false, sqldb.Fault(err)
	}
	for _, row := range rows {
		after = Cursor{Time: row.StartTime, UID: row.UID}
		c := Clear{Experiment: row.Experiment, State: computev1.Run_State(row.State), Started: instant(row.StartTime), Ended: instant(row.EndTime)}
		if scan.Keep != nil && !scan.Keep(c) {
			continue
		}
		r, err := s.run(ctx, row)
		if err != nil {
			return nil, after, false, err
		}
		runs = append(runs, r)
	}
	return runs, after, len(rows) == limit, nil
}
