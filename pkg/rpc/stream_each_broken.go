//go:build redoubt_break_fence

package rpc

import (
	"os"
	"strings"
)

// onceForAll has streams go on after a revocation, in programs that are built to be caught.
func onceForAll() bool {
	return strings.Contains(","+os.Getenv("REDOUBT_BREAK_FENCE")+",", ",stream,")
}
