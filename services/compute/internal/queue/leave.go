//go:build !redoubt_break_start

package queue

import (
	"context"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// leave commits the change with which a run leaves the queue.
func (q *Queue) leave(ctx context.Context, uid string, change func(context.Context, *sqldb.Tx, *store.Run) error) (*store.Run, error) {
	return q.cfg.Store.Update(ctx, uid, change, nil)
}

// Left reports whether a run has left the queue, so that an agent may carry it.
func Left(r *store.Run) bool { return r.State != computev1.Run_STATE_QUEUED }
