package fence

import (
	"context"
)

// row ends the life when a transaction did not find its row: somebody has counted it as gone.
func (in *life) row() error {
	select {
	case <-in.gone:
		return errRowGone
	case <-in.ctx.Done():
		return nil
	}
}

// tidyEvery is how many leases lie between two looks at what the dead have left.
const tidyEvery = 3

// tidy takes away, now and then, the rows and marks of members of this place that are gone, so that no change finds many of them.
func (in *life) tidy() error {
	f := in.f
	for {
		pause(in.ctx, tidyEvery*f.cfg.Times.Lease)
		if in.ctx.Err() != nil {
			return nil //nolint:nilerr // it ends with the life
		}
		ctx, cancel := context.WithTimeout(in.ctx, f.cfg.Times.Lease)
		f.tidyUp(ctx)
		cancel()
	}
}

func (f *Fence) tidyUp(ctx context.Context) {
	m, err := f.list(ctx)
	if err != nil {
		return
	}
	keep := []string{}
	for mark, in := range m.marks {
		if in.Class != SQLFence || in.Place != f.cfg.Place {
			continue
		}
		if _, live := m.inst[f.keyOf(mark)]; live || !f.pay(ctx, debt{row: in.Life, mark: mark}) {
			keep = append(keep, in.Life)
		}
	}
	// A row that has no mark is that of a life that did not come to register, or of one whose last member could not reach the database.
	if err := f.cfg.Rows.Sweep(ctx, keep); err != nil && ctx.Err() == nil {
		f.cfg.Logger.WarnContext(ctx, "rows that nobody needs could not be taken away", "error", err)
	}
}
