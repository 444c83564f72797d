// Package registry owns the routes of MLflow's API about registered models and their versions.
//
// Trust boundary: as of package mlflowapi. A source of a version is a run or a version of the same workspace; whatever else it could be is
// somebody else's and is refused before a service is asked. Filters are read in one pass, with a bound on their terms.
//
// Invariants: a stage is the alias of its name. A change of tags is made on what was read, or begun again.
//
// Failure: refusals of services, in MLflow's words.
package registry
