// Package scale measures what grows: a run with very many metrics, a snapshot of very many files, a file of the largest size. In
// make test it does so at a size that takes seconds and looks whether the answers are right and stay within their bounds; make scale does
// it at full size and prints figures.
package scale
