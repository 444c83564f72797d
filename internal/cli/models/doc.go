// Package models is the commands about models: versions that were registered from a run or uploaded, their aliases and tags, and the way
// of their files back to a folder.
//
// Trust boundary: folders are read and written by package client, which refuses what is no plain file, and compares what comes with
// the digests that the version tells.
//
// Failure: errors of the installation come as they came. A file that was downloaded is there whole or not at all.
package models
