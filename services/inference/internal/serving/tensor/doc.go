// Package tensor owns the translation between what clients of other protocols send (Open Inference Protocol v2 over REST and gRPC, KServe v1,
// MLflow's scoring server) and the one shape that workers know: {"data": rows} in, a list or an object with one out.
//
// Trust boundary: what it reads was written by strangers, or by user code. Shape, count, bytes and datatype have to agree before anything is
// made of them; what is made is bounded by what came, times the 8 dimensions that a tensor may have.
//
// Invariants: elements are passed on as they were written, integers of 64 bits included; what JSON cannot say (NaN, infinity, bytes that are
// no text) is refused, never changed.
//
// Failure: an error, whose text is for the caller and says what does not agree.
package tensor
