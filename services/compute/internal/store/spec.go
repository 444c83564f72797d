package store

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

// specField is the field that a run's spec is sealed under. It differs by what the spec is, so that a row with another kind written
// into it does not open. It is "" for a kind that nothing is stored of.
func specField(kind computev1.Run_Kind) string {
	switch kind {
	case computev1.Run_KIND_JOB:
		return "spec"
	case computev1.Run_KIND_TRACKED:
		return "tracked"
	case computev1.Run_KIND_REPLICA:
		return "replica"
	default:
		return ""
	}
}

func sealSpec(key *envelope.Key, r *Run) ([]byte, error) {
	field := specField(r.Kind)
	if field == "" {
		return nil, fault.Internal(nil, "a run of no known kind cannot be stored")
	}
	var m proto.Message = r.Spec
	if r.Kind == computev1.Run_KIND_REPLICA {
		m = r.Replica
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fault.Internal(err, "the run cannot be stored")
	}
	return key.Seal(runAAD(r.Workspace, r.UID, field), b)
}

func openSpec(key *envelope.Key, r *Run, sealed []byte) error {
	damaged := func() error {
		return fault.New(codes.DataLoss, faultv1.Reason_DATA_DAMAGED, "the stored run cannot be read")
	}
	field := specField(r.Kind)
	if field == "" {
		return damaged()
	}
	b, err := key.Open(runAAD(r.Workspace, r.UID, field), sealed)
	if err != nil {
		return err
	}
	if r.Kind == computev1.Run_KIND_REPLICA {
		r.Replica = &computev1.StartReplicaRequest{}
		if proto.Unmarshal(b, r.Replica) != nil {
			return damaged()
		}
		r.Spec = ReplicaSpec(r.Replica)
		return nil
	}
	r.Spec = &computev1.SubmitRunRequest{}
	if proto.Unmarshal(b, r.Spec) != nil {
		return damaged()
	}
	return nil
}

// ReplicaSpec is what a replica has in common with every run: where it runs, on which code, under which id and bounds. It has no
// command.
func ReplicaSpec(r *computev1.StartReplicaRequest) *computev1.SubmitRunRequest {
	return &computev1.SubmitRunRequest{
		Parent: r.GetWorkspace(), RunId: r.GetReplicaId(), Compute: r.GetCompute(), Snapshot: r.GetSnapshot(),
		Environment: r.GetEnvironment(), Limits: r.GetLimits(),
	}
}
