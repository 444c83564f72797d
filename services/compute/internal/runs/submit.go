package runs

import (
	"context"
	"crypto/rand"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/runspec"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/view"
)

// SubmitRun implements computev1.RunServiceServer. The chain has checked the caller's right to run here, on that target and with
// that snapshot.
func (h *Service) SubmitRun(ctx context.Context, req *computev1.SubmitRunRequest) (*computev1.Run, error) {
	call := rpc.From(ctx)
	if err := checkSpec(req); err != nil {
		return nil, err
	}
	compute, snapshot := call.Uses[0], call.Uses[1]
	for field, use := range map[string]string{"compute": compute.WorkspaceUID, "snapshot": snapshot.WorkspaceUID} {
		if use != call.Scope.WorkspaceUID {
			return nil, fault.InvalidArgument("a run uses the computes and snapshots of its own workspace").Field(field, "is of another workspace")
		}
	}
	c, err := h.cfg.Store.Compute(ctx, call.Scope.WorkspaceUID, compute.Name.ID())
	if err != nil {
		return nil, view.Absent(err, req.GetCompute())
	}
	if _, err := h.cfg.Snapshots.GetSnapshot(ctx, &workspacev1.GetSnapshotRequest{Name: req.GetSnapshot()}); err != nil {
		return nil, fault.FromStatus(err)
	}
	spec := proto.CloneOf(req)
	if spec.GetRunId() == "" {
		spec.RunId = strings.ToLower(rand.Text())
	}
	r := &store.Run{
		UID: resource.NewUID("run"), Workspace: call.Scope.WorkspaceUID, Kind: computev1.Run_KIND_JOB, Compute: c.UID, Spec: spec, Submitter: call.Principal,
		State: computev1.Run_STATE_QUEUED, Created: h.cfg.Now(),
	}
	join := &store.Join{Name: req.GetExperiment(), May: mayJoin(call)}
	stored, err := h.cfg.Store.Submit(ctx, r, req.GetRequestId(), join, view.Record("run", spec.GetRunId(), "compute", c.ID))
	if err != nil {
		return nil, err
	}
	if stored.UID != r.UID && !sameRequest(req, stored.Spec) {
		return nil, requestReused()
	}
	return view.Run(ctx, h.cfg.Store, stored)
}

// sameRequest compares what is asked now with what was asked under the same request id; an id that was made for it counts as none.
func sameRequest(req, stored *computev1.SubmitRunRequest) bool {
	a := proto.CloneOf(req)
	if a.GetRunId() == "" {
		a.RunId = stored.GetRunId()
	}
	return proto.Equal(a, stored)
}

// checkSpec refuses what the contract's constraints cannot say.
func checkSpec(req *computev1.SubmitRunRequest) error {
	if req.GetRunId() != "" {
		if err := resource.ValidRunID(req.GetRunId()); err != nil {
			return err
		}
	}
	if req.GetCommand()[0] == "" {
		return fault.InvalidArgument("the command's first word is the program").Field("command", "begins with an empty word")
	}
	for _, a := range req.GetCommand() {
		if strings.ContainsRune(a, 0) {
			return fault.InvalidArgument("a command cannot hold a NUL byte").Field("command", "holds a NUL byte")
		}
	}
	if d := req.GetLimits().GetTimeout(); d != nil && (!d.IsValid() || d.AsDuration() < 0) {
		return fault.InvalidArgument("the timeout is not a positive duration").Field("limits.timeout", "is negative or out of range")
	}
	return runspec.Environment(req.GetEnvironment())
}

// mayJoin says who gets into the experiment that a run names by its display name.
func mayJoin(call *rpc.Call) func(e *store.Experiment, makes bool) error {
	return func(e *store.Experiment, makes bool) error {
		workspace, ok := call.Scope.Name.Workspace()
		action := "compute/experiments/read"
		if makes {
			action = "compute/experiments/write"
		}
		if !ok || !call.May(action, false, workspace) {
			return fault.New(codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING, "the action %s is missing for the experiment that the run names; leave it out, or ask for the action", action).
				With("action", action).With("scope", workspace.String())
		}
		call.Detail("experiment", e.ID)
		return nil
	}
}
