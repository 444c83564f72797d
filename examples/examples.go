// Package examples holds the examples' files, so that `redoubt demo` works from any folder.
//
// Trust boundary, invariants, failure: none; it is data. Where the data comes from stands beside it in SOURCE.md.
package examples

import "embed"

// BreastCancer is the folder breast-cancer: the data set with its source, and scripts that train and score in Python's standard library.
//
//go:embed breast-cancer
var BreastCancer embed.FS
