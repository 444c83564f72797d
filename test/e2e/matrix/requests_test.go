package matrix

import (
	"context"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

// request is what is sent: one message, or several on a stream.
type request struct {
	in []proto.Message
	// stir makes something happen that a watcher hears of.
	stir func(ctx context.Context)
	// from is the caller that the request is for, where it is nobody of the fixture's.
	from *caller
}

func one(m proto.Message) request { return request{in: []proto.Message{m}} }

// want is the answer that a cell expects.
type want struct {
	code   codes.Code
	reason faultv1.Reason
	// action that the error names, "" for none.
	action string
	// words is the whole message, "" for any.
	words string
	// silent says that the handler refused something that is no denial of the chain's, which has no record.
	silent bool
}

var ok = want{code: codes.OK}

func refused(code codes.Code, reason faultv1.Reason) want { return want{code: code, reason: reason} }

func missing(action string) want {
	return want{code: codes.PermissionDenied, reason: faultv1.Reason_AUTHZ_ACTION_MISSING, action: action}
}

// spec says how a method is called.
type spec struct {
	// build makes a request that succeeds when it is sent once, about the place.
	build func(t *testing.T, f *fixture, p *place) request
	// peer makes it for one of the services that may call, where the method is for services.
	peer func(t *testing.T, f *fixture, service string) request
	// run says that the run's agent is the one who may, and nobody else.
	run bool
	// fresh gives every caller credentials of his own, which the call uses up.
	fresh bool
	// want overrides what the rule says, by cell.
	want map[string]want
	// bad are the requests that a public method refuses.
	bad map[string]badRequest
	// conn is where a public method is reached, if not through the gateway.
	conn func(t *testing.T, req request) *grpc.ClientConn
}

type badRequest struct {
	build func(t *testing.T, f *fixture) request
	want  want
}

// about is a spec that needs nothing but a message.
func about(build func(f *fixture, p *place) proto.Message) spec {
	return spec{build: func(_ *testing.T, f *fixture, p *place) request { return one(build(f, p)) }}
}

// making is a spec whose message needs something that is made before.
func making(build func(t *testing.T, f *fixture, p *place) proto.Message) spec {
	return spec{build: func(t *testing.T, f *fixture, p *place) request { return one(build(t, f, p)) }}
}

// requests has every method of the contracts. A new one has to be entered here.
var requests = map[string]spec{}

func register(specs map[string]spec) {
	for method, s := range specs {
		if _, twice := requests[method]; twice {
			panic(method + " stands in the registry twice")
		}
		requests[method] = s
	}
}

// agent is a spec of a method that only the agent of the run may call.
func agent(s spec) spec {
	s.run = true
	s.want = map[string]want{
		"owner":    refused(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN),
		"operator": refused(codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN),
	}
	return s
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		workspacev1.ResourceService_CreateSubscription_FullMethodName: about(func(f *fixture, _ *place) proto.Message {
			return &workspacev1.CreateSubscriptionRequest{SubscriptionId: f.id("sub"), Region: "here"}
		}),
		workspacev1.ResourceService_ListSubscriptions_FullMethodName: about(func(*fixture, *place) proto.Message { return &workspacev1.ListSubscriptionsRequest{} }),
		workspacev1.ResourceService_DeleteSubscription_FullMethodName: making(func(t *testing.T, f *fixture, _ *place) proto.Message {
			return &workspacev1.DeleteSubscriptionRequest{Name: f.subscription(t)}
		}),
		workspacev1.ResourceService_CreateResourceGroup_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &workspacev1.CreateResourceGroupRequest{Parent: p.sub, ResourceGroupId: f.id("group")}
		}),
		workspacev1.ResourceService_ListResourceGroups_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &workspacev1.ListResourceGroupsRequest{Parent: p.sub}
		}),
		workspacev1.ResourceService_DeleteResourceGroup_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &workspacev1.DeleteResourceGroupRequest{Name: f.resourceGroup(t, p.sub)}
		}),
		workspacev1.ResourceService_CreateWorkspace_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &workspacev1.CreateWorkspaceRequest{Parent: p.group, WorkspaceId: f.id("lab")}
		}),
		workspacev1.ResourceService_GetWorkspace_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &workspacev1.GetWorkspaceRequest{Name: p.ws} }),
		workspacev1.ResourceService_UpdateWorkspace_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &workspacev1.UpdateWorkspaceRequest{Workspace: &workspacev1.WorkspaceUpdate{Name: p.ws, Description: "changed"}}
		}),
		workspacev1.ResourceService_ListWorkspaces_FullMethodName: about(func(*fixture, *place) proto.Message { return &workspacev1.ListWorkspacesRequest{} }),
		workspacev1.ResourceService_DeleteWorkspace_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &workspacev1.DeleteWorkspaceRequest{Name: f.workspace(t, p.group).GetName()}
		}),

		workspacev1.AccessService_ListRoleDefinitions_FullMethodName: about(func(*fixture, *place) proto.Message { return &workspacev1.ListRoleDefinitionsRequest{} }),
		workspacev1.AccessService_CreateRoleAssignment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &workspacev1.CreateRoleAssignmentRequest{Scope: p.ws, Role: authz.Reader, Principal: f.group(t).GetUid()}
		}),
		workspacev1.AccessService_ListRoleAssignments_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &workspacev1.ListRoleAssignmentsRequest{Scope: p.ws, Inherited: true}
		}),
		workspacev1.AccessService_DeleteRoleAssignment_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &workspacev1.DeleteRoleAssignmentRequest{Scope: p.ws, Uid: f.assign(t, p.ws, authz.Reader, f.group(t).GetUid()).GetUid()}
		}),
		workspacev1.AccessService_Explain_FullMethodName: about(func(*fixture, *place) proto.Message {
			return &workspacev1.ExplainRequest{Scope: "/", Action: "compute/runs/submit"}
		}),

		workspacev1.SnapshotService_FindMissingBlobs_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &workspacev1.FindMissingBlobsRequest{Parent: p.ws, Digests: [][]byte{make([]byte, 32)}}
		}),
		workspacev1.SnapshotService_UploadBlob_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			b := []byte(f.id("blob"))
			sum := sha256.Sum256(b)
			return &workspacev1.UploadBlobRequest{Parent: p.ws, Digest: sum[:], Size: int64(len(b)), Data: b}
		}),
		workspacev1.SnapshotService_UploadBlobs_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			b := []byte(f.id("blob"))
			sum := sha256.Sum256(b)
			return &workspacev1.UploadBlobsRequest{Parent: p.ws, Blobs: []*workspacev1.SmallBlob{{Digest: sum[:], Data: b}}}
		}),
		workspacev1.SnapshotService_CreateSnapshot_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			content, digest := f.blob(t, p.ws)
			return &workspacev1.CreateSnapshotRequest{Parent: p.ws, Entries: []*workspacev1.SnapshotEntry{{Path: "a.py", Digest: digest, Size: int64(len(content))}}}
		}),
		workspacev1.SnapshotService_GetSnapshot_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &workspacev1.GetSnapshotRequest{Name: p.snapshot} }),
		workspacev1.SnapshotService_ListSnapshots_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &workspacev1.ListSnapshotsRequest{Parent: p.ws}
		}),
		workspacev1.SnapshotService_DownloadSnapshot_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &workspacev1.DownloadSnapshotRequest{Name: p.snapshot}
		}),
		workspacev1.AuthorizationStateService_WatchAuthorization_FullMethodName: forPeers(func(*testing.T, *fixture, string) proto.Message {
			return &workspacev1.WatchAuthorizationRequest{}
		}),
		workspacev1.AuthorizationStateService_AcknowledgeAuthorization_FullMethodName: forPeers(func(t *testing.T, f *fixture, service string) proto.Message {
			// The stream stays open until the test ends: only the peer at its other end may acknowledge it.
			s, err := workspacev1.NewAuthorizationStateServiceClient(f.service(t, service, nothing).conn(t, "workspace")).WatchAuthorization(t.Context(), &workspacev1.WatchAuthorizationRequest{})
			must(t, err)
			m, err := s.Recv()
			must(t, err)
			return &workspacev1.AcknowledgeAuthorizationRequest{Stream: m.GetStream(), Seq: 1 << 62}
		}),
	})
	register(map[string]spec{
		computev1.ComputeService_CreateCompute_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &computev1.CreateComputeRequest{Parent: p.ws, ComputeId: f.id("compute"), Kind: computev1.Compute_KIND_LOCAL}
		}),
		computev1.ComputeService_GetCompute_FullMethodName:   about(func(_ *fixture, p *place) proto.Message { return &computev1.GetComputeRequest{Name: p.parking} }),
		computev1.ComputeService_ListComputes_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &computev1.ListComputesRequest{Parent: p.ws} }),
		computev1.ComputeService_DeleteCompute_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.DeleteComputeRequest{Name: f.compute(t, p.ws)}
		}),
		computev1.ComputeService_ClaimRun_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			c := f.compute(t, p.ws)
			f.submit(t, p, c)
			return &computev1.ClaimRunRequest{Name: c, Wait: durationpb.New(5 * time.Second)}
		}),

		computev1.RunService_SubmitRun_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &computev1.SubmitRunRequest{Parent: p.ws, Compute: p.parking, Snapshot: p.snapshot, Command: []string{"true"}, RunId: f.id("run")}
		}),
		computev1.RunService_GetRun_FullMethodName:   about(func(_ *fixture, p *place) proto.Message { return &computev1.GetRunRequest{Name: p.run.name} }),
		computev1.RunService_ListRuns_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &computev1.ListRunsRequest{Parent: p.ws} }),
		computev1.RunService_WatchRun_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &computev1.WatchRunRequest{Name: p.run.name} }),
		computev1.RunService_CancelRun_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &computev1.CancelRunRequest{Name: f.submit(t, p, p.parking).GetName()}
		}),
		computev1.RunService_StreamLogs_FullMethodName:  about(func(_ *fixture, p *place) proto.Message { return &computev1.StreamLogsRequest{Name: p.run.name} }),
		computev1.RunService_ListOutputs_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &computev1.ListOutputsRequest{Name: p.run.name} }),
		computev1.RunService_DownloadOutput_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &computev1.DownloadOutputRequest{Name: p.run.name, Path: "model.json"}
		}),

		computev1.AgentRunService_GetAssignment_FullMethodName: agent(about(func(_ *fixture, p *place) proto.Message {
			return &computev1.GetAssignmentRequest{Name: p.run.name}
		})),
		computev1.AgentRunService_Heartbeat_FullMethodName: agent(about(func(_ *fixture, p *place) proto.Message {
			return &computev1.HeartbeatRequest{Name: p.run.name, Running: true}
		})),
		computev1.AgentRunService_AppendLogs_FullMethodName: agent(about(func(_ *fixture, p *place) proto.Message {
			return &computev1.AppendLogsRequest{Name: p.run.name, Data: []byte("hello\n")} // from the start again: taken once
		})),
		computev1.AgentRunService_UploadOutput_FullMethodName: agent(about(func(f *fixture, p *place) proto.Message {
			b := []byte("metrics")
			sum := sha256.Sum256(b)
			return &computev1.UploadOutputRequest{Name: p.run.name, Path: f.id("metrics") + ".json", Size: int64(len(b)), Digest: sum[:], Data: b}
		})),
		computev1.AgentRunService_ReportRun_FullMethodName: agent(spec{build: func(t *testing.T, f *fixture, p *place) request {
			r := f.newRun(t, p) // which this ends
			return request{from: &r.caller, in: []proto.Message{&computev1.ReportRunRequest{Name: r.name, State: computev1.Run_STATE_COMPLETED, LogBytes: 6, Outputs: 1}}}
		}}),

		computev1.RunInternalService_DescribeRun_FullMethodName: forPeers(func(_ *testing.T, f *fixture, _ string) proto.Message {
			return &computev1.DescribeRunRequest{WorkspaceUid: f.ours.wsUID, RunId: f.ours.run.id}
		}),
		computev1.RunInternalService_PurgeWorkspace_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			return &computev1.PurgeWorkspaceRequest{WorkspaceUid: f.workspace(t, f.ours.group).GetUid()}
		}),
	})
	register(map[string]spec{
		telemetryv1.ActivityService_ListActivity_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &telemetryv1.ListActivityRequest{Scope: p.ws} }),
		telemetryv1.ActivityService_WatchActivity_FullMethodName: {build: func(t *testing.T, f *fixture, p *place) request {
			req := one(&telemetryv1.WatchActivityRequest{Scope: p.ws})
			snapshots := workspacev1.NewSnapshotServiceClient(f.admin)
			req.stir = func(ctx context.Context) { // the same content again: an event, and no other change
				_, _ = snapshots.CreateSnapshot(ctx, &workspacev1.CreateSnapshotRequest{Parent: p.ws})
			}
			return req
		}},
		telemetryv1.MetricService_LogRunData_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &telemetryv1.LogRunDataRequest{Run: p.run.name, BatchId: f.id("batch"), Metrics: []*telemetryv1.Metric{{Key: "accuracy", Value: 0.5, Step: f.seq.Add(1)}}}
		}),
		telemetryv1.MetricService_ListMetricHistory_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &telemetryv1.ListMetricHistoryRequest{Run: p.run.name, Key: "loss"}
		}),
		telemetryv1.MetricService_GetRunData_FullMethodName:   about(func(_ *fixture, p *place) proto.Message { return &telemetryv1.GetRunDataRequest{Run: p.run.name} }),
		telemetryv1.MetricService_WatchMetrics_FullMethodName: about(func(_ *fixture, p *place) proto.Message { return &telemetryv1.WatchMetricsRequest{Run: p.run.name} }),
		telemetryv1.IngestService_Ingest_FullMethodName: forPeers(func(t *testing.T, f *fixture, service string) proto.Message {
			// An event that is there already: a repeated delivery changes nothing.
			r, err := telemetryv1.NewActivityServiceClient(f.admin).ListActivity(t.Context(), &telemetryv1.ListActivityRequest{Scope: "/", PageSize: 1000})
			must(t, err)
			i := slices.IndexFunc(r.GetEvents(), func(ev *telemetryv1.ActivityEvent) bool { return ev.GetService() == service })
			if i < 0 {
				t.Fatalf("no event of %s is among the newest", service)
			}
			return &telemetryv1.IngestRequest{Events: r.GetEvents()[i : i+1]}
		}),
		telemetryv1.IngestService_PurgeWorkspace_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			return &telemetryv1.PurgeWorkspaceRequest{WorkspaceUid: f.workspace(t, f.ours.group).GetUid()}
		}),
	})
}

// forPeers is a spec of a method for services of the mesh.
func forPeers(build func(t *testing.T, f *fixture, service string) proto.Message) spec {
	return spec{peer: func(t *testing.T, f *fixture, service string) request { return one(build(t, f, service)) }}
}
