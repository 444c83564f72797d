// Package mlflowapi owns MLflow's REST API of a workspace: experiments, runs and what they log, artifacts, registered models and their
// versions, so that an unmodified client of MLflow works.
//
// Trust boundary: the request is a stranger's. Nothing is decided and nothing is kept here: a route is an RPC of compute, telemetry or
// inference, made with the caller's own token by package onward. Paths of artifacts are taken apart from the path as it was sent, decoded
// once, and refused if they could mean anything but a file below the run.
//
// Invariants: an answer is 200 with a JSON object, or an error with error_code and message. What has no RPC behind it is refused, not
// answered as if it had been done. A source of a model version is a run or a version of the same workspace, nothing else.
//
// Failure: refusals of services come in MLflow's words (package mlflow). A download that breaks off in the middle cuts the connection.
package mlflowapi
