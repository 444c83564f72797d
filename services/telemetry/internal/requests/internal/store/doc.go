// Package store has the schema of the request log, and in db the code that sqlc makes of its queries. It holds no logic: what is sealed,
// and what stands in which transaction, is package requests'.
package store

import "embed"

// Migrations are the goose files, in the folder migrations.
//
//go:embed migrations/*.sql
var Migrations embed.FS
