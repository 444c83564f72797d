package matrix

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// session is the id of a session of the user's: his own, or another.
func (u *factored) session(own bool) string {
	u.t.Helper()
	if !own {
		signIn(u.t, u.id, u.pw)
	}
	ctx := metadata.AppendToOutgoingContext(u.t.Context(), u.caller.auth(u.t, "")...)
	r, err := identityv1.NewAccountServiceClient(u.conn).ListSessions(ctx, &identityv1.ListSessionsRequest{})
	must(u.t, err)
	for _, s := range r.GetSessions() {
		if s.GetCurrent() == own {
			return s.GetSessionId()
		}
	}
	u.t.Fatalf("there is no such session among %v", r.GetSessions())
	return ""
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	own := func(w want, build func(t *testing.T, u *factored) proto.Message) spec {
		return spec{want: others(w), build: func(t *testing.T, f *fixture, _ *place) request {
			u := f.factored(t)
			return request{in: []proto.Message{build(t, u)}, from: &u.caller}
		}}
	}
	// Whoever knows the password and has not the session has another's: he is told that it is wrong, and that is a denial.
	change := own(refused(codes.PermissionDenied, faultv1.Reason_SIGN_IN_FAILED), func(_ *testing.T, u *factored) proto.Message {
		return &identityv1.ChangePasswordRequest{CurrentPassword: u.pw, NewPassword: "ein Reiher zählt Laternen"}
	})
	for cell, w := range change.want {
		w.silent = false
		change.want[cell] = w
	}
	register(map[string]spec{
		identityv1.AccountService_ChangePassword_FullMethodName: change,
		identityv1.AccountService_ListSessions_FullMethodName:   about(func(*fixture, *place) proto.Message { return &identityv1.ListSessionsRequest{} }),
		identityv1.AccountService_RevokeSession_FullMethodName: own(refused(codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND), func(_ *testing.T, u *factored) proto.Message {
			return &identityv1.RevokeSessionRequest{SessionId: u.session(false)}
		}),
		identityv1.AccountService_RevokeOtherSessions_FullMethodName: own(refused(codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED), func(_ *testing.T, u *factored) proto.Message {
			return &identityv1.RevokeOtherSessionsRequest{SessionId: u.session(true)}
		}),
		identityv1.AccountService_DescribeUser_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.DescribeUserRequest{Name: "users/reader"} }),
		identityv1.AccountService_ListGroupMembers_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.ListGroupMembersRequest{Name: f.group(t).GetName()}
		}),
	})
}
