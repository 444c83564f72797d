package rest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/intake"
	"github.com/redoubt-ml/redoubt/services/gateway/internal/onward"
)

// errorJSON is an error in the form of AIP-193.
type errorJSON struct {
	Error struct {
		Code    int               `json:"code"`
		Status  string            `json:"status"`
		Message string            `json:"message"`
		Details []json.RawMessage `json:"details"`
	} `json:"error"`
}

// encode writes a status as REST has it. A detail that cannot be written is left out.
func encode(st *spb.Status, httpCode int) []byte {
	var e errorJSON
	e.Error.Code, e.Error.Status, e.Error.Message = httpCode, fault.CodeName(codes.Code(st.GetCode())), st.GetMessage()
	e.Error.Details = []json.RawMessage{}
	for _, d := range st.GetDetails() {
		if b, err := protojson.Marshal(d); err == nil {
			e.Error.Details = append(e.Error.Details, b)
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		return []byte(`{"error":{"code":500,"status":"INTERNAL","message":"internal fault","details":[]}}`)
	}
	return b
}

// httpCode is the HTTP status of an error.
func httpCode(st *status.Status) int {
	for _, d := range st.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok && i.GetReason() == faultv1.Reason_MESSAGE_TOO_LARGE.String() {
			return http.StatusRequestEntityTooLarge
		}
	}
	return runtime.HTTPStatusFromCode(st.Code())
}

// statusOf is what a caller reads of err.
func (h *Handler) statusOf(err error, requestID string) *status.Status {
	var ours *fault.Error
	if !errors.As(err, &ours) {
		if st, ok := status.FromError(err); ok {
			if len(st.Details()) > 0 {
				return st // a service's
			}
			// grpc-gateway's own: it could not read the request.
			err = fault.InvalidArgument("the request cannot be read: %s", words(st.Message()))
		}
		var malformed *runtime.HTTPStatusError
		if errors.As(err, &malformed) {
			err = fault.InvalidArgument("the path cannot be read")
		}
	}
	return fault.ToStatus(err, "redoubt."+h.cfg.Installation, requestID)
}

// quoted is what a decoder repeats of a request: a text, or the beginning of what stands where a field's value should.
var quoted = regexp.MustCompile(`: [^:]*$|"(?:[^"\\]|\\.)*"?.*$`)

// words is what a decoder says is wrong, and where, without what it writes in front of it and without what was sent: that may be a secret.
func words(s string) string {
	s = strings.TrimPrefix(strings.ReplaceAll(s, "\u00a0", " "), "proto: ")
	for _, known := range []string{"unknown field ", "duplicate field ", "invalid value for ", "unexpected token ", "invalid character "} {
		if i := strings.Index(s, known); i >= 0 {
			head, tail := s[:i+len(known)], s[i+len(known):]
			if known == "invalid value for " { // "string field name: value", whose name is one of ours
				name, _, _ := strings.Cut(tail, ":")
				return head + quoted.ReplaceAllString(name, "")
			}
			return strings.TrimSpace(head)
		}
	}
	return quoted.ReplaceAllString(s, "")
}

// Refuse answers with an error.
func (h *Handler) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	st := h.statusOf(err, onward.RequestID(r))
	code := httpCode(st)
	head := w.Header()
	head.Set("Content-Type", "application/json")
	Challenge(head, st)
	if after := fault.Describe(st.Err()).RetryAfter(); after > 0 {
		head.Set("Retry-After", strconv.Itoa(max(1, int((after+time.Second-1)/time.Second))))
	}
	w.WriteHeader(code)
	_, _ = w.Write(encode(st.Proto(), code))
}

// Challenge says in the headers of an answer how a caller is to say who he is, where that is what is missing (RFC 6750 section 3), or that his
// sign-in is not fresh enough (RFC 9470).
func Challenge(head http.Header, st *status.Status) {
	if st.Code() != codes.Unauthenticated {
		return
	}
	challenge := `Bearer realm="redoubt"`
	for _, d := range st.Details() {
		i, ok := d.(*errdetails.ErrorInfo)
		if !ok {
			continue
		}
		switch i.GetReason() {
		case faultv1.Reason_TOKEN_MISSING.String():
		case faultv1.Reason_STEP_UP_REQUIRED.String():
			challenge += `, error="insufficient_user_authentication"`
			for _, name := range []string{"acr_values", "max_age"} {
				if v := i.GetMetadata()[name]; v != "" {
					challenge += ", " + name + "=" + strconv.Quote(v)
				}
			}
		default:
			challenge += `, error="invalid_token"`
		}
	}
	head.Set("WWW-Authenticate", challenge)
}

// unread says why a body could not be taken in.
func unread(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return fault.New(codes.ResourceExhausted, faultv1.Reason_MESSAGE_TOO_LARGE, "the body is larger than the %d bytes that this route takes; send less at once", large.Limit)
	case errors.Is(err, intake.ErrFull):
		return fault.Unavailable("too many large requests at once; repeat the request").Retry(time.Second)
	case errors.Is(err, intake.ErrSlow):
		return fault.New(codes.DeadlineExceeded, faultv1.Reason_DEADLINE_PASSED, "the body came too slowly; repeat the request")
	}
	return fault.InvalidArgument("the body broke off")
}

// routing answers where grpc-gateway found no handler.
func (h *Handler) routing(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	err := fault.New(codes.NotFound, faultv1.Reason_METHOD_UNKNOWN, "there is no such route; GET /openapi.json lists what there is")
	if code == http.StatusMethodNotAllowed {
		err = fault.New(codes.Unimplemented, faultv1.Reason_METHOD_UNKNOWN, "this path does not take %s; GET /openapi.json lists what there is", r.Method)
	}
	h.Refuse(w, r, err)
}
