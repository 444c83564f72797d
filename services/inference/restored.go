package inference

import (
	"context"

	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Restored puts a store right that came back from a backup, before anything runs on it: tokens of endpoints that were issued until now
// count no longer, since one that was revoked after the backup would count again. The endpoints' two keys stay as they were at the backup.
func Restored(ctx context.Context, db *sqldb.DB) error {
	return db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM endpoint_tokens")
		return err
	})
}
