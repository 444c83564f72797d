//go:build redoubt_break_fence

package fence

import (
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
		case "deadline": // r1, r4: a member goes on when its lease is over
			o.deadline = true
		}
	}
	return o
}

// widened makes the gap longer that a rule leaves which is off, where it would be a fraction of a millisecond.
func widened() func(point string) {
	if !broken().quiesce {
		return nil
	}
	return func(point string) {
		if point == "published" {
			time.Sleep(30 * time.Millisecond)
		}
	}
}
