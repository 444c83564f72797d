package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
)

// Every reason and every code comes out of the wire as it went in, through any wrapping.
func TestRoundTrip(t *testing.T) {
	for n, name := range faultv1.Reason_name {
		if n == 0 {
			continue
		}
		reason := faultv1.Reason(n)
		sent := New(codes.FailedPrecondition, reason, "do %s", "this").With("k", "v").Field("f", "d").Retry(time.Second)
		st := ToStatus(fmt.Errorf("wrapped: %w", sent), "redoubt.test", "r-1")
		infos := 0
		for _, d := range st.Details() {
			if i, ok := d.(*errdetails.ErrorInfo); ok {
				infos++
				if i.GetReason() != name || i.GetDomain() != "redoubt.test" || i.GetMetadata()["k"] != "v" {
					t.Errorf("%s: %v", name, i)
				}
			}
		}
		if infos != 1 {
			t.Errorf("%s: %d ErrorInfo", name, infos)
		}
		got := Describe(FromStatus(st.Err()))
		if Code(got) != codes.FailedPrecondition || ReasonOf(got) != reason || got.Message() != "do this" || got.RetryAfter() != time.Second || len(got.Violations()) != 1 || RequestID(got) != "r-1" {
			t.Errorf("%s came back as %v", name, got)
		}
	}
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		if c == codes.Unknown {
			continue
		}
		got := FromStatus(ToStatus(plain(c, "x", nil), "d", "").Err())
		if Code(got) != c || ReasonOf(got) != genericOf(c) {
			t.Errorf("%s came back as %s %s", c, Code(got), ReasonOf(got))
		}
	}
}

// What is not a fault of ours shows nothing of itself.
func TestNothingOfTheInsideLeaks(t *testing.T) {
	const inside = "/var/lib/x.sqlite: SELECT 10.0.0.7"
	for name, c := range map[string]struct {
		err  error
		code codes.Code
	}{
		"a plain error":        {errors.New(inside), codes.Internal},
		"a cause":              {Wrap(errors.New(inside), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, "gone"), codes.NotFound},
		"a transport's status": {status.Error(codes.Unavailable, inside), codes.Unavailable},
		"an unknown status":    {status.Error(codes.Unknown, inside), codes.Internal},
		"a deadline":           {fmt.Errorf("%s: %w", inside, context.DeadlineExceeded), codes.DeadlineExceeded},
		"a cancellation":       {fmt.Errorf("%s: %w", inside, context.Canceled), codes.Canceled},
	} {
		st := ToStatus(c.err, "d", "r")
		if st.Code() != c.code || strings.Contains(st.Proto().String(), "sqlite") || strings.Contains(st.Proto().String(), "10.0.0.7") {
			t.Errorf("%s: %v", name, st.Proto())
		}
	}
}

func TestLongMessagesAreCut(t *testing.T) {
	st := ToStatus(InvalidArgument("%s", strings.Repeat("é", 5000)+"\xff"), "d", "")
	if len(st.Message()) > 1100 || strings.ToValidUTF8(st.Message(), "?") != st.Message() {
		t.Errorf("%d bytes", len(st.Message()))
	}
}

func TestCodeName(t *testing.T) {
	for c, want := range map[codes.Code]string{codes.OK: "OK", codes.PermissionDenied: "PERMISSION_DENIED", codes.Canceled: "CANCELLED"} {
		if got := CodeName(c); got != want {
			t.Errorf("%d is %q", c, got)
		}
	}
}

func TestNil(t *testing.T) {
	if Code(nil) != codes.OK || ReasonOf(nil) != 0 || FromStatus(nil) != nil || Describe(nil) != nil || ToStatus(nil, "d", "r").Code() != codes.OK {
		t.Error("nil is not success")
	}
}
