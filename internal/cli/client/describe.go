package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// Problem is an error in the parts that a person needs.
type Problem struct {
	// Remote says that the installation answered so, or did not answer.
	Remote bool
	Code   codes.Code
	Reason faultv1.Reason
	// Message is one line: what is wrong.
	Message string
	// Fields are what is wrong with the fields of the request.
	Fields []fault.Violation
	// Next says what to do, or is empty where Message does.
	Next string
	// RequestID finds the call in the activity log and the logs of the services.
	RequestID string
}

// Describe takes an error apart. It must not be nil.
func Describe(err error) Problem {
	f := fault.Describe(err)
	p := Problem{Code: fault.Code(err), Reason: fault.ReasonOf(err), Message: line(f.Message()), Fields: f.Violations(), RequestID: fault.RequestID(err)}
	_, p.Remote = status.FromError(err)
	var local *fault.Error
	switch {
	case errors.As(err, &local):
		p.Remote = false
		// What stands around a fault says which part failed.
		if before, ok := strings.CutSuffix(err.Error(), local.Error()); ok && before != "" {
			p.Message = line(before) + p.Message
		}
	case errors.Is(err, context.DeadlineExceeded):
		p.Message, p.Next = "the time that was given to the command is over", "give it more with --timeout"
		return p
	case errors.Is(err, context.Canceled), p.Remote && p.Code == codes.Canceled && p.RequestID == "":
		// Of a call that was ended from here: the installation did not say so.
		p.Remote, p.Message = false, "interrupted"
		return p
	case !p.Remote:
		p.Code, p.Reason, p.Message = codes.Unknown, faultv1.Reason_REASON_UNSPECIFIED, line(err.Error())
		return p
	}
	// What stands around a status says what it was about.
	var wire interface {
		error
		GRPCStatus() *status.Status
	}
	if errors.As(err, &wire) {
		if before, ok := strings.CutSuffix(err.Error(), wire.Error()); ok && before != "" {
			p.Message = line(before) + p.Message
		}
	}
	p.Next = next(p, f)
	return p
}

// next is what to do about a refusal whose message does not say it.
func next(p Problem, f *fault.Error) string {
	switch p.Reason { //nolint:exhaustive // the others say it themselves
	case faultv1.Reason_TOKEN_MISSING, faultv1.Reason_TOKEN_EXPIRED, faultv1.Reason_TOKEN_REVOKED, faultv1.Reason_TOKEN_INVALID:
		return "sign in: redoubt login"
	case faultv1.Reason_AUTHZ_ACTION_MISSING:
		scope, action := f.Metadata()["scope"], f.Metadata()["action"]
		if scope == "" || action == "" {
			return ""
		}
		return fmt.Sprintf("whoever may give access there can give you a role that has it; see: redoubt role explain --scope %s %s", line(scope), line(action))
	case faultv1.Reason_RATE_LIMITED:
		if d := f.RetryAfter(); d > 0 {
			return "repeat it in " + d.String()
		}
	case faultv1.Reason_INTERNAL_FAULT:
		return "a fault of the installation: give the request id to whoever runs it"
	}
	if p.Remote && p.Code == codes.DeadlineExceeded && p.RequestID == "" {
		return "give it more with --timeout, or see: redoubt doctor"
	}
	if p.Remote && p.Code == codes.Unavailable && p.RequestID == "" {
		return "is it running, and is this its address? See: redoubt doctor"
	}
	return ""
}

// String is the whole, for a terminal: the message, the fields, what to do, and what to quote.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Message)
	for _, v := range p.Fields {
		fmt.Fprintf(&b, "\n  %s: %s", line(v.Field), line(v.Description))
	}
	if p.Next != "" {
		b.WriteString("\n  → " + p.Next)
	}
	if p.Remote {
		fmt.Fprintf(&b, "\n  %s", name(p.Code))
		if p.Reason != faultv1.Reason_REASON_UNSPECIFIED {
			b.WriteString(" " + p.Reason.String())
		}
		if p.RequestID != "" {
			b.WriteString(", request " + line(p.RequestID))
		}
	}
	return b.String()
}

// name is a code as the standard writes it: PERMISSION_DENIED.
func name(c codes.Code) string {
	if c == codes.Canceled {
		return "CANCELLED"
	}
	var b strings.Builder
	for i, r := range c.String() {
		if i > 0 && unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String()
}

// line keeps what a server sent from steering the terminal.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return '·'
		}
		return r
	}, s)
}
