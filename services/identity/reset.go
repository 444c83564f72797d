package identity

import (
	"context"
	"strconv"
	"strings"
	"time"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/identity/internal/store"
)

// Offline is identity's state with no service running on it: what whoever has its database and its seal works on, at its host.
type Offline struct {
	DB     *sqldb.DB
	Outbox *audit.Outbox
	Own    *envelope.Keyring
	Now    func() time.Time
}

// Reset is what a reset did.
type Reset struct {
	// User is users/{user}.
	User string
	// Removed factors, and sessions that ended.
	Removed, Ended int
	// Enrols says that the next sign-in asks for a new factor, Disabled that there is none before somebody enables him.
	Enrols, Disabled bool
}

// ResetFactors removes the factors and recovery codes of a user who has lost them, and nobody is there to do it by a call: the only Owner. His sessions end.
// It leaves a record.
//
// Errors: NOT_FOUND for a user that there is not.
func (o Offline) ResetFactors(ctx context.Context, user string) (Reset, error) {
	b, err := openBox(ctx, o.Own)
	if err != nil {
		return Reset{}, err
	}
	s := &Service{cfg: Config{DB: o.DB, Outbox: o.Outbox, Now: o.Now}, box: b, store: store.New(b)}
	id, now := strings.TrimPrefix(user, "users/"), o.Now()
	var out Reset
	err = o.DB.Write(ctx, func(ctx context.Context, tx *sqldb.Tx) error {
		p, ok, err := s.store.Find(ctx, tx, store.User, id)
		if err != nil || !ok {
			return orElse(err, fault.NotFound("there is no user %s here", id))
		}
		out = Reset{User: p.Name(), Disabled: p.Disabled}
		if out.Enrols, err = s.store.RequireMFA(ctx, tx); err != nil {
			return err
		}
		if out.Removed, out.Ended, err = s.dropFactors(ctx, tx, p.UID, now); err != nil {
			return err
		}
		return o.Outbox.Append(ctx, tx, &audit.Event{
			Method: "/" + Name + "/factors reset at the host", Scope: resource.Root, Result: telemetryv1.ActivityEvent_RESULT_SUCCEEDED, Code: "OK", Count: 1,
			Details: map[string]string{"name": out.User, "uid": p.UID, "removed": strconv.Itoa(out.Removed), "sessions_ended": strconv.Itoa(out.Ended)},
		})
	})
	if err != nil {
		return Reset{}, err
	}
	return out, nil
}

// dropFactors removes all factors and recovery codes of a user, and whatever he is signed in by.
func (s *Service) dropFactors(ctx context.Context, tx *sqldb.Tx, uid string, now time.Time) (removed, ended int, err error) {
	if removed, err = s.store.DropFactors(ctx, tx, uid); err != nil {
		return 0, 0, err
	}
	if err = s.store.DropSignIns(ctx, tx, uid); err != nil {
		return 0, 0, err
	}
	ended, err = s.endSessions(ctx, tx, uid, nil, now)
	return removed, ended, err
}
