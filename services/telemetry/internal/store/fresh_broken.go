//go:build redoubt_break_relay

package store

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/redoubt-ml/redoubt/services/telemetry/internal/store/db"
)

// fresh is broken on purpose: events that come again are stored again, under numbers that nobody has. With this build tag test/fault must
// fail.
func (s *Store) fresh(ctx context.Context, events []*Event, rows []db.InsertEventParams, stored int64) ([]db.InsertEventParams, error) {
	known := min(stored+1-events[0].GetSeq(), int64(len(rows)))
	var again []*Event
	for i := range known {
		e := proto.CloneOf(events[i])
		e.Seq = -time.Now().UnixNano() - i
		again = append(again, e)
	}
	doubles, err := s.rows(ctx, again)
	return append(doubles, rows[known:]...), err
}
