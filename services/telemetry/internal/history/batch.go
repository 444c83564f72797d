//go:build !redoubt_break_batch

package history

// batchID is what a batch is known again by.
func batchID(b *Batch) string { return b.ID }
