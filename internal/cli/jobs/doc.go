// Package jobs is the commands about training: snapshots of code, compute targets, experiments, runs and what they left.
//
// Trust boundary: folders are read and written by package client, which refuses what is no plain file. What runs printed is written
// as it is for `run logs`, and made harmless for a terminal everywhere else.
//
// Failure: errors of the installation come as they came; a run that was waited for and did not complete ends the command with the
// code of a refusal.
package jobs
