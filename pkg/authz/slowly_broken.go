//go:build redoubt_break_fence

package authz

import (
	"math/rand/v2"
	"os"
	"strings"
	"time"
)

// slowly has state applied late, in programs that are built to be caught: no rule is broken by it.
func slowly[M any](apply func(*M) error) func(*M) error {
	if !strings.Contains(","+os.Getenv("REDOUBT_BREAK_FENCE")+",", ",slow,") {
		return apply
	}
	return func(m *M) error {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		return apply(m)
	}
}
