package telemetry

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
)

// runDataBytes ends an answer of BatchGetRunData; the run that reaches it is still in it, so it stays below gRPC's usual 4 MiB
// but for a run that is itself as large as a run may be.
const runDataBytes = 1 << 20

// LogBatch implements telemetryv1.MetricServiceServer. It shares its transaction with other batches that are on their way.
func (m metricServer) LogBatch(ctx context.Context, req *telemetryv1.LogBatchRequest) (*emptypb.Empty, error) {
	run, err := m.s.openRunOf(ctx, rpc.From(ctx))
	if err != nil {
		return nil, err
	}
	batch, err := batchOf(req, m.s.cfg.Now().UnixMicro())
	if err != nil {
		return nil, err
	}
	err = m.s.history.Store(run.WorkspaceUID).Log(ctx, run, batch)
	if fault.ReasonOf(err) == faultv1.Reason_PRECONDITION_FAILED {
		// One call with one batch: what is wrong is what was sent, as MLflow's clients know it.
		return nil, fault.Wrap(err, codes.InvalidArgument, faultv1.Reason_METRIC_INVALID,
			"a parameter of the batch has another value already, and keeps it; nothing of the batch was stored: log it under another name, or as a tag").Field("params", "it has another value already")
	}
	if err != nil {
		return nil, ofBatch(err, batch.ID)
	}
	return &emptypb.Empty{}, nil
}

// DeleteRunTag implements telemetryv1.MetricServiceServer.
func (m metricServer) DeleteRunTag(ctx context.Context, req *telemetryv1.DeleteRunTagRequest) (*emptypb.Empty, error) {
	call := rpc.From(ctx)
	run, err := m.s.openRunOf(ctx, call)
	if err != nil {
		return nil, err
	}
	record := func(ctx context.Context, tx *sqldb.Tx) error { return call.Audit(ctx, tx) }
	if m.s.cfg.History != m.s.cfg.DB {
		record = nil // the chain writes it before the answer: the outbox is in the other database
	}
	if err := m.s.history.Store(run.WorkspaceUID).DeleteTag(ctx, run, req.GetKey(), record); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// BatchGetRunData implements telemetryv1.MetricServiceServer.
func (m metricServer) BatchGetRunData(ctx context.Context, req *telemetryv1.BatchGetRunDataRequest) (*telemetryv1.BatchGetRunDataResponse, error) {
	workspace := rpc.From(ctx).Scope.WorkspaceUID
	if workspace == "" {
		return nil, fault.Internal(nil, "a call about a workspace has none")
	}
	res := &telemetryv1.BatchGetRunDataResponse{Data: make(map[string]*telemetryv1.RunData)}
	bytes, done := 0, 0
	err := m.s.history.Store(workspace).EachData(ctx, workspace, req.GetRunUids(), func(uid string, data history.Data) bool {
		if run := runDataOf(data); proto.Size(run) > 0 {
			res.Data[uid] = run
			bytes += proto.Size(run) + len(uid)
		}
		done++
		return bytes <= runDataBytes
	})
	res.RemainingRunUids = req.GetRunUids()[done:]
	return res, err
}
