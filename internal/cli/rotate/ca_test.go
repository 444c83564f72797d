package rotate

import (
	"context"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/svid"
)

// keys answers orders with one code after the other.
type keys struct {
	identityv1.KeyServiceClient
	answers []codes.Code
	asked   int
}

func (k *keys) RevokeAuthority(context.Context, *identityv1.RevokeAuthorityRequest, ...grpc.CallOption) (*identityv1.ListAuthoritiesResponse, error) {
	code := codes.Internal // one order more than there should be
	if k.asked < len(k.answers) {
		code = k.answers[k.asked]
	}
	k.asked++
	return &identityv1.ListAuthoritiesResponse{}, status.Error(code, code.String())
}

// By force the order may end its own connection: it is repeated by the other one. Without force that is an error.
func TestRevokedByForce(t *testing.T) { // D10
	for name, c := range map[string]struct {
		force         bool
		first, second []codes.Code
		asked         int
		code          codes.Code
	}{
		"at once":              {true, []codes.Code{codes.OK}, nil, 0, codes.OK},
		"the answer was lost":  {true, []codes.Code{codes.Unavailable}, []codes.Code{codes.OK}, 1, codes.OK},
		"twice":                {true, []codes.Code{codes.Unavailable}, []codes.Code{codes.Unavailable, codes.OK}, 2, codes.OK},
		"others believe it":    {true, []codes.Code{codes.Unavailable}, []codes.Code{codes.DeadlineExceeded}, 1, codes.DeadlineExceeded},
		"there is no such":     {true, []codes.Code{codes.NotFound}, nil, 0, codes.NotFound},
		"identity is away":     {true, []codes.Code{codes.Unavailable}, []codes.Code{codes.Unavailable, codes.Unavailable, codes.Unavailable, codes.OK}, 3, codes.Unavailable},
		"without force":        {false, []codes.Code{codes.Unavailable}, nil, 0, codes.Unavailable},
		"refused for a reason": {true, []codes.Code{codes.FailedPrecondition}, nil, 0, codes.FailedPrecondition},
	} {
		k, again := &keys{answers: c.first}, &keys{answers: c.second}
		if _, err := revoked(t.Context(), k, again, "pin", c.force); status.Code(err) != c.code || k.asked != 1 || again.asked != c.asked {
			t.Errorf("%s: %v after %d and %d orders", name, err, k.asked, again.asked)
		}
	}
}

// Who believed the root that goes believes those that stay in its place; who did not goes on as before.
func TestStaying(t *testing.T) { // D10
	td := spiffeid.RequireTrustDomainFromString("redoubt.test")
	var roots [3]*svid.Authority
	var pems [3]string
	all := new(identityv1.ListAuthoritiesResponse)
	for i := range roots {
		a, err := svid.NewAuthority(td, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		roots[i] = a
		pems[i] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root().Raw}))
		if i < 2 {
			all.Authorities = append(all.Authorities, &identityv1.Authority{Pin: a.Pin(), Root: a.Root().Raw})
		}
	}
	for name, c := range map[string]struct {
		believed, stay string
		believes       bool
	}{
		"the root alone":          {pems[0], pems[1], true},
		"both":                    {pems[0] + pems[1], pems[1], true},
		"with one of somebody":    {pems[2] + pems[0], pems[2] + pems[1], true},
		"one of somebody alone":   {pems[2], pems[2], false},
		"the one that stays":      {pems[1], pems[1], false},
		"those of the system":     {"", "", false},
		"what is no certificate ": {"nonsense", "nonsense", false},
	} {
		if stay, believes := staying([]byte(c.believed), all, roots[0].Pin()); string(stay) != c.stay || believes != c.believes {
			t.Errorf("%s: %v, %d certificates", name, believes, strings.Count(string(stay), "BEGIN"))
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
