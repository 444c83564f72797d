//go:build redoubt_break_fence

package fence

import (
	"math/rand/v2"
	"os"
	"strings"
	"time"
)

// broken are the rules that REDOUBT_BREAK_FENCE names, with commas between: off, in programs that are built to be caught.
func broken() (o off) {
	for name := range strings.SplitSeq(os.Getenv("REDOUBT_BREAK_FENCE"), ",") {
		switch name {
		case "wait": // a change waits for nobody
			o.wait = true
		case "repeat": // r9
			o.repeat = true
		case "quiesce": // r3
			o.quiesce = true
		case "apply": // published before the state has come
			o.apply = true
		case "check": // r4
			o.check = true
		case "row": // the row of who is gone stays
			o.row = true
		}
	}
	return o
}

// widened has effects take longer, if "slow" is named: it breaks no rule, and makes the gaps longer that rules close.
func widened() func(point string) {
	if !strings.Contains(","+os.Getenv("REDOUBT_BREAK_FENCE")+",", ",slow,") {
		return nil
	}
	return func(point string) {
		if point == "finishing" {
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		}
	}
}
