//go:build redoubt_break_start

package queue

import (
	"context"
	"errors"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// leave is broken on purpose: the run is handed out, and its change undone. With this build tag test/fault must fail.
func (q *Queue) leave(ctx context.Context, uid string, change func(context.Context, *sqldb.Tx, *store.Run) error) (taken *store.Run, err error) {
	undone := errors.New("undone")
	_, err = q.cfg.Store.Update(ctx, uid, func(ctx context.Context, tx *sqldb.Tx, r *store.Run) error {
		if err := change(ctx, tx, r); err != nil {
			return err
		}
		taken = r
		return undone
	}, nil)
	if errors.Is(err, undone) {
		return taken, nil
	}
	return nil, err
}

// Left is broken on purpose: nobody looks.
func Left(*store.Run) bool { return true }
