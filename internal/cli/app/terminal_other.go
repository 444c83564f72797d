//go:build !linux

package app

import (
	"context"
	"os"
)

// IsTerminal: where terminals are not known there is none, and what would be typed comes from standard input or a file.
func IsTerminal(*os.File) bool { return false }

func terminalWidth(*os.File) int { return 80 }

func readHidden(context.Context, *os.File) ([]byte, error) {
	return nil, Usagef("there is no terminal to ask at")
}
