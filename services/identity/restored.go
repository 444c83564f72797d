package identity

import (
	"context"
	"time"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

// Backup says what a store was restored from.
type Backup struct {
	ID   string
	Time time.Time
}

// Restored puts a store right that came back from a backup, before anything runs on it: nothing that was issued until now counts any
// longer, since what was revoked after the backup would otherwise count again. The keys that sign tokens go, and with them every token of a
// user, a run or a service; sessions; the pinned keys of services, which enrol anew; join tokens. The mesh's root stays, and certificates under
// it last for their hour. The activity log gets a record of it.
func Restored(ctx context.Context, db *sqldb.DB, outbox *audit.Outbox, from Backup) error {
	return db.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		for _, query := range []string{
			"DELETE FROM signing_keys", // the service makes another at its start
			"DELETE FROM sessions", "DELETE FROM join_tokens", "DELETE FROM pinned_keys",
		} {
			if _, err := tx.ExecContext(ctx, query); err != nil {
				return err
			}
		}
		return outbox.Append(ctx, tx, &audit.Event{
			Method: "/" + Name + "/restored from a backup", Scope: resource.Root, Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: "OK", Count: 1,
			Details: map[string]string{"backup": from.ID, "time": from.Time.UTC().Format(time.RFC3339)},
		})
	})
}
