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
	Experiment string
	State      computev1.Run_State
	// Started is when it was made, where it has not started.
	Started, Ended time.Time // zero where it did not happen
}

// Scan says which runs of a workspace are read. Replicas never are.
type Scan struct {
	Workspace string
	// Experiment is the id of the one whose runs are read; "" for all.
	Experiment string
	// Oldest and Newest bound the start, both inclusive, in microseconds. Newest 0 is no bound.
	Oldest, Newest int64
	// Least and Most bound how they are deleted, both inclusive.
	Least, Most Deleted
	// Keep says of a row, before it is opened, whether it is wanted; nil for all.
	Keep func(c Clear) bool
}

// Clear is what its row says of a run.
func (r *Run) Clear() Clear {
	c := Clear{Experiment: r.Experiment, State: r.State, Started: r.Started, Ended: r.Ended}
	if c.Started.IsZero() {
		c.Started = r.Created
	}
	return c
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
			WorkspaceUID: scan.Workspace, Newest: after.Time, AfterUID: after.UID, Oldest: scan.Oldest, Kind: int64(computev1.Run_KIND_REPLICA),
			Least: int64(scan.Least), Most: int64(scan.Most), Rows: int64(limit),
		})
	} else {
		rows, err = q.ScanRunsOfExperiment(ctx, db.ScanRunsOfExperimentParams{
			WorkspaceUID: scan.Workspace, Experiment: scan.Experiment, Newest: after.Time, AfterUID: after.UID, Oldest: scan.Oldest, Kind: int64(computev1.Run_KIND_REPLICA),
			Least: int64(scan.Least), Most: int64(scan.Most), Rows: int64(limit),
		})
	}
	if err != nil {
		return nil, after, false, sqldb.Fault(err)
	}
	for _, row := range rows {
		started := row.StartTime
		if started == 0 {
			started = row.CreateTime
		}
		after = Cursor{Time: started, UID: row.UID}
		c := Clear{Experiment: row.Experiment, State: computev1.Run_State(row.State), Started: instant(started), Ended: instant(row.EndTime)}
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
