package matrix

import (
	"context"
	"net/http"
	"testing"

	"google.golang.org/protobuf/proto"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
)

func (f *fixture) newIssuer() *identityv1.CreateIssuerRequest {
	id := f.id("issuer")
	return &identityv1.CreateIssuerRequest{
		IssuerId: id, IssuerUrl: "https://" + id + ".example", Class: identityv1.HomeClass_HOME_CLASS_GUEST, Settings: issuerSettings(), ClientSecret: "secret",
	}
}

func issuerSettings() *identityv1.IssuerSettings {
	return &identityv1.IssuerSettings{DisplayName: "A partner", ClientId: "redoubt", Disabled: true}
}

// issuer makes one that nobody needs.
func (f *fixture) issuer(t *testing.T) string {
	t.Helper()
	i, err := identityv1.NewFederationServiceClient(f.admin).CreateIssuer(t.Context(), f.newIssuer())
	must(t, err)
	t.Cleanup(func() {
		_, _ = identityv1.NewFederationServiceClient(f.admin).DeleteIssuer(context.WithoutCancel(t.Context()), &identityv1.DeleteIssuerRequest{Name: i.GetName()}) // gone, in one of the cells
	})
	return i.GetName()
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		identityv1.FederationService_CreateIssuer_FullMethodName: about(func(f *fixture, _ *place) proto.Message { return f.newIssuer() }),
		identityv1.FederationService_GetIssuer_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.GetIssuerRequest{Name: f.issuer(t)}
		}),
		identityv1.FederationService_ListIssuers_FullMethodName: about(func(*fixture, *place) proto.Message { return &identityv1.ListIssuersRequest{} }),
		identityv1.FederationService_UpdateIssuer_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.UpdateIssuerRequest{Name: f.issuer(t), Settings: issuerSettings()}
		}),
		identityv1.FederationService_DeleteIssuer_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &identityv1.DeleteIssuerRequest{Name: f.issuer(t)}
		}),
		identityv1.ProviderService_ReturnHome_FullMethodName: about(func(*fixture, *place) proto.Message {
			return &identityv1.ReturnHomeRequest{Http: &identityv1.Exchange{Method: http.MethodGet}, Issuer: "nobody"}
		}),
	})
}
