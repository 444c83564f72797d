// Package db is what sqlc makes of ../queries.sql: one method for each statement, with its rows.
//
// It owns nothing, and is used by the store beside it alone, which decides who may ask, opens what is sealed and turns errors into faults.
//
// Invariant: all but this file is generated (`make gen`); values are bound, never part of the text.
//
// Failure: what database/sql returns, as it is.
package db
