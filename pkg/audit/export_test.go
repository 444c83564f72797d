package audit

import (
	"context"
	"errors"
	"time"
)

// MaxFrom is how many addresses are known of all bursts together.
const MaxFrom = maxFrom

// EndBursts makes events of the bursts that are over.
func (o *Outbox) EndBursts(ctx context.Context) error { return o.endBursts(ctx, false) }

// EndLeft ends what was over by then, and lets something happen between reading and ending it.
func (o *Outbox) EndLeft(ctx context.Context, by time.Time, between func()) error {
	left, damaged, err := o.leftBursts(ctx, by)
	if err != nil {
		return err
	}
	between()
	return errors.Join(o.endRead(ctx, left), damaged)
}
