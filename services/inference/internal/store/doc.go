// Package store keeps what inference knows: models with their versions, aliases and users, and endpoints with their deployments.
//
// Trust boundary: rows come from a database that others may have changed. What a tenant wrote is ciphertext under the workspace's
// data key, bound to the row that it stands in; what is found must also bear the signature that it was registered with (package models).
//
// Invariants: a version is there with all that belongs to it or not at all; its number is never given twice; what a deployment holds
// is not removed. All of a workspace is asked for by its uid, so that it can have a database of its own later.
//
// Failure: driver errors become kinds of pkg/fault here. What does not open, or stands in the wrong place, is DATA_DAMAGED.
package store
