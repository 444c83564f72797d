package rest

import (
	"net/http"
	"testing"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

func TestChallenge(t *testing.T) { // A2: RFC 6750 section 3, RFC 9470 section 3
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"no token":      {fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_MISSING, "sign in"), `Bearer realm="redoubt"`},
		"a bad token":   {fault.New(codes.Unauthenticated, faultv1.Reason_TOKEN_EXPIRED, "sign in"), `Bearer realm="redoubt", error="invalid_token"`},
		"an old one":    {fault.New(codes.Unauthenticated, faultv1.Reason_STEP_UP_REQUIRED, "again").With("max_age", "900").With("acr_values", "urn:x"), `Bearer realm="redoubt", error="insufficient_user_authentication", acr_values="urn:x", max_age="900"`},
		"a program's":   {fault.New(codes.PermissionDenied, faultv1.Reason_STEP_UP_REQUIRED, "people alone"), ""},
		"another fault": {fault.New(codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND, "not there"), ""},
	} {
		head := http.Header{}
		Challenge(head, fault.ToStatus(c.err, "redoubt.test", "r1"))
		if got := head.Get("WWW-Authenticate"); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
