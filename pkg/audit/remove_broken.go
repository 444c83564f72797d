//go:build redoubt_break_relay

package audit

import (
	"context"
	"time"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// remove deletes what is stored, later than it could: so that a service that is killed soon delivers again. The bug itself is in telemetry,
// which takes it again with this build tag.
func remove(ctx context.Context, write sqldb.WriteFunc, stored int64) error {
	time.Sleep(50 * time.Millisecond)
	return write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM outbox WHERE seq <= $1", stored)
		return err
	})
}
