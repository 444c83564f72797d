//go:build !redoubt_break_relay

package store

import (
	"context"

	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store/db"
)

// fresh are the rows of events that are not stored yet.
func (s *Store) fresh(_ context.Context, events []*Event, rows []db.InsertEventParams, stored int64) ([]db.InsertEventParams, error) {
	return rows[min(stored+1-events[0].GetSeq(), int64(len(rows))):], nil
}
