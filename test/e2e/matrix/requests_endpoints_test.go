package matrix

import (
	"testing"

	"google.golang.org/protobuf/proto"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
)

func (f *fixture) endpoints() inferencev1.EndpointServiceClient {
	return inferencev1.NewEndpointServiceClient(f.admin)
}

// newEndpoint is an endpoint without deployments.
func (f *fixture) newEndpoint(t *testing.T, p *place, auth inferencev1.Endpoint_Auth) string {
	t.Helper()
	e, err := f.endpoints().CreateEndpoint(t.Context(), &inferencev1.CreateEndpointRequest{Parent: p.ws, EndpointId: f.id("endpoint"), Endpoint: &inferencev1.NewEndpoint{Auth: auth}})
	must(t, err)
	return e.GetName()
}

// endpoint is the place's endpoint, which has keys and no deployments.
func (f *fixture) endpoint(t *testing.T, p *place) string {
	t.Helper()
	if p.endpoint == "" {
		p.endpoint = f.newEndpoint(t, p, inferencev1.Endpoint_AUTH_KEY)
	}
	return p.endpoint
}

// deployable is a spec of a deployment whose replica waits for a target that nobody claims from.
func (f *fixture) deployable(t *testing.T, p *place) *inferencev1.DeploymentSpec {
	t.Helper()
	return &inferencev1.DeploymentSpec{Model: f.model(t, p) + "/versions/1", Snapshot: p.snapshot, Compute: p.parking, EntryScript: "train.py"}
}

// newDeployment puts a deployment behind an endpoint of its own.
func (f *fixture) newDeployment(t *testing.T, p *place) string {
	t.Helper()
	d, err := f.endpoints().CreateDeployment(t.Context(), &inferencev1.CreateDeploymentRequest{
		Parent: f.newEndpoint(t, p, inferencev1.Endpoint_AUTH_KEY), DeploymentId: "blue", Deployment: f.deployable(t, p),
	})
	must(t, err)
	return d.GetName()
}

// deployment is the place's deployment, whose replica compute has taken.
func (f *fixture) deployment(t *testing.T, p *place) string {
	t.Helper()
	if p.deployment == "" {
		name := f.newDeployment(t, p)
		w, err := f.endpoints().WatchDeployment(t.Context(), &inferencev1.WatchDeploymentRequest{Name: name})
		must(t, err)
		for {
			d, err := w.Recv()
			must(t, err)
			if len(d.GetReplicas()) > 0 {
				break
			}
		}
		p.deployment = name
	}
	return p.deployment
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		inferencev1.EndpointService_ListEndpointKinds_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &inferencev1.ListEndpointKindsRequest{Parent: p.ws}
		}),
		inferencev1.EndpointService_CreateEndpoint_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &inferencev1.CreateEndpointRequest{Parent: p.ws, EndpointId: f.id("endpoint")}
		}),
		inferencev1.EndpointService_GetEndpoint_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.GetEndpointRequest{Name: f.endpoint(t, p)}
		}),
		inferencev1.EndpointService_ListEndpoints_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &inferencev1.ListEndpointsRequest{Parent: p.ws}
		}),
		inferencev1.EndpointService_UpdateEndpoint_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.UpdateEndpointRequest{Endpoint: &inferencev1.EndpointUpdate{Name: f.endpoint(t, p), Description: f.id("changed")}}
		}),
		inferencev1.EndpointService_DeleteEndpoint_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.DeleteEndpointRequest{Name: f.newEndpoint(t, p, inferencev1.Endpoint_AUTH_KEY)}
		}),
		inferencev1.EndpointService_GetCredentials_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.GetCredentialsRequest{Name: f.endpoint(t, p)}
		}),
		inferencev1.EndpointService_RegenerateKey_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.RegenerateKeyRequest{Name: f.endpoint(t, p), KeyType: inferencev1.KeyType_KEY_TYPE_SECONDARY}
		}),
		inferencev1.EndpointService_IssueEndpointToken_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.IssueEndpointTokenRequest{Name: f.newEndpoint(t, p, inferencev1.Endpoint_AUTH_TOKEN)}
		}),
		inferencev1.EndpointService_CreateDeployment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.CreateDeploymentRequest{Parent: f.newEndpoint(t, p, inferencev1.Endpoint_AUTH_KEY), DeploymentId: "blue", Deployment: f.deployable(t, p)}
		}),
		inferencev1.EndpointService_GetDeployment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.GetDeploymentRequest{Name: f.deployment(t, p)}
		}),
		inferencev1.EndpointService_ListDeployments_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.ListDeploymentsRequest{Parent: f.endpoint(t, p)}
		}),
		inferencev1.EndpointService_UpdateDeployment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.UpdateDeploymentRequest{Name: f.newDeployment(t, p), Deployment: f.deployable(t, p)}
		}),
		inferencev1.EndpointService_DeleteDeployment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.DeleteDeploymentRequest{Name: f.newDeployment(t, p)}
		}),
		inferencev1.EndpointService_WatchDeployment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.WatchDeploymentRequest{Name: f.deployment(t, p)}
		}),
		inferencev1.EndpointService_StreamDeploymentLogs_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &inferencev1.StreamDeploymentLogsRequest{Name: f.deployment(t, p)}
		}),
		inferencev1.InferenceInternalService_DescribeEndpoint_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			name := f.endpoint(t, f.ours)
			return &inferencev1.DescribeEndpointRequest{WorkspaceUid: f.ours.wsUID, EndpointId: name[len(f.ours.ws+"/endpoints/"):]}
		}),
		inferencev1.InferenceInternalService_PurgeWorkspace_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			return &inferencev1.PurgeWorkspaceRequest{WorkspaceUid: f.workspace(t, f.ours.group).GetUid()}
		}),
	})
}
