package mlflow

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Refusal is an error as MLflow's clients read it.
type Refusal struct {
	Status  int           `json:"-"` // of HTTP
	Code    string        `json:"error_code"`
	Message string        `json:"message"`
	After   time.Duration `json:"-"` // how long to wait, or 0
}

// Error implements error.
func (r *Refusal) Error() string { return r.Code + ": " + r.Message }

// Refuse makes a Refusal.
func Refuse(status int, code, message string) *Refusal {
	return &Refusal{Status: status, Code: code, Message: message}
}

// BadParameter says that a field of the request is wrong.
func BadParameter(message string) *Refusal {
	return Refuse(http.StatusBadRequest, "INVALID_PARAMETER_VALUE", message)
}

// BadRequest says that the request cannot be read.
func BadRequest(message string) *Refusal {
	return Refuse(http.StatusBadRequest, "BAD_REQUEST", message)
}

// NoEndpoint says that there is no such route.
func NoEndpoint(message string) *Refusal {
	return Refuse(http.StatusNotFound, "ENDPOINT_NOT_FOUND", message)
}

// NoResource says that there is no such thing.
func NoResource(message string) *Refusal {
	return Refuse(http.StatusNotFound, "RESOURCE_DOES_NOT_EXIST", message)
}

// NotImplemented says that this is not done here.
func NotImplemented(message string) *Refusal {
	return Refuse(http.StatusNotImplemented, "NOT_IMPLEMENTED", message)
}

// RefusalOf is what a client reads of any error: of a *Refusal itself, of pkg/fault's by their codes. nil gives nil.
func RefusalOf(err error) *Refusal {
	if err == nil {
		return nil
	}
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	e := fault.Describe(fault.FromStatus(err))
	message := e.Message()
	switch fault.Code(e) {
	case codes.NotFound:
		return NoResource(message)
	case codes.AlreadyExists:
		return Refuse(http.StatusBadRequest, "RESOURCE_ALREADY_EXISTS", message)
	case codes.PermissionDenied:
		return Refuse(http.StatusForbidden, "PERMISSION_DENIED", message)
	case codes.Unauthenticated:
		return Refuse(http.StatusUnauthorized, "UNAUTHENTICATED", message)
	case codes.Aborted:
		return Refuse(http.StatusConflict, "RESOURCE_CONFLICT", message)
	case codes.FailedPrecondition:
		if fault.ReasonOf(e) == faultv1.Reason_RESOURCE_IN_USE {
			return Refuse(http.StatusConflict, "RESOURCE_CONFLICT", message)
		}
	case codes.ResourceExhausted:
		// A limit that does not pass with time is the request's fault.
		if fault.ReasonOf(e) == faultv1.Reason_RATE_LIMITED || e.RetryAfter() > 0 {
			r := Refuse(http.StatusTooManyRequests, "REQUEST_LIMIT_EXCEEDED", message)
			r.After = max(time.Second, e.RetryAfter())
			return r
		}
	case codes.Unimplemented:
		return NotImplemented(message)
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		r := Refuse(http.StatusServiceUnavailable, "TEMPORARILY_UNAVAILABLE", message)
		r.After = max(time.Second, e.RetryAfter())
		return r
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return Refuse(http.StatusInternalServerError, "INTERNAL_ERROR", message)
	}
	return BadParameter(message)
}

// Answer writes the refusal as the answer to a request.
func (r *Refusal) Answer(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if r.After > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((r.After+time.Second-1)/time.Second)))
	}
	w.WriteHeader(r.Status)
	_ = json.NewEncoder(w).Encode(r) // fails when the client is gone
}
