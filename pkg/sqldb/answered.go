//go:build !redoubt_break_commit

package sqldb

import "context"

// answered runs one write transaction, and returns when it is committed. The caller holds the gate, which is given back.
func (db *DB) answered(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	defer db.leave()
	return db.transact(ctx, fn)
}
