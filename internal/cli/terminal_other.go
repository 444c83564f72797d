//go:build !linux

package cli

import (
	"context"
	"os"
)

// Where terminals are not known there is none, and what would be typed comes from standard input or a file.
func isTerminal(*os.File) bool { return false }

func readHidden(context.Context, *os.File) ([]byte, error) {
	return nil, usagef("there is no terminal to ask at")
}
