// Package runspec owns the rules for what a caller says about code that the platform runs: its environment, and paths in what it comes
// with. Runs and replicas of deployments have the same rules, so they stand here once.
//
// Trust boundary: everything comes from a caller, and is seen later by whoever may read the run or the deployment.
//
// Invariants: what looks like a credential is refused, since the environment is no place for one; so is what the agent sets itself.
// It is a net for mistakes and not a proof: a secret in disguise passes.
//
// Failure: InvalidArgument with the field, in words that never hold the value.
package runspec
