package endpoints

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/runspec"
	"github.com/redoubt-ml/redoubt/services/inference/internal/models"
)

// What is left out of a spec, and the most that may be asked for.
const (
	defaultScript         = "score.py"
	defaultQueue          = 100
	defaultBody           = 10 << 20
	defaultRequestTimeout = 30 * time.Second
	maxRequestTimeout     = 10 * time.Minute
	defaultStartTimeout   = time.Minute
	maxStartTimeout       = 30 * time.Minute
)

// settle checks a spec and fills in what it leaves out: what it means is fixed from then on. The chain has checked the caller's rights to
// the model, the snapshot and the compute.
func (s *Service) settle(ctx context.Context, call *rpc.Call, in *inferencev1.DeploymentSpec) (*inferencev1.DeploymentSpec, models.Version, error) {
	spec, err := filled(in)
	if err != nil {
		return nil, models.Version{}, err
	}
	for i, field := range []string{"deployment.model", "deployment.snapshot", "deployment.compute"} {
		if call.Uses[i].WorkspaceUID != call.Scope.WorkspaceUID {
			return nil, models.Version{}, fault.InvalidArgument("a deployment uses the models, snapshots and computes of its own workspace").Field(field, "is of another workspace")
		}
	}
	version, err := s.cfg.Models.Resolve(ctx, call.Scope.WorkspaceUID, call.Uses[0].Name)
	if err != nil {
		return nil, models.Version{}, absent(err, in.GetModel())
	}
	spec.Model = version.Name
	if _, err := s.cfg.Snapshots.GetSnapshot(ctx, &workspacev1.GetSnapshotRequest{Name: spec.GetSnapshot()}); err != nil {
		return nil, models.Version{}, fault.FromStatus(err)
	}
	// Whoever may use a target need not be able to read it; then the first start says whether it is there.
	if _, err := s.cfg.Computes.GetCompute(ctx, &computev1.GetComputeRequest{Name: spec.GetCompute()}); err != nil && !fault.Is(fault.FromStatus(err), codes.PermissionDenied) {
		return nil, models.Version{}, fault.FromStatus(err)
	}
	return spec, version, nil
}

// filled checks what the contract's constraints cannot say.
func filled(in *inferencev1.DeploymentSpec) (*inferencev1.DeploymentSpec, error) {
	spec := proto.CloneOf(in)
	if spec.GetEntryScript() == "" {
		spec.EntryScript = defaultScript
	}
	if err := runspec.Path("deployment.entry_script", "the path of the entry script", spec.GetEntryScript()); err != nil {
		return nil, err
	}
	if err := runspec.Environment(spec.GetEnvironment()); err != nil {
		return nil, err
	}
	spec.Replicas, spec.Workers = max(1, spec.GetReplicas()), max(1, spec.GetWorkers())
	if spec.GetQueueLength() == 0 {
		spec.QueueLength = defaultQueue
	}
	if spec.GetMaxBodyBytes() == 0 {
		spec.MaxBodyBytes = defaultBody
	}
	for _, t := range []struct {
		field         string
		d             **durationpb.Duration
		initial, most time.Duration
	}{
		{"deployment.request_timeout", &spec.RequestTimeout, defaultRequestTimeout, maxRequestTimeout},
		{"deployment.start_timeout", &spec.StartTimeout, defaultStartTimeout, maxStartTimeout},
	} {
		switch d := *t.d; {
		case d == nil:
			*t.d = durationpb.New(t.initial)
		case !d.IsValid() || d.AsDuration() <= 0 || d.AsDuration() > t.most:
			return nil, fault.InvalidArgument("%s is a positive duration of at most %s", t.field, t.most).Field(t.field, "is out of range")
		}
	}
	return spec, nil
}
