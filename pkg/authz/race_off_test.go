//go:build !race

package authz

// raceFactor is how much slower than the goal a decision may be.
const raceFactor = 1
