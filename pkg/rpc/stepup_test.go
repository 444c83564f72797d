package rpc

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authn"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// TestStepUp holds who is asked for a fresh sign-in, where and by which token (A2).
func TestStepUp(t *testing.T) {
	l := newLab(t)
	const admin = "usr_admin"
	l.assign(&workspacev1.WatchAuthorizationResponse{Assignments: []*workspacev1.AssignmentRecord{{Uid: "asg_admin", ScopeUid: "sub_1", Role: authz.Owner, PrincipalUid: admin}}})
	now := l.now().Truncate(time.Second)
	proved := func(acr string, ago time.Duration) func(*authn.Claims) {
		return func(c *authn.Claims) { c.ACR, c.AuthTime, c.AMR = acr, now.Add(-ago), []string{authn.ByPassword} }
	}
	is := func(kind string) func(*authn.Claims) { return func(c *authn.Claims) { c.PrincipalType = kind } }
	secrets, access := keyvaultv1.NewSecretServiceClient(l.gateway()), workspacev1.NewAccessServiceClient(l.gateway())
	resources := workspacev1.NewResourceServiceClient(l.gateway())
	type change = []func(*authn.Claims)
	for _, tc := range []struct {
		name   string
		claims change
		code   codes.Code // of removing a subscription
		grant  codes.Code // of giving a role at one, and of deleting a secret
	}{
		{"a second factor, just now", change{proved(authn.ACRMFA, 0)}, codes.OK, codes.OK},
		{"a second factor, ten minutes ago", change{proved(authn.ACRMFA, 10*time.Minute)}, codes.OK, codes.OK},
		{"a second factor, too long ago", change{proved(authn.ACRMFA, 16*time.Minute)}, codes.Unauthenticated, codes.Unauthenticated},
		{"no factor is asked of him", change{proved(authn.ACRPassword, 50*time.Minute)}, codes.OK, codes.OK},
		{"a way to sign in that is not known", change{proved("urn:somebody:acr:best", 0)}, codes.Unauthenticated, codes.Unauthenticated},
		{"it does not say how", change{proved("", 0)}, codes.Unauthenticated, codes.Unauthenticated},
		{"it does not say when", change{func(c *authn.Claims) { c.ACR = authn.ACRMFA }}, codes.Unauthenticated, codes.Unauthenticated},
		{"it does not say when, by a password", change{func(c *authn.Claims) { c.ACR = authn.ACRPassword }}, codes.Unauthenticated, codes.Unauthenticated},
		{"neither", nil, codes.Unauthenticated, codes.Unauthenticated},
		{"a service principal", change{is(authn.ServicePrincipal)}, codes.PermissionDenied, codes.OK},
		{"a managed identity", change{is(authn.ManagedIdentity)}, codes.PermissionDenied, codes.OK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := bearer(t, l.token(admin, tc.claims...))
			_, err := resources.DeleteSubscription(ctx, &workspacev1.DeleteSubscriptionRequest{Name: sub})
			steps(t, "removing a subscription", err, tc.code)
			_, err = secrets.DeleteSecret(ctx, &keyvaultv1.DeleteSecretRequest{Name: ws + "/secrets/s"})
			steps(t, "deleting a secret", err, tc.grant)
			_, err = access.CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: sub, Role: "roleDefinitions/reader", Principal: "usr_x"})
			steps(t, "a role at a subscription", err, tc.grant)
			// At a workspace a role asks nobody.
			_, err = access.CreateRoleAssignment(ctx, &workspacev1.CreateRoleAssignmentRequest{Scope: ws, Role: "roleDefinitions/reader", Principal: "usr_x"})
			steps(t, "a role at a workspace", err, codes.OK)
		})
	}
	// Permission is decided first: who may not is not asked to sign in again.
	_, err := secrets.DeleteSecret(bearer(t, l.token(reader)), &keyvaultv1.DeleteSecretRequest{Name: ws + "/secrets/s"})
	refusedAs(t, err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	// A service that carries it on carries how and when, too.
	workspace := keyvaultv1.NewSecretServiceClient(l.as("service/workspace"))
	for ago, code := range map[time.Duration]codes.Code{0: codes.OK, 16 * time.Minute: codes.Unauthenticated} {
		_, err = workspace.DeleteSecret(bearer(t, l.token(admin, exchangedBy("workspace"), proved(authn.ACRMFA, ago))), &keyvaultv1.DeleteSecretRequest{Name: ws + "/secrets/s"})
		steps(t, "exchanged", err, code)
	}
}

func steps(t *testing.T, name string, err error, code codes.Code) {
	t.Helper()
	if err = fault.FromStatus(err); code == codes.OK {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	if fault.Code(err) != code || fault.ReasonOf(err) != faultv1.Reason_STEP_UP_REQUIRED {
		t.Errorf("%s: %v, want %v", name, err, code)
		return
	}
	if m := fault.Describe(err).Metadata(); code == codes.Unauthenticated && (m["max_age"] != "900" || m["acr_values"] != authn.ACRMFA) {
		t.Errorf("%s: %v", name, m)
	}
}
