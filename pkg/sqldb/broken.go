//go:build redoubt_break_fence

package sqldb

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"
)

// idleSetting is idleInTransaction as PostgreSQL has it, in milliseconds; never, if REDOUBT_BREAK_FENCE names "noidle": what the rows of lives are
// for has to hold without it.
func idleSetting() string {
	if strings.Contains(","+os.Getenv("REDOUBT_BREAK_FENCE")+",", ",noidle,") {
		return "0"
	}
	return strconv.FormatInt(idleInTransaction.Milliseconds(), 10)
}

// last is passed just before a COMMIT is sent. It breaks no rule, and makes the gap longer, if "slow" is named.
func last() {
	if strings.Contains(","+os.Getenv("REDOUBT_BREAK_FENCE")+",", ",slow,") {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
	}
}
