package matrix

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// operation is one of the twelve that the built-in roles are defined by.
type operation struct {
	name string
	// who may: O, C, R.
	who string
	// method and request, "" where the API has no such operation yet; needs says what it waits for.
	method string
	build  func(t *testing.T, f *fixture, p *place) proto.Message
	// also is a second method of the same operation.
	also string
	// action that a refusal names.
	action string
	needs  string
}

var operations = []operation{
	{name: "create workspace", who: "OC", method: workspacev1.ResourceService_CreateWorkspace_FullMethodName, action: "workspace/workspaces/write"},
	{name: "share workspace", who: "O", method: workspacev1.AccessService_CreateRoleAssignment_FullMethodName, action: "authorization/roleAssignments/write"},
	{name: "create compute target", who: "OC", method: computev1.ComputeService_CreateCompute_FullMethodName, action: "compute/computes/write"},
	{name: "attach compute target", who: "OC", method: computev1.ComputeService_CreateCompute_FullMethodName, action: "compute/computes/write", build: func(_ *testing.T, f *fixture, p *place) proto.Message {
		return &computev1.CreateComputeRequest{Parent: p.ws, ComputeId: f.id("attached"), Kind: computev1.Compute_KIND_SELF_HOSTED}
	}},
	{name: "attach datastore", who: "OC", needs: "D11: there are no datastores yet"},
	{name: "run experiment", who: "OC", method: computev1.RunService_SubmitRun_FullMethodName, action: "compute/runs/submit"},
	{name: "view runs and metrics", who: "OCR", method: computev1.RunService_GetRun_FullMethodName, also: telemetryv1.MetricService_ListMetricHistory_FullMethodName},
	{name: "register model", who: "OC", method: inferencev1.ModelService_CreateModelVersion_FullMethodName, also: inferencev1.ModelService_CreateModel_FullMethodName, action: "inference/models/write"},
	{name: "create image", who: "OC", needs: "H6: there are no images yet"},
	{name: "deploy web service", who: "OC", method: inferencev1.EndpointService_CreateDeployment_FullMethodName, also: inferencev1.EndpointService_CreateEndpoint_FullMethodName, action: "inference/endpoints/deployments/write"},
	{name: "view models and images", who: "OCR", method: inferencev1.ModelService_GetModelVersion_FullMethodName, also: inferencev1.ModelService_ListModels_FullMethodName},
	{name: "call web service", who: "OCR", needs: "H6: nothing is deployed that could be called"},
}

// B1: Owner, Contributor and Reader, each at a resource group, against the twelve operations, by the API itself.
func TestTwelveOperations(t *testing.T) {
	f := live(t)
	byName := map[string]method{}
	for _, m := range methods(t) {
		byName[m.FullName] = m
	}
	tried, absent := 0, 0
	for letter, role := range map[string]string{"O": authz.Owner, "C": authz.Contributor, "R": authz.Reader} {
		c := f.newUser(t, f.id("holder"))
		f.assign(t, f.ours.group, role, c.uid)
		for _, op := range operations {
			t.Run(op.name+"/"+role[len("roleDefinitions/"):], func(t *testing.T) {
				if op.method == "" {
					absent++
					t.Skip(op.needs)
				}
				tried++
				build := op.build
				if build == nil {
					build = func(t *testing.T, f *fixture, p *place) proto.Message {
						return requests[op.method].build(t, f, p).in[0]
					}
				}
				w, also := missing(op.action), missing("")
				if op.also != "" {
					also = missing(byName[op.also].Rule.GetAction())
				}
				for _, may := range op.who {
					if string(may) == letter {
						w, also = ok, ok
					}
				}
				_, err := f.send(t, byName[op.method], one(build(t, f, f.ours)), c)
				expect(t, err, w)
				if op.also != "" {
					_, err := f.send(t, byName[op.also], requests[op.also].build(t, f, f.ours), c)
					expect(t, err, also)
				}
				// In another group he is nobody.
				req := one(build(t, f, f.theirs))
				scope, err := byName[op.method].Scope(req.in[0])
				must(t, err)
				_, err = f.send(t, byName[op.method], req, c)
				expect(t, err, notFound(scope))
			})
		}
	}
	fmt.Printf("roles: %d cells tried, %d not there yet\n", tried, absent)
}
