package fault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

// Error is an error that may cross a border. The zero value is not useful: make one with New or Wrap.
type Error struct {
	code    codes.Code
	reason  faultv1.Reason
	message string
	meta    map[string]string
	fields  []Violation
	retry   time.Duration
	cause   error
	foreign bool // from a status without a reason of ours: the message is not for callers
}

// Violation names one field of a request and what is wrong with it.
type Violation struct{ Field, Description string }

// New makes an Error. The message is read by the caller: it says what is wrong and what to do next.
func New(c codes.Code, reason faultv1.Reason, format string, args ...any) *Error {
	return &Error{code: c, reason: reason, message: fmt.Sprintf(format, args...)}
}

// Wrap makes an Error with a cause that is logged and found by errors.Is, and is never sent.
func Wrap(cause error, code codes.Code, reason faultv1.Reason, format string, args ...any) *Error {
	e := New(code, reason, format, args...)
	e.cause = cause
	return e
}

// Error implements error, for logs: it includes the cause.
func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.reason, e.message, e.cause)
	}
	return fmt.Sprintf("%s: %s", e.reason, e.message)
}

// Unwrap gives the cause, or nil.
func (e *Error) Unwrap() error { return e.cause }

// Message is the text that the caller reads.
func (e *Error) Message() string { return e.message }

// Metadata is what ErrorInfo carries beside the reason. The map must not be changed.
func (e *Error) Metadata() map[string]string { return e.meta }

// Violations are the fields that were refused.
func (e *Error) Violations() []Violation { return e.fields }

// RetryAfter is the wait that the sender asks for, or 0.
func (e *Error) RetryAfter() time.Duration { return e.retry }

// With returns a copy with one more metadata pair. Keys are at most 64 characters (AIP-193).
func (e *Error) With(key, value string) *Error {
	c := *e
	c.meta = maps.Clone(e.meta)
	if c.meta == nil {
		c.meta = make(map[string]string, 2)
	}
	c.meta[key] = value
	return &c
}

// Field returns a copy with one more violation, sent as google.rpc.BadRequest.
func (e *Error) Field(field, description string) *Error {
	c := *e
	c.fields = append(append([]Violation(nil), e.fields...), Violation{field, description})
	return &c
}

// Retry returns a copy that asks the caller to wait, sent as google.rpc.RetryInfo.
func (e *Error) Retry(after time.Duration) *Error {
	c := *e
	c.retry = after
	return &c
}

// Code is the canonical code of err: codes.OK for nil, codes.Unknown never (what is not known is Internal).
func Code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return from(err).code
}

// ReasonOf is the reason of err, REASON_UNSPECIFIED only for nil.
func ReasonOf(err error) faultv1.Reason {
	if err == nil {
		return faultv1.Reason_REASON_UNSPECIFIED
	}
	return from(err).reason
}

// Is reports whether err has the code.
func Is(err error, code codes.Code) bool { return Code(err) == code }

// generic is the reason of each code where nothing narrower is known.
var generic = [...]faultv1.Reason{
	codes.OK:                 faultv1.Reason_REASON_UNSPECIFIED,
	codes.Canceled:           faultv1.Reason_CALL_CANCELED,
	codes.Unknown:            faultv1.Reason_INTERNAL_FAULT,
	codes.InvalidArgument:    faultv1.Reason_REQUEST_INVALID,
	codes.DeadlineExceeded:   faultv1.Reason_DEADLINE_PASSED,
	codes.NotFound:           faultv1.Reason_RESOURCE_NOT_FOUND,
	codes.AlreadyExists:      faultv1.Reason_RESOURCE_ALREADY_EXISTS,
	codes.PermissionDenied:   faultv1.Reason_ACCESS_DENIED,
	codes.ResourceExhausted:  faultv1.Reason_LIMIT_EXCEEDED,
	codes.FailedPrecondition: faultv1.Reason_PRECONDITION_FAILED,
	codes.Aborted:            faultv1.Reason_CONFLICT,
	codes.OutOfRange:         faultv1.Reason_REQUEST_INVALID,
	codes.Unimplemented:      faultv1.Reason_METHOD_UNKNOWN,
	codes.Internal:           faultv1.Reason_INTERNAL_FAULT,
	codes.Unavailable:        faultv1.Reason_SERVICE_UNAVAILABLE,
	codes.DataLoss:           faultv1.Reason_DATA_DAMAGED,
	codes.Unauthenticated:    faultv1.Reason_CREDENTIAL_INVALID,
}

func genericOf(code codes.Code) faultv1.Reason {
	if int(code) < len(generic) {
		return generic[code]
	}
	return faultv1.Reason_INTERNAL_FAULT
}

// NotFound says that there is no such resource, or none that the caller may know of: the same words for both (AIP-211).
func NotFound(format string, args ...any) *Error { return plain(codes.NotFound, format, args) }

// InvalidArgument says that the request itself is wrong; add Field for each violation.
func InvalidArgument(format string, args ...any) *Error {
	return plain(codes.InvalidArgument, format, args)
}

// AlreadyExists says that the name is taken.
func AlreadyExists(format string, args ...any) *Error {
	return plain(codes.AlreadyExists, format, args)
}

// FailedPrecondition says that the resource is not in a state that allows the call.
func FailedPrecondition(format string, args ...any) *Error {
	return plain(codes.FailedPrecondition, format, args)
}

// Unavailable says that something is away for now; the call can be repeated.
func Unavailable(format string, args ...any) *Error { return plain(codes.Unavailable, format, args) }

// PermissionDenied says that the caller is known and may not.
func PermissionDenied(format string, args ...any) *Error {
	return plain(codes.PermissionDenied, format, args)
}

// Unauthenticated says that the caller is not known.
func Unauthenticated(format string, args ...any) *Error {
	return plain(codes.Unauthenticated, format, args)
}

// ResourceExhausted says that a limit is reached.
func ResourceExhausted(format string, args ...any) *Error {
	return plain(codes.ResourceExhausted, format, args)
}

// Aborted says that another change came first.
func Aborted(format string, args ...any) *Error { return plain(codes.Aborted, format, args) }

// Internal is a fault of ours. The cause is logged; the caller reads only the message.
func Internal(cause error, format string, args ...any) *Error {
	e := plain(codes.Internal, format, args)
	e.cause = cause
	return e
}

func plain(code codes.Code, format string, args []any) *Error {
	return New(code, genericOf(code), format, args...)
}

// from turns any error into a *Error without losing what can be known of it.
func from(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.Canceled):
		return Wrap(err, codes.Canceled, faultv1.Reason_CALL_CANCELED, "the call was canceled")
	case errors.Is(err, context.DeadlineExceeded):
		return Wrap(err, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the deadline passed; repeat the call with a longer one")
	}
	if s, ok := statusOf(err); ok {
		return decode(s)
	}
	return Wrap(err, codes.Internal, faultv1.Reason_INTERNAL_FAULT, "internal fault")
}

// Describe gives any error as a *Error, for readers of its parts: one that came over the wire with what it carried, another as
// INTERNAL. nil gives nil.
func Describe(err error) *Error {
	if err == nil {
		return nil
	}
	return from(err)
}

// CodeName is a canonical code as people and contracts write it: "OK", "PERMISSION_DENIED" (google.rpc.Code).
func CodeName(c codes.Code) string { return code.Code(c).String() }
