// Package mlflow owns the shapes of MLflow's REST API that more than one part of Redoubt speaks: how numbers and logged data stand in
// JSON, what a request may hold, and how an error reads.
//
// Trust boundary: what is decoded here comes from strangers or from user code. Sizes and numbers are checked; which characters a name
// may have is the owner's of the data to say.
//
// Invariants: what JSON cannot say (NaN, infinite values) is a string in both directions; integers keep all their 64 bits, as numbers or
// as strings. Unknown fields are ignored, as MLflow's servers do it: clients send what a server need not know.
//
// Failure: a *Refusal, which is the error that MLflow's clients read. They repeat what they get a 429 or a 5xx for, so what would be
// refused again is refused with another status.
package mlflow
