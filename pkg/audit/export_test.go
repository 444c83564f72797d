package audit

import "context"

// MaxFrom is how many addresses are known of all bursts together.
const MaxFrom = maxFrom

// EndBursts makes events of the bursts that are over.
func (o *Outbox) EndBursts(ctx context.Context) error { return o.endBursts(ctx, false) }
