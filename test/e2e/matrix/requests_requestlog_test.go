package matrix

import (
	"testing"

	"google.golang.org/protobuf/proto"

	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

func init() { //nolint:gochecknoinits // the registry of requests is filled from several files
	register(map[string]spec{
		telemetryv1.MetricService_LogBatch_FullMethodName: about(func(f *fixture, p *place) proto.Message {
			return &telemetryv1.LogBatchRequest{Run: p.run.name, BatchId: f.id("batch"), Metrics: []*telemetryv1.Metric{{Key: "accuracy", Value: 0.5, Step: f.seq.Add(1)}}}
		}),
		telemetryv1.MetricService_DeleteRunTag_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			key := f.id("tag")
			_, err := telemetryv1.NewMetricServiceClient(f.admin).LogBatch(t.Context(), &telemetryv1.LogBatchRequest{Run: p.run.name, Tags: []*telemetryv1.Tag{{Key: key, Value: "x"}}})
			must(t, err)
			return &telemetryv1.DeleteRunTagRequest{Run: p.run.name, Key: key}
		}),
		telemetryv1.MetricService_BatchGetRunData_FullMethodName: about(func(_ *fixture, p *place) proto.Message {
			return &telemetryv1.BatchGetRunDataRequest{Parent: p.ws, RunUids: []string{p.run.uid}}
		}),
	})
}
