//go:build redoubt_break_fence

package sqldb

import (
	"os"
	"strconv"
	"strings"
)

// idleSetting is idleInTransaction as PostgreSQL has it, in milliseconds; never, if REDOUBT_BREAK_FENCE names "noidle": what the rows of lives are
// for has to hold without it.
func idleSetting() string {
	if strings.Contains(","+os.Getenv("REDOUBT_BREAK_FENCE")+",", ",noidle,") {
		return "0"
	}
	return strconv.FormatInt(idleInTransaction.Milliseconds(), 10)
}
