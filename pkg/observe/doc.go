// Package observe owns what a process tells about itself: the log, the metrics and the traces. The activity log, which
// is the proof of who did what, is not here.
//
// Trust boundary: what is logged may hold what strangers sent and what users keep secret, and the reader of a log may
// see neither. Three nets lie under each other: values of type redact.Secret never show; attributes whose key names a
// secret are replaced; and what looks like a token in the finished line is masked, whichever way it came in. Values
// that are not scalars, errors or Stringers are shown as their type alone, since nobody can tell what is inside. The
// nets catch accidents: they are no licence to log a secret, and what is encoded once more (base64 of a token) passes.
// A traceparent from outside is data: it never makes this process record a span, nor does it choose the trace id by
// which the process decides (Tracing.Accept).
//
// Invariants: nothing is registered in a process global, so two services live in one process with an Observe each;
// writing a log line takes no system call on the path of a call, unless it is an error; a log destination that
// hangs costs lines, which are counted and reported, and never a call; the number of metric series is bounded by what
// the code registers, never by what callers send.
//
// Failure: a log, a scrape or an export that fails is counted and loses data; nothing else stops. Up to 100 ms of
// lines below error level are lost if the process is killed.
//
// Everything here is safe for concurrent use.
package observe
