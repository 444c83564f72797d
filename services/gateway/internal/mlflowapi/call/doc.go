// Package call owns what the routes of MLflow's API have in common: the fields of a request, the names that ids and paths in it can mean,
// and the parts of an answer that stand in several.
//
// Trust boundary: ids and paths are a stranger's. A name is made of an id only after the id was found to be one, so that it names what the
// route is about and nothing above or beside it, in the workspace of the tracking URI.
//
// Invariants: a path of an artifact has one meaning: what was sent is decoded once, and refused if it could be decoded again or climbs.
//
// Failure: *mlflow.Refusal.
package call
