// Package tracking owns the routes of MLflow's API about experiments, runs and what runs log.
//
// Trust boundary: as of package mlflowapi. What a run took in and gave out has no place of its own behind; it stands in tags of the run
// that only these routes write.
//
// Invariants: a run's name is the run's, not a tag. An answer with half of a history is cut, never ended as if it were whole.
//
// Failure: refusals of services, in MLflow's words.
package tracking
