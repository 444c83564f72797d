//go:build redoubt_break_commit

package sqldb

import (
	"context"
	"time"
)

// answered is broken on purpose: it returns before the commit. With this build tag test/fault must fail.
func (db *DB) answered(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	answer := make(chan error, 2)
	go func() {
		defer db.leave()
		answer <- db.transact(context.WithoutCancel(ctx), func(ctx context.Context, tx *Tx) error {
			err := fn(ctx, tx)
			if err == nil {
				answer <- nil
				time.Sleep(10 * time.Millisecond) // so that it shows soon
			}
			return err
		})
	}()
	return <-answer
}
