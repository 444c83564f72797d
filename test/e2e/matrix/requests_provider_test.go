package matrix

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/url"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

// application makes one that nobody needs.
func (f *fixture) application(t *testing.T, confidential bool) *identityv1.Application {
	t.Helper()
	a, err := identityv1.NewApplicationServiceClient(f.admin).CreateApplication(t.Context(), f.newApplication(confidential))
	must(t, err)
	return a
}

func (f *fixture) newApplication(confidential bool) *identityv1.CreateApplicationRequest {
	return &identityv1.CreateApplicationRequest{
		ApplicationId: f.id("app"), DisplayName: "An application", RedirectUris: []string{"https://app.example/callback"}, Confidential: confidential,
		GrantTypes: []string{"authorization_code", "urn:ietf:params:oauth:grant-type:device_code"},
	}
}

func clientKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
}

// posted is a form that a program sends to the provider.
func posted(pairs ...string) *identityv1.Exchange {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	return &identityv1.Exchange{Method: http.MethodPost, ContentType: "application/x-www-form-urlencoded", Body: []byte(q.Encode())}
}

// byRobot is a form with the credentials of a service principal.
func (f *fixture) byRobot(t *testing.T, pairs ...string) *identityv1.Exchange {
	t.Helper()
	s, err := identityv1.NewDirectoryServiceClient(f.admin).AddServicePrincipalSecret(t.Context(), &identityv1.AddServicePrincipalSecretRequest{Name: f.newRobot(t)})
	must(t, err)
	return posted(append(pairs, "client_id", s.GetClientId(), "client_secret", s.GetSecret())...)
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	invalid := refused(codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	noClient := refused(codes.Unauthenticated, faultv1.Reason_CREDENTIAL_INVALID)
	get := func() *identityv1.Exchange { return &identityv1.Exchange{Method: http.MethodGet} }
	register(map[string]spec{
		identityv1.ApplicationService_CreateApplication_FullMethodName: about(func(f *fixture, _ *place) proto.Message { return f.newApplication(true) }),
		identityv1.ApplicationService_GetApplication_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.GetApplicationRequest{Name: f.application(t, true).GetName()}
		}),
		identityv1.ApplicationService_ListApplications_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.ListApplicationsRequest{} }),
		identityv1.ApplicationService_DeleteApplication_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.DeleteApplicationRequest{Name: f.application(t, true).GetName()}
		}),
		identityv1.ApplicationService_AddApplicationSecret_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.AddApplicationSecretRequest{Name: f.application(t, true).GetName()}
		}),
		identityv1.ApplicationService_AddApplicationKey_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.AddApplicationKeyRequest{Name: f.application(t, true).GetName(), PublicKeyPem: clientKey(t)}
		}),

		// A page that says no is an answer; what it refuses, and what works, identity's own tests have.
		identityv1.ProviderService_Authorize_FullMethodName:    about(func(*fixture, *place) proto.Message { return &identityv1.AuthorizeRequest{Http: get()} }),
		identityv1.ProviderService_SubmitSignIn_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.SubmitSignInRequest{Http: posted()} }),
		identityv1.ProviderService_EndSession_FullMethodName:   about(func(*fixture, *place) proto.Message { return &identityv1.EndSessionRequest{Http: get()} }),
		identityv1.ProviderService_VisitDevice_FullMethodName:  about(func(*fixture, *place) proto.Message { return &identityv1.VisitDeviceRequest{Http: get()} }),
		identityv1.ProviderService_VisitFactors_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.VisitFactorsRequest{Http: get()} }),
		identityv1.ProviderService_GetKeyScript_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.GetKeyScriptRequest{Http: get()} }),
		identityv1.ProviderService_RequestToken_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				return one(&identityv1.RequestTokenRequest{Http: f.byRobot(t, "grant_type", "client_credentials")})
			},
			bad: map[string]badRequest{
				"no grant": {func(*testing.T, *fixture) request { return one(&identityv1.RequestTokenRequest{Http: posted()}) }, invalid},
				"no client": {func(*testing.T, *fixture) request {
					return one(&identityv1.RequestTokenRequest{Http: posted("grant_type", "client_credentials")})
				}, noClient},
			},
		},
		identityv1.ProviderService_IntrospectToken_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				return one(&identityv1.IntrospectTokenRequest{Http: f.byRobot(t, "token", "x")})
			},
			bad: map[string]badRequest{"no client": {func(*testing.T, *fixture) request {
				return one(&identityv1.IntrospectTokenRequest{Http: posted("token", "x")})
			}, noClient}},
		},
		identityv1.ProviderService_WithdrawToken_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				return one(&identityv1.WithdrawTokenRequest{Http: f.byRobot(t, "token", "x")})
			},
			bad: map[string]badRequest{"no client": {func(*testing.T, *fixture) request {
				return one(&identityv1.WithdrawTokenRequest{Http: posted("token", "x")})
			}, noClient}},
		},
		identityv1.ProviderService_GetUserInfo_FullMethodName: {
			bad: map[string]badRequest{"no token": {
				func(*testing.T, *fixture) request { return one(&identityv1.GetUserInfoRequest{Http: get()}) },
				refused(codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID),
			}},
		},
		identityv1.ProviderService_RequestDevice_FullMethodName: {
			build: func(t *testing.T, f *fixture, _ *place) request {
				return one(&identityv1.RequestDeviceRequest{Http: posted("client_id", f.application(t, false).GetUid())})
			},
			bad: map[string]badRequest{"no client": {func(*testing.T, *fixture) request {
				return one(&identityv1.RequestDeviceRequest{Http: posted()})
			}, noClient}},
		},
	})
}
