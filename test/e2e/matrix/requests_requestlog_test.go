package matrix

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
)

// scored is a batch with one request to the place's endpoint, under the next number of a source of the test's.
func (f *fixture) scored(t *testing.T, p *place) *telemetryv1.IngestRequestsRequest {
	t.Helper()
	e, err := f.endpoints().GetEndpoint(t.Context(), &inferencev1.GetEndpointRequest{Name: f.endpoint(t, p)})
	must(t, err)
	return &telemetryv1.IngestRequestsRequest{Source: "inference/matrix/" + e.GetUid(), Requests: []*telemetryv1.SequencedRequest{{
		Seq: f.seq.Add(1), Request: &telemetryv1.ScoringRequest{WorkspaceUid: p.wsUID, EndpointUid: e.GetUid(), StatusCode: 200, Time: timestamppb.New(time.Now())},
	}}}
}

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
		telemetryv1.RequestLogService_IngestRequests_FullMethodName: forPeers(func(t *testing.T, f *fixture, _ string) proto.Message {
			return f.scored(t, f.ours)
		}),
		telemetryv1.RequestLogService_ListRequests_FullMethodName: making(func(t *testing.T, f *fixture, p *place) proto.Message {
			return &telemetryv1.ListRequestsRequest{Endpoint: f.endpoint(t, p)}
		}),
		telemetryv1.RequestLogService_WatchRequests_FullMethodName: {build: func(t *testing.T, f *fixture, p *place) request {
			req := one(&telemetryv1.WatchRequestsRequest{Endpoint: f.endpoint(t, p)})
			log := telemetryv1.NewRequestLogServiceClient(f.service(t, "inference", nothing).conn(t, "telemetry"))
			batch := f.scored(t, p)
			batch.Source += "/watched"
			req.stir = func(ctx context.Context) { // one more request, which whoever watches is told of
				batch.Requests[0].Seq = f.seq.Add(1)
				_, _ = log.IngestRequests(ctx, batch)
			}
			return req
		}},
	})
}
