// Package artifacts owns the routes of MLflow's API about files: lists, and the proxy through which clients store and fetch them.
//
// Trust boundary: as of package mlflowapi. Files pass in pieces, in both directions; none is held as a whole.
//
// Invariants: an upload that breaks off stores nothing; a download that breaks off cuts the connection, so that it cannot be taken for the
// whole file. A file is never shown in a browser: it is an attachment of no type.
//
// Failure: refusals of services, in MLflow's words.
package artifacts
