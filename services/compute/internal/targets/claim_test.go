package targets

import (
	"testing"
	"time"
)

// A call that waits for work ends before its connection is asked to go, however long it would like to wait (D10, H3).
func TestClaimsEndBeforeTheirConnection(t *testing.T) {
	for _, c := range []struct{ age, wanted, want time.Duration }{
		{0, time.Minute, maxClaimWait}, {0, time.Second, time.Second}, {0, -time.Second, 0},
		{20 * time.Minute, time.Minute, maxClaimWait}, {4 * time.Second, 30 * time.Second, time.Second}, {4 * time.Second, 0, 0},
	} {
		if got := (Config{ConnectionAge: c.age}).claimWait(c.wanted); got != c.want {
			t.Errorf("connections of %v, wanted %v: %v", c.age, c.wanted, got)
		}
	}
}
