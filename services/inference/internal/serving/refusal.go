package serving

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/inference/internal/serving/pool"
)

// refusal is a fault with the HTTP status that it reads as.
type refusal struct {
	*fault.Error
	status int
	// header is one more header of the answer, "" for none.
	header, value string
}

func refuse(status int, code codes.Code, reason faultv1.Reason, format string, args ...any) *refusal {
	return &refusal{Error: fault.New(code, reason, format, args...), status: status}
}

func badRequest(format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID, format, args...)
}

func notFound(format string, args ...any) *refusal {
	return refuse(http.StatusNotFound, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, format, args...)
}

func wrongMethod(allow string) *refusal {
	r := refuse(http.StatusMethodNotAllowed, codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "this path takes %s only", allow)
	r.header, r.value = "Allow", allow
	return r
}

func tooLarge(limit int64) *refusal {
	return refuse(http.StatusRequestEntityTooLarge, codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE,
		"the body is larger than the deployment takes: %d bytes, unpacked", limit)
}

func modelFailed(status int, format string, args ...any) *refusal {
	return refuse(status, codes.Internal, faultv1.Reason_MODEL_FAILED, format, args...)
}

func noReplica() *refusal {
	return again(refuse(http.StatusServiceUnavailable, codes.Unavailable, faultv1.Reason_REPLICA_UNAVAILABLE,
		"no replica of the deployment answers: look at its state and its log, or come back later"), 5*time.Second)
}

func late() *refusal {
	return refuse(http.StatusGatewayTimeout, codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED,
		"the model did not answer within the deployment's request timeout: send less at a time, or raise it")
}

func gone() *refusal {
	return refuse(statusClientGone, codes.Canceled, faultv1.Reason_CALL_CANCELED, "the caller went away")
}

// statusClientGone stands in records only: nobody is left to read it.
const statusClientGone = 499

// again adds when to come back.
func again(r *refusal, after time.Duration) *refusal {
	r.Error = r.Retry(after)
	return r
}

// exchangeFailed says what the failure of an exchange means to the caller.
func exchangeFailed(err error) *refusal {
	switch {
	case errors.Is(err, pool.ErrDeadline):
		return late()
	case errors.Is(err, pool.ErrMalformed):
		return modelFailed(http.StatusBadGateway, "the model's host gave an answer that cannot be read")
	}
	return refuse(http.StatusBadGateway, codes.Unavailable, faultv1.Reason_REPLICA_UNAVAILABLE,
		"the worker went away while it had the request, and it is not sent again: repeat it if it may be carried out twice")
}

// errorBody is a refusal in the words of our own protocol.
func errorBody(r *refusal) []byte {
	type inner struct {
		Code    string `json:"code"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	b, err := json.Marshal(struct {
		Error inner `json:"error"`
	}{inner{fault.CodeName(fault.Code(r.Error)), fault.ReasonOf(r.Error).String(), r.Message()}})
	if err != nil { // strings always encode
		return []byte(`{}`)
	}
	return b
}
