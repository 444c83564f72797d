package flow

import (
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// Refusal is a fault with the HTTP status that it reads as.
type Refusal struct {
	*fault.Error
	Status int
	// Header is one more header of the answer, "" for none, and Value its value.
	Header, Value string
}

// Refuse makes a Refusal.
func Refuse(status int, code codes.Code, reason faultv1.Reason, format string, args ...any) *Refusal {
	return &Refusal{Error: fault.New(code, reason, format, args...), Status: status}
}

// BadRequest says that the request itself is wrong.
func BadRequest(format string, args ...any) *Refusal {
	return Refuse(http.StatusBadRequest, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, format, args...)
}

// NotFound says that there is nothing by that name.
func NotFound(format string, args ...any) *Refusal {
	return Refuse(http.StatusNotFound, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, format, args...)
}

// WrongMethod says which methods a path takes.
func WrongMethod(allow string) *Refusal {
	r := Refuse(http.StatusMethodNotAllowed, codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "this path takes %s only", allow)
	r.Header, r.Value = "Allow", allow
	return r
}

// TooLarge says how large a body may be.
func TooLarge(limit int64) *Refusal {
	return Refuse(http.StatusRequestEntityTooLarge, codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE,
		"the body is larger than the deployment takes: %d bytes, unpacked", limit)
}

// ModelFailed says that user code, or what it answered, is of no use.
func ModelFailed(status int, format string, args ...any) *Refusal {
	return Refuse(status, codes.Internal, faultv1.Reason_MODEL_FAILED, format, args...)
}

// NoReplica says that no worker is connected.
func NoReplica() *Refusal {
	return Again(Refuse(http.StatusServiceUnavailable, codes.Unavailable, faultv1.Reason_REPLICA_UNAVAILABLE,
		"no replica of the deployment answers: look at its state and its log, or come back later"), 5*time.Second)
}

func late() *Refusal {
	return Refuse(http.StatusGatewayTimeout, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED,
		"the model did not answer within the deployment's request timeout: send less at a time, or raise it")
}

// Gone says that nobody is left to read an answer.
func Gone() *Refusal {
	return Refuse(ClientGone, codes.Canceled, faultv1.Reason_CALL_CANCELED, "the caller went away")
}

// ClientGone stands in records only: nobody is left to read it.
const ClientGone = 499

// Again adds when to come back.
func Again(r *Refusal, after time.Duration) *Refusal {
	r.Error = r.Retry(after)
	return r
}

// ExchangeFailed says what the failure of an exchange means to the caller.
func ExchangeFailed(err error) *Refusal {
	switch {
	case errors.Is(err, pool.ErrDeadline):
		return late()
	case errors.Is(err, pool.ErrMalformed):
		return ModelFailed(http.StatusBadGateway, "the model's host gave an answer that cannot be read")
	}
	return Refuse(http.StatusBadGateway, codes.Unavailable, faultv1.Reason_REPLICA_UNAVAILABLE,
		"the worker went away while it had the request, and it is not sent again: repeat it if it may be carried out twice")
}
