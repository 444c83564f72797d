//go:build !redoubt_break_relay

package audit

import (
	"context"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// remove deletes what is stored.
func remove(ctx context.Context, write sqldb.WriteFunc, stored int64) error {
	return write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM outbox WHERE seq <= $1", stored)
		return err
	})
}
