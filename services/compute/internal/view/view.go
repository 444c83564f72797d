// Package view finds what a call is about, and shows runs to their callers.
//
// Trust boundary: the chain has decided that the caller may. Whoever names what is not there gets the one answer for that.
package view

import (
	"context"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/envelope"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
)

// Record is the audit record of the call that ctx belongs to.
func Record(details ...string) store.Record {
	return func(ctx context.Context, tx *sqldb.Tx) error { return rpc.From(ctx).Audit(ctx, tx, details...) }
}

// Absent gives the one answer for what is not there.
func Absent(err error, name string) error {
	if fault.Is(err, codes.NotFound) {
		return rpc.NotFound(name)
	}
	return err
}

// Find gives the run that a call is about. name is what its absence is told by.
func Find(ctx context.Context, st *store.Store, name string) (*store.Run, error) {
	call := rpc.From(ctx)
	r, err := st.Run(ctx, call.Scope.WorkspaceUID, call.Scope.Name.ID())
	return r, Absent(err, name)
}

// Page opens a page token, and gives what seals the next one.
func Page(ctx context.Context, st *store.Store, workspace, query, token string) (store.Cursor, func(cur store.Cursor, got, limit int) (string, error), error) {
	key, err := st.Key(ctx, workspace)
	if err != nil {
		return store.Cursor{}, nil, err
	}
	next := func(cur store.Cursor, got, limit int) (string, error) {
		if got < limit {
			return "", nil
		}
		return key.SealPage(query, cur.Bytes())
	}
	if token == "" {
		return store.Cursor{}, next, nil
	}
	b, err := key.OpenPage(query, token)
	if err != nil {
		return store.Cursor{}, nil, err
	}
	cur, err := envelope.ParseCursor(b)
	return cur, next, err
}

// Message is a run with what its experiment was called when it was submitted.
func Message(r *store.Run) *computev1.Run {
	m := &computev1.Run{
		Name: r.Name(), Uid: r.UID, State: r.State, DisplayName: r.DisplayName(), Experiment: r.Spec.GetExperiment(), Compute: r.Spec.GetCompute(),
		Snapshot: r.Spec.GetSnapshot(), Command: r.Spec.GetCommand(), Submitter: r.Submitter, CreateTime: timestamppb.New(r.Created),
		ExitCode: r.Outcome.GetExitCode(), Message: r.Outcome.GetMessage(), Reason: r.Outcome.GetReason(), CancelRequested: r.Cancel,
		Environment: r.Spec.GetEnvironment(), Limits: r.Spec.GetLimits(), LogBytes: r.LogBytes, Etag: strconv.FormatInt(r.Version, 10), Kind: r.Kind,
		ExperimentName: r.Spec.GetParent() + "/experiments/" + r.Experiment, Deleted: r.Deleted != store.NotDeleted, User: r.Labels.GetUser(),
	}
	if !r.Started.IsZero() {
		m.StartTime = timestamppb.New(r.Started)
	}
	if !r.Ended.IsZero() {
		m.EndTime = timestamppb.New(r.Ended)
	}
	if r.State == computev1.Run_STATE_LOST && !r.DeliverUntil.IsZero() {
		m.DeliverUntil = timestamppb.New(r.DeliverUntil)
	}
	if !r.ReportedAt.IsZero() {
		m.ReportedState, m.ReportTime = r.Reported, timestamppb.New(r.ReportedAt)
	}
	return m
}

// Run is a run with what its experiment is called now.
func Run(ctx context.Context, st *store.Store, r *store.Run) (*computev1.Run, error) {
	out, err := Runs(ctx, st, []*store.Run{r})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// Runs is Run for many.
func Runs(ctx context.Context, st *store.Store, list []*store.Run) ([]*computev1.Run, error) {
	names, out := make(map[string]string), make([]*computev1.Run, 0, len(list))
	for _, r := range list {
		name, ok := names[r.Experiment]
		if !ok {
			e, err := st.Experiment(ctx, r.Workspace, r.Experiment)
			if err != nil {
				return nil, err
			}
			name = e.DisplayName
			names[r.Experiment] = name
		}
		m := Message(r)
		m.Experiment = name
		out = append(out, m)
	}
	return out, nil
}

// NotDeployed refuses what only a deployment does with its replicas.
func NotDeployed() error {
	return fault.New(codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE, "the run is a replica of a deployment: delete the deployment or give it fewer replicas instead")
}

// Deleted refuses to change a run that is deleted.
func Deleted(r *store.Run) error {
	if r.Deleted != store.NotDeleted {
		return fault.FailedPrecondition("the run is deleted; restore it first")
	}
	return nil
}
