//go:build !redoubt_break_fence

package sqldb

import "strconv"

// idleSetting is idleInTransaction as PostgreSQL has it, in milliseconds.
func idleSetting() string { return strconv.FormatInt(idleInTransaction.Milliseconds(), 10) }

// last is passed just before a COMMIT is sent.
func last() {}
