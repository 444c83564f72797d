//go:build race

package authz

// raceFactor is how much slower than the goal a decision may be under the race detector.
const raceFactor = 50
