package fault

import (
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

// ToStatus is what the caller gets for err: code, message, one ErrorInfo{reason, domain, metadata}, RequestInfo if
// requestID is not empty, BadRequest and RetryInfo where err has them. A nil err gives an OK status. Only a *Error shows
// its message; a status that another service sent keeps its reason, code and message, for it went through ToStatus there.
func ToStatus(err error, domain, requestID string) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	e := from(err)
	details := make([]protoadapt.MessageV1, 0, 4)
	details = append(details, protoadapt.MessageV1Of(&errdetails.ErrorInfo{Reason: e.reason.String(), Domain: domain, Metadata: e.meta}))
	if requestID != "" {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RequestInfo{RequestId: requestID}))
	}
	if len(e.fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range e.fields {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: clean(v.Field), Description: clean(v.Description)})
		}
		details = append(details, protoadapt.MessageV1Of(bad))
	}
	if e.retry > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.retry)}))
	}
	message := e.message
	if e.foreign { // a transport's own words may name addresses
		message = "a service that this call needs answered " + CodeName(e.code) + "; repeat the call, and if it stays so see `redoubt doctor`"
	}
	s := status.New(e.code, clean(message))
	if full, err := s.WithDetails(details...); err == nil {
		return full
	}
	return s
}

// FromStatus turns the error of a gRPC client call into a *Error, so that Code, ReasonOf and errors.As answer as they did
// at the sender. It returns nil for nil, and err itself where there is no status in it.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	s, ok := statusOf(err)
	if !ok {
		return err
	}
	if s.Code() == codes.OK {
		return nil
	}
	return decode(s)
}

// RequestID is the id that a received error carries, for finding it in the log, or "".
func RequestID(err error) string {
	s, ok := statusOf(err)
	if !ok {
		var e *Error
		if errors.As(err, &e) && e.meta != nil {
			return e.meta[requestIDKey]
		}
		return ""
	}
	for _, d := range s.Details() {
		if ri, ok := d.(*errdetails.RequestInfo); ok {
			return ri.GetRequestId()
		}
	}
	return ""
}

const requestIDKey = "request_id"

func statusOf(err error) (*status.Status, bool) {
	var g interface{ GRPCStatus() *status.Status }
	if errors.As(err, &g) {
		return g.GRPCStatus(), true
	}
	return nil, false
}

func decode(s *status.Status) *Error {
	e := &Error{code: s.Code(), reason: genericOf(s.Code()), message: s.Message(), foreign: true}
	if e.code == codes.Unknown {
		e.code = codes.Internal
	}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if n, ok := faultv1.Reason_value[d.GetReason()]; ok && n != 0 {
				e.reason = faultv1.Reason(n)
				e.foreign = false
			}
			for k, v := range d.GetMetadata() {
				e = e.With(k, v)
			}
		case *errdetails.RequestInfo:
			e = e.With(requestIDKey, d.GetRequestId())
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e = e.Field(v.GetField(), v.GetDescription())
			}
		case *errdetails.RetryInfo:
			e.retry = d.GetRetryDelay().AsDuration()
		}
	}
	return e
}

// clean keeps a message valid UTF-8 and of a length that fits the trailers.
func clean(s string) string {
	const most = 1024
	s = strings.ToValidUTF8(s, "�")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
