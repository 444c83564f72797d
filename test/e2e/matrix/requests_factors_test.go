package matrix

import (
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/pkg/resource"
)

// factored is a user of his own, whom no other cell needs to sign in.
type factored struct {
	id, pw string
	caller caller
	t      *testing.T
	conn   *grpc.ClientConn
}

func (f *fixture) factored(t *testing.T) *factored {
	t.Helper()
	u := &factored{id: f.id("factored"), pw: resource.NewUID("pw"), t: t, conn: gatewayConn()}
	made, err := identityv1.NewDirectoryServiceClient(f.admin).CreateUser(t.Context(), &identityv1.CreateUserRequest{UserId: u.id, Password: u.pw})
	must(t, err)
	u.caller = f.user(t, u.id, u.pw, made.GetUid(), signIn(t, u.id, u.pw))
	return u
}

// enrol makes a factor that is not proved.
func (u *factored) enrol() *identityv1.EnrolFactorResponse {
	u.t.Helper()
	ctx := metadata.AppendToOutgoingContext(u.t.Context(), u.caller.auth(u.t, "")...)
	e, err := identityv1.NewFactorServiceClient(u.conn).EnrolFactor(ctx, &identityv1.EnrolFactorRequest{})
	must(u.t, err)
	return e
}

// prove proves it, and gives the recovery codes. The caller has the session that this gave.
func (u *factored) prove() []string {
	u.t.Helper()
	ctx, e := metadata.AppendToOutgoingContext(u.t.Context(), u.caller.auth(u.t, "")...), u.enrol()
	p, err := identityv1.NewFactorServiceClient(u.conn).ProveFactor(ctx, &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: totp(u.t, e.GetSecret())})
	must(u.t, err)
	u.caller = outside(u.caller.uid, bearer(p.GetSession().GetAccessToken()))
	return p.GetRecoveryCodes()
}

func totp(t *testing.T, secret string) string {
	t.Helper()
	c, err := hotp.GenerateCode(secret, uint64(time.Now().Unix()/30))
	must(t, err)
	return c
}

// others are the cells of who is not the one whose the factor is.
func others(w want) map[string]want {
	w.silent = true
	out := map[string]want{}
	for _, cell := range []string{"contributor", "reader", "stranger", "operator"} {
		out[cell] = w
	}
	return out
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	nobodys := others(refused(codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND))
	// own is a spec whose request only the user may make for whom it is built.
	own := func(w map[string]want, build func(t *testing.T, u *factored) proto.Message) spec {
		return spec{want: w, build: func(t *testing.T, f *fixture, _ *place) request {
			u := f.factored(t)
			m := build(t, u)
			return request{in: []proto.Message{m}, from: &u.caller}
		}}
	}
	unknown := refused(codes.Unauthenticated, faultv1.Reason_SIGN_IN_FAILED)
	enrol := about(func(*fixture, *place) proto.Message { return &identityv1.EnrolFactorRequest{DisplayName: "phone"} })
	enrol.fresh = true
	register(map[string]spec{
		identityv1.SignInService_ContinueSignIn_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				u := f.factored(t)
				recovery := u.prove()
				var c *identityv1.Challenge
				must(t, patient(t.Context(), func() error {
					r, err := identityv1.NewSignInServiceClient(u.conn).SignIn(t.Context(), &identityv1.SignInRequest{User: u.id, Password: u.pw})
					c = r.GetChallenge()
					return err
				}))
				return one(&identityv1.ContinueSignInRequest{State: c.GetState(), Factor: "recovery_code", Response: recovery[0]})
			},
			bad: map[string]badRequest{"unknown state": {
				func(*testing.T, *fixture) request {
					return one(&identityv1.ContinueSignInRequest{State: "x", Factor: "totp", Response: "000000"})
				}, unknown,
			}},
		},
		// No factor is required of anybody in this installation, so there is no request that succeeds.
		identityv1.SignInService_EnrolSignInFactor_FullMethodName: {bad: map[string]badRequest{"unknown state": {
			func(*testing.T, *fixture) request { return one(&identityv1.EnrolSignInFactorRequest{State: "x"}) }, unknown,
		}}},
		identityv1.FactorService_EnrolFactor_FullMethodName: enrol,
		identityv1.FactorService_ListFactors_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.ListFactorsRequest{} }),
		identityv1.FactorService_ProveFactor_FullMethodName: own(nobodys, func(t *testing.T, u *factored) proto.Message {
			e := u.enrol()
			return &identityv1.ProveFactorRequest{FactorId: e.GetFactor().GetFactorId(), Code: totp(t, e.GetSecret())}
		}),
		identityv1.FactorService_DeleteFactor_FullMethodName: own(nobodys, func(_ *testing.T, u *factored) proto.Message {
			return &identityv1.DeleteFactorRequest{FactorId: u.enrol().GetFactor().GetFactorId()}
		}),
		identityv1.FactorService_RegenerateRecoveryCodes_FullMethodName: own(others(refused(codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)), func(_ *testing.T, u *factored) proto.Message {
			u.prove()
			return &identityv1.RegenerateRecoveryCodesRequest{}
		}),
		identityv1.FactorService_StepUp_FullMethodName: own(others(refused(codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED)), func(_ *testing.T, u *factored) proto.Message {
			return &identityv1.StepUpRequest{Factor: "recovery_code", Response: u.prove()[0]}
		}),
		identityv1.FactorService_ResetFactors_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.ResetFactorsRequest{Name: f.newName(t)}
		}),
		identityv1.FactorService_GetSignInPolicy_FullMethodName:    about(func(*fixture, *place) proto.Message { return &identityv1.GetSignInPolicyRequest{} }),
		identityv1.FactorService_UpdateSignInPolicy_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.UpdateSignInPolicyRequest{} }),
	})
}
