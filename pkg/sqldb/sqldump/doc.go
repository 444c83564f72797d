// Package sqldump writes the tables of a store as bytes that no engine has made, and reads them back into a store of either engine. It is
// how a backup gets from SQLite to PostgreSQL.
//
// # What it owns
//
// The form of packed rows: for each value a byte for its kind, then a varint (integers) or a length and bytes (texts, bytes). Only the
// types of sqldb's subset exist: BIGINT, TEXT, BYTEA, each of which may be NULL.
//
// # Invariants
//
// Rows come in the order of their primary key, integers by value, texts and bytes byte by byte, on both engines: the same rows make the same
// bytes. Tables come after those that they refer to. A column of another type, and a value that is not of its column's type, are errors and
// never converted: a conversion would come back as something else.
//
// # Trust boundary
//
// Names of tables and columns come from the engine's catalogue alone, and those in a dump are only compared with it. Packed rows may come from
// anybody: what is malformed or longer than it says is DATA_DAMAGED, and nothing is allocated for what is not there.
//
// # How it fails
//
// Errors of the engine are sqldb's faults. An interrupted Insert is the transaction's to undo.
package sqldump
