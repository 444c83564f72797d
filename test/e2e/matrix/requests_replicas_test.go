package matrix

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
)

// replica is the request for a replica that waits for a target which nobody claims from.
func (f *fixture) replica() *computev1.StartReplicaRequest {
	p := f.ours
	return &computev1.StartReplicaRequest{
		Workspace: p.ws, WorkspaceUid: p.wsUID, Principal: f.owner.uid, ReplicaId: f.id("replica"), Compute: p.parking, Snapshot: p.snapshot,
		Deployment: p.ws + "/endpoints/flowers/deployments/blue",
		Serve: &computev1.ServeSpec{
			Models: []string{p.ws + "/models/iris/versions/1"}, EntryScript: "score.py", Workers: 1, Address: "127.0.0.1:1", MaxBodyBytes: 1 << 20,
			RequestTimeout: durationpb.New(time.Second), StartTimeout: durationpb.New(time.Second),
		},
	}
}

// startedReplica is one that inference has started, by its id.
func (f *fixture) startedReplica(t *testing.T) string {
	t.Helper()
	req := f.replica()
	_, err := computev1.NewReplicaServiceClient(f.service(t, "inference", nothing).conn(t, "compute")).StartReplica(t.Context(), req)
	must(t, err)
	return req.GetReplicaId()
}

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		computev1.ReplicaService_StartReplica_FullMethodName: forPeers(func(_ *testing.T, f *fixture, _ string) proto.Message { return f.replica() }),
		computev1.ReplicaService_StopReplica_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			return &computev1.StopReplicaRequest{WorkspaceUid: f.ours.wsUID, ReplicaId: f.startedReplica(t)}
		}),
		computev1.ReplicaService_WatchReplicas_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			return &computev1.WatchReplicasRequest{WorkspaceUid: f.ours.wsUID, ReplicaIds: []string{f.startedReplica(t)}}
		}),
		computev1.ReplicaService_ReadReplicaLogs_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			return &computev1.ReadReplicaLogsRequest{WorkspaceUid: f.ours.wsUID, ReplicaId: f.startedReplica(t)}
		}),
	})
}
