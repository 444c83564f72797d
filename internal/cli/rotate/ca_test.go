package rotate

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// keys answers orders with one code after the other.
type keys struct {
	identityv1.KeyServiceClient
	answers []codes.Code
	asked   int
}

func (k *keys) RevokeAuthority(context.Context, *identityv1.RevokeAuthorityRequest, ...grpc.CallOption) (*identityv1.ListAuthoritiesResponse, error) {
	code := k.answers[k.asked]
	k.asked++
	return &identityv1.ListAuthoritiesResponse{}, status.Error(code, code.String())
}

func (k *keys) ListAuthorities(context.Context, *identityv1.ListAuthoritiesRequest, ...grpc.CallOption) (*identityv1.ListAuthoritiesResponse, error) {
	return &identityv1.ListAuthoritiesResponse{}, nil
}

// By force the order may end its own connection: it is repeated, and who is told then that the root is gone has been answered. Without force, and
// the first time, that is an error.
func TestRevokedByForce(t *testing.T) { // D10
	for name, c := range map[string]struct {
		force   bool
		answers []codes.Code
		asked   int
		code    codes.Code
	}{
		"at once":              {true, []codes.Code{codes.OK}, 1, codes.OK},
		"the answer was lost":  {true, []codes.Code{codes.Unavailable, codes.NotFound}, 2, codes.OK},
		"the order was lost":   {true, []codes.Code{codes.Unavailable, codes.OK}, 2, codes.OK},
		"others believe it":    {true, []codes.Code{codes.Unavailable, codes.DeadlineExceeded}, 2, codes.DeadlineExceeded},
		"there is no such":     {true, []codes.Code{codes.NotFound}, 1, codes.NotFound},
		"identity is away":     {true, []codes.Code{codes.Unavailable, codes.Unavailable, codes.Unavailable, codes.Unavailable, codes.OK}, 4, codes.Unavailable},
		"without force":        {false, []codes.Code{codes.Unavailable, codes.OK}, 1, codes.Unavailable},
		"refused for a reason": {true, []codes.Code{codes.FailedPrecondition, codes.OK}, 1, codes.FailedPrecondition},
	} {
		k := &keys{answers: c.answers}
		if _, err := revoked(t.Context(), k, "pin", c.force); status.Code(err) != c.code || k.asked != c.asked {
			t.Errorf("%s: %v after %d orders", name, err, k.asked)
		}
	}
}

func TestWhatComesNext(t *testing.T) { // D10
	at := timestamppb.New(time.Date(2026, 11, 27, 3, 0, 0, 0, time.UTC))
	for want, c := range map[string]*identityv1.AuthorityClock{
		"prepare, at":         {NextStep: identityv1.AuthorityStep_AUTHORITY_STEP_PREPARE, NextTime: at},
		"activate abc, at":    {NextStep: identityv1.AuthorityStep_AUTHORITY_STEP_ACTIVATE, Pin: "abc", NextTime: at},
		"waits: service/x":    {NextStep: identityv1.AuthorityStep_AUTHORITY_STEP_REVOKE, Pin: "abc", NextTime: at, WaitsFor: "service/x"},
		"an operator goes on": {NextStep: identityv1.AuthorityStep_AUTHORITY_STEP_TAINT, Pin: "abc", NextTime: at, Manual: true},
		"knows no step":       {},
	} {
		if got := next(c); !strings.Contains(got, want) {
			t.Errorf("%q has not %q", got, want)
		}
	}
}
