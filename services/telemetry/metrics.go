package telemetry

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/rpc"
	"github.com/redoubt-ml/redoubt/services/telemetry/internal/history"
)

// metricServer keeps what runs measure.
type metricServer struct {
	telemetryv1.UnsafeMetricServiceServer
	s *Service
}

var _ telemetryv1.MetricServiceServer = metricServer{}

const (
	historyPage    = 1000
	historyPageMax = 50_000
	// historyPageBytes keeps an answer below gRPC's usual limit of 4 MiB: a name stands in every point.
	historyPageBytes = 3 << 20
)

// LogRunData implements telemetryv1.MetricServiceServer. Each batch is answered once it is durable; the next one is taken then. A batch
// that is refused ends the stream, and its id stands in the error. A message without id and data only names the run, and has no answer.
func (m metricServer) LogRunData(stream grpc.BidiStreamingServer[telemetryv1.LogRunDataRequest, telemetryv1.LogRunDataResponse]) error {
	ctx := stream.Context()
	var run history.Run
	for first := true; ; first = false {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if first {
			if run, err = m.s.openRunOf(ctx, rpc.From(ctx)); err != nil {
				return err
			}
		}
		batch, err := batchOf(req, m.s.cfg.Now().UnixMicro())
		if err != nil {
			return err
		}
		if batch.Empty() && batch.ID == "" {
			continue
		}
		if err := m.s.history.Store(run.WorkspaceUID).Log(ctx, run, batch); err != nil {
			return ofBatch(err, batch.ID)
		}
		if err := stream.Send(&telemetryv1.LogRunDataResponse{BatchId: batch.ID}); err != nil {
			return err
		}
	}
}

// ofBatch says in an error which batch it is about.
func ofBatch(err error, id string) error {
	var f *fault.Error
	if id != "" && errors.As(err, &f) {
		return f.With("batch_id", id)
	}
	return err
}

// batch is what both ways to log have in common.
type batch interface {
	GetBatchId() string
	GetMetrics() []*telemetryv1.Metric
	GetParams() []*telemetryv1.Param
	GetTags() []*telemetryv1.Tag
}

// batchOf reads a batch. Points without a time get now.
func batchOf(req batch, now int64) (*history.Batch, error) {
	b := &history.Batch{ID: req.GetBatchId()}
	for i, p := range req.GetMetrics() {
		time, err := micros(fmt.Sprintf("metrics[%d].time", i), p.GetTime(), now)
		if err != nil {
			return nil, fault.Wrap(err, codes.InvalidArgument, faultv1.Reason_METRIC_INVALID, "the time of a metric is out of range").Field(fmt.Sprintf("metrics[%d].time", i), "out of range")
		}
		b.Metrics = append(b.Metrics, history.Metric{Key: p.GetKey(), Point: history.Point{Step: p.GetStep(), Time: time, Value: p.GetValue()}})
	}
	for _, p := range req.GetParams() {
		b.Params = append(b.Params, history.Text{Key: p.GetKey(), Value: p.GetValue()})
	}
	for _, t := range req.GetTags() {
		b.Tags = append(b.Tags, history.Text{Key: t.GetKey(), Value: t.GetValue()})
	}
	return b, nil
}

// ListMetricHistory implements telemetryv1.MetricServiceServer. A page may be shorter than it was asked for.
func (m metricServer) ListMetricHistory(ctx context.Context, req *telemetryv1.ListMetricHistoryRequest) (*telemetryv1.ListMetricHistoryResponse, error) {
	run, err := m.s.runOf(ctx, rpc.From(ctx))
	if err != nil {
		return nil, err
	}
	size, err := resource.PageSize(req.GetPageSize(), historyPage, historyPageMax)
	if err != nil {
		return nil, err
	}
	size = min(size, historyPageBytes/(40+len(req.GetKey())))
	r, err := rangeOf(req)
	if err != nil {
		return nil, err
	}
	key, err := m.s.activity.Key(ctx)
	if err != nil {
		return nil, err
	}
	query := fmt.Sprintf("ListMetricHistory %q %q %+v", run.UID, req.GetKey(), r)
	var after *history.Place
	if req.GetPageToken() != "" {
		cursor, err := key.OpenPage(query, req.GetPageToken())
		if err != nil {
			return nil, err
		}
		if after, err = placeOf(cursor); err != nil {
			return nil, err
		}
	}
	points, next, err := m.s.history.Store(run.WorkspaceUID).History(ctx, run, req.GetKey(), r, after, size)
	if err != nil {
		return nil, err
	}
	res := &telemetryv1.ListMetricHistoryResponse{Metrics: make([]*telemetryv1.Metric, len(points))}
	for i, p := range points {
		res.Metrics[i] = metricOf(history.Metric{Key: req.GetKey(), Point: p})
	}
	if next != nil {
		if res.NextPageToken, err = key.SealPage(query, cursorOf(next)); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// rangeOf reads the bounds of a history.
func rangeOf(req *telemetryv1.ListMetricHistoryRequest) (history.Range, error) {
	r := history.Everything()
	if req.StartStep != nil {
		r.FirstStep = req.GetStartStep()
	}
	if req.EndStep != nil {
		r.LastStep = req.GetEndStep()
	}
	var err error
	if r.FirstTime, err = micros("start_time", req.GetStartTime(), math.MinInt64); err != nil {
		return r, err
	}
	r.LastTime, err = micros("end_time", req.GetEndTime(), math.MaxInt64)
	return r, err
}

func cursorOf(p *history.Place) []byte {
	var b []byte
	for _, n := range []int64{p.Step, p.Time, p.Chunk, p.Index} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

func placeOf(cursor []byte) (*history.Place, error) {
	if len(cursor) != 32 {
		return nil, badPage()
	}
	n := func(i int) int64 { return int64(binary.BigEndian.Uint64(cursor[8*i:])) }
	return &history.Place{Step: n(0), Time: n(1), Chunk: n(2), Index: n(3)}, nil
}

// GetRunData implements telemetryv1.MetricServiceServer.
func (m metricServer) GetRunData(ctx context.Context, _ *telemetryv1.GetRunDataRequest) (*telemetryv1.RunData, error) {
	run, err := m.s.runOf(ctx, rpc.From(ctx))
	if err != nil {
		return nil, err
	}
	data, err := m.s.history.Store(run.WorkspaceUID).Data(ctx, run)
	if err != nil {
		return nil, err
	}
	return runDataOf(data), nil
}

// WatchMetrics implements telemetryv1.MetricServiceServer.
func (m metricServer) WatchMetrics(_ *telemetryv1.WatchMetricsRequest, stream grpc.ServerStreamingServer[telemetryv1.WatchMetricsResponse]) error {
	ctx := stream.Context()
	run, err := m.s.runOf(ctx, rpc.From(ctx))
	if err != nil {
		return err
	}
	w, err := m.s.history.Store(run.WorkspaceUID).Watch(ctx, run)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		metrics, err := w.Next(ctx, m.s.stop)
		if err != nil {
			return err
		}
		res := &telemetryv1.WatchMetricsResponse{Metrics: make([]*telemetryv1.Metric, len(metrics))}
		for i, p := range metrics {
			res.Metrics[i] = metricOf(p)
		}
		if err := stream.Send(res); err != nil {
			return err
		}
	}
}
