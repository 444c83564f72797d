package telemetry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const writeMetrics = "telemetry/metrics/write"

func point(key string, step int64, value float64) *telemetryv1.Metric {
	return &telemetryv1.Metric{Key: key, Value: value, Step: step, Time: timestamppb.New(time.UnixMicro(1_000_000 + step))}
}

// send logs batches on one stream and waits for each answer.
func (l *lab) send(user, run string, batches ...*telemetryv1.LogRunDataRequest) error {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.as(user), 20*time.Second)
	defer cancel()
	stream, err := l.metrics().LogRunData(ctx)
	must(l.t, err)
	for i, b := range batches {
		b = proto.CloneOf(b)
		if i == 0 {
			b.Run = run
		}
		if err := stream.Send(b); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if answer.GetBatchId() != b.GetBatchId() {
			return fmt.Errorf("the answer is for %q, want %q", answer.GetBatchId(), b.GetBatchId())
		}
	}
	must(l.t, stream.CloseSend())
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream ended with %w", err)
	}
	return nil
}

func TestLogAndRead(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	l.assign("rita", ws1, authz.Reader)
	must(t, l.send("ann", run1,
		&telemetryv1.LogRunDataRequest{BatchId: "b1", Metrics: []*telemetryv1.Metric{point("loss", 1, 0.5), point("loss", 2, math.NaN()), point("acc", 1, math.Inf(1))}},
		&telemetryv1.LogRunDataRequest{BatchId: "b2", Params: []*telemetryv1.Param{{Key: "lr", Value: "0.1"}}, Tags: []*telemetryv1.Tag{{Key: "note", Value: "a"}}},
		&telemetryv1.LogRunDataRequest{BatchId: "b1", Metrics: []*telemetryv1.Metric{point("loss", 1, 0.5), point("loss", 2, math.NaN()), point("acc", 1, math.Inf(1))}},
		&telemetryv1.LogRunDataRequest{BatchId: "b3", Metrics: []*telemetryv1.Metric{{Key: "loss", Step: 3, Value: 0.25}}}, // without a time
	))
	now := timestamppb.New(time.UnixMicro(l.clock.Load()))
	res, err := l.metrics().ListMetricHistory(l.as("rita"), &telemetryv1.ListMetricHistoryRequest{Run: run1, Key: "loss"})
	must(t, err)
	wanted := &telemetryv1.ListMetricHistoryResponse{Metrics: []*telemetryv1.Metric{point("loss", 1, 0.5), point("loss", 2, math.NaN()), {Key: "loss", Step: 3, Value: 0.25, Time: now}}}
	if !proto.Equal(res, wanted) {
		t.Errorf("got %v, want %v", res, wanted)
	}
	data, err := l.metrics().GetRunData(l.as("rita"), &telemetryv1.GetRunDataRequest{Run: run1})
	must(t, err)
	wantedData := &telemetryv1.RunData{
		Latest: []*telemetryv1.Metric{point("acc", 1, math.Inf(1)), {Key: "loss", Step: 3, Value: 0.25, Time: now}},
		Params: []*telemetryv1.Param{{Key: "lr", Value: "0.1"}}, Tags: []*telemetryv1.Tag{{Key: "note", Value: "a"}},
	}
	if !proto.Equal(data, wantedData) {
		t.Errorf("got %v, want %v", data, wantedData)
	}
	for _, run := range []string{run2, run3} { // the same id in another workspace is another run
		l.assign("rita", ws2, authz.Reader)
		data, err := l.metrics().GetRunData(l.as("rita"), &telemetryv1.GetRunDataRequest{Run: run})
		if err != nil || proto.Size(data) > 0 {
			t.Errorf("%s: %v, %v", run, data, err)
		}
	}
	if res, err := l.metrics().ListMetricHistory(l.as("rita"), &telemetryv1.ListMetricHistoryRequest{Run: run1, Key: "none"}); err != nil || len(res.GetMetrics()) > 0 {
		t.Errorf("a metric that is not there: %v, %v", res, err)
	}
}

// TestWhoMayLog: a run writes its own metrics and nothing else (H5).
func TestWhoMayLog(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	l.assign("rita", ws1, authz.Reader)
	l.assign("cora", ws1, authz.Contributor)
	l.assign("otto", ws2, authz.Owner)
	l.token("run-1", "ann", run1, ws1, writeMetrics+" runs/r1")
	l.token("run-2", "ann", run2, ws1, writeMetrics+" runs/R2")
	l.token("run-of-other", "otto", run3, ws2, writeMetrics+" runs/r1")
	l.token("run-without", "ann", run1, ws1, "compute/runs/execute runs/r1")
	batch := &telemetryv1.LogRunDataRequest{BatchId: "b", Metrics: []*telemetryv1.Metric{point("loss", 1, 1)}}
	cases := []struct {
		who    string
		code   codes.Code
		reason faultv1.Reason
	}{
		{"run-1", codes.OK, 0},
		{"ann", codes.OK, 0},
		{"run-2", codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND},
		{"run-of-other", codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND},
		{"run-without", codes.PermissionDenied, faultv1.Reason_AUTHZ_OUTSIDE_RUN},
		{"rita", codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING},
		{"otto", codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND},
		{"stranger", codes.Unauthenticated, faultv1.Reason_TOKEN_INVALID},
	}
	for _, c := range cases {
		t.Run(c.who, func(t *testing.T) {
			err := l.send(c.who, run1, batch)
			if c.code == codes.OK {
				must(t, err)
				return
			}
			want(t, err, c.code, c.reason)
		})
	}
	if _, err := l.metrics().GetRunData(l.as("run-1"), &telemetryv1.GetRunDataRequest{Run: run1}); err == nil {
		t.Error("a run token that may only write has read")
	}
	// A later message names no other run.
	err := l.send("ann", run1, batch, &telemetryv1.LogRunDataRequest{Run: run2, BatchId: "c", Metrics: batch.GetMetrics()})
	want(t, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
	// A right that is taken away in the middle ends the stream before the next batch is stored.
	ctx, cancel := context.WithTimeout(l.as("ann"), 20*time.Second)
	defer cancel()
	stream, err := l.metrics().LogRunData(ctx)
	must(t, err)
	must(t, stream.Send(&telemetryv1.LogRunDataRequest{Run: run2, BatchId: "before", Metrics: batch.GetMetrics()}))
	_, err = stream.Recv()
	must(t, err)
	l.unassign("ann", ws1, authz.Owner)
	must(t, stream.Send(&telemetryv1.LogRunDataRequest{BatchId: "after", Metrics: []*telemetryv1.Metric{point("after", 1, 1)}}))
	if _, err = stream.Recv(); fault.Code(fault.FromStatus(err)) != codes.PermissionDenied && fault.Code(fault.FromStatus(err)) != codes.NotFound {
		t.Errorf("got %v", err)
	}
	data, err := l.metrics().GetRunData(l.as("rita"), &telemetryv1.GetRunDataRequest{Run: run2})
	must(t, err)
	if len(data.GetLatest()) != 1 || data.GetLatest()[0].GetKey() != "loss" {
		t.Errorf("got %v", data)
	}
}

func TestRefusedBatches(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	metrics := func(n int) (ms []*telemetryv1.Metric) {
		for range n {
			ms = append(ms, point("loss", 1, 1))
		}
		return ms
	}
	must(t, l.send("ann", run1, &telemetryv1.LogRunDataRequest{BatchId: "first", Params: []*telemetryv1.Param{{Key: "lr", Value: "1"}}, Metrics: metrics(999)}))
	cases := []struct {
		name   string
		batch  *telemetryv1.LogRunDataRequest
		code   codes.Code
		reason faultv1.Reason
	}{
		{"1001 metrics", &telemetryv1.LogRunDataRequest{Metrics: metrics(1001)}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
		{"1001 items", &telemetryv1.LogRunDataRequest{Metrics: metrics(1000), Tags: []*telemetryv1.Tag{{Key: "a"}}}, codes.InvalidArgument, faultv1.Reason_METRIC_INVALID},
		{"another value", &telemetryv1.LogRunDataRequest{Params: []*telemetryv1.Param{{Key: "lr", Value: "2"}}}, codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED},
		{"another batch of that id", &telemetryv1.LogRunDataRequest{BatchId: "first", Metrics: metrics(1)}, codes.InvalidArgument, faultv1.Reason_REQUEST_ID_REUSED},
		{"a bad key", &telemetryv1.LogRunDataRequest{Metrics: []*telemetryv1.Metric{point("../x", 1, 1)}}, codes.InvalidArgument, faultv1.Reason_METRIC_INVALID},
		{"a time that is none", &telemetryv1.LogRunDataRequest{Metrics: []*telemetryv1.Metric{{Key: "x", Time: &timestamppb.Timestamp{Seconds: 1 << 60}}}}, codes.InvalidArgument, faultv1.Reason_METRIC_INVALID},
		{"a long value", &telemetryv1.LogRunDataRequest{Tags: []*telemetryv1.Tag{{Key: "x", Value: strings.Repeat("x", 8001)}}}, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			id := c.batch.GetBatchId()
			if id == "" {
				id = c.name
				c.batch.BatchId = id
			}
			err := l.send("ann", run1, &telemetryv1.LogRunDataRequest{BatchId: "ok " + c.name, Tags: []*telemetryv1.Tag{{Key: "seen", Value: c.name}}}, c.batch)
			want(t, err, c.code, c.reason)
			if got := meta(err)["batch_id"]; c.reason != faultv1.Reason_REQUEST_INVALID && c.name != "a time that is none" && got != id {
				t.Errorf("the error is about batch %q, want %q", got, id)
			}
			data, err := l.metrics().GetRunData(l.as("ann"), &telemetryv1.GetRunDataRequest{Run: run1})
			must(t, err)
			if len(data.GetTags()) != 1 || data.GetTags()[0].GetValue() != c.name || len(data.GetLatest()) != 1 {
				t.Errorf("what came before is not stored, or what was refused is: %v", data)
			}
		})
	}
	// A message that only names the run has no answer.
	stream, err := l.metrics().LogRunData(l.as("ann"))
	must(t, err)
	must(t, stream.Send(&telemetryv1.LogRunDataRequest{Run: run1}))
	must(t, stream.CloseSend())
	if answer, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, %v", answer, err)
	}
}

func TestHistoryOverTheWire(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	var batches []*telemetryv1.LogRunDataRequest
	for b := range 5 {
		var ms []*telemetryv1.Metric
		for i := range 1000 {
			ms = append(ms, point("loss", int64(b*1000+i), float64(i)))
		}
		batches = append(batches, &telemetryv1.LogRunDataRequest{BatchId: fmt.Sprint(b), Metrics: ms})
	}
	must(t, l.send("ann", run1, batches...))
	step := func(n int64) *int64 { return &n }
	time := func(n int64) *timestamppb.Timestamp { return point("", n, 0).GetTime() }
	cases := []struct {
		name     string
		req      *telemetryv1.ListMetricHistoryRequest
		from, to int64 // inclusive
	}{
		{"all", &telemetryv1.ListMetricHistoryRequest{}, 0, 4999},
		{"in one page", &telemetryv1.ListMetricHistoryRequest{PageSize: 50_000}, 0, 4999},
		{"more than the most", &telemetryv1.ListMetricHistoryRequest{PageSize: math.MaxInt32}, 0, 4999},
		{"by step", &telemetryv1.ListMetricHistoryRequest{StartStep: step(1500), EndStep: step(3499), PageSize: 300}, 1500, 3499},
		{"step 0 is a bound", &telemetryv1.ListMetricHistoryRequest{EndStep: step(0)}, 0, 0},
		{"by time", &telemetryv1.ListMetricHistoryRequest{StartTime: time(100), EndTime: time(199), PageSize: 17}, 100, 199},
		{"by both", &telemetryv1.ListMetricHistoryRequest{StartStep: step(150), EndTime: time(160)}, 150, 160},
		{"nothing", &telemetryv1.ListMetricHistoryRequest{StartStep: step(9000)}, 9000, 8999},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			next := c.from
			for token := ""; ; {
				req := proto.CloneOf(c.req)
				req.Run, req.Key, req.PageToken = run1, "loss", token
				res, err := l.metrics().ListMetricHistory(l.as("ann"), req)
				must(t, err)
				for _, m := range res.GetMetrics() {
					if m.GetStep() != next || m.GetValue() != float64(next%1000) || m.GetKey() != "loss" {
						t.Fatalf("got %v, want step %d", m, next)
					}
					next++
				}
				if token = res.GetNextPageToken(); token == "" {
					break
				}
			}
			if next != c.to+1 {
				t.Errorf("ended at %d, want %d", next-1, c.to)
			}
		})
	}
	res, err := l.metrics().ListMetricHistory(l.as("ann"), &telemetryv1.ListMetricHistoryRequest{Run: run1, Key: "loss", PageSize: 10})
	must(t, err)
	for name, req := range map[string]*telemetryv1.ListMetricHistoryRequest{
		"another run":  {Run: run2, Key: "loss"},
		"another key":  {Run: run1, Key: "acc"},
		"another step": {Run: run1, Key: "loss", StartStep: step(1)},
	} {
		req.PageToken = res.GetNextPageToken()
		_, err := l.metrics().ListMetricHistory(l.as("ann"), req)
		t.Run("page token of "+name, func(t *testing.T) {
			want(t, err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
		})
	}
	_, err = l.metrics().ListMetricHistory(l.as("ann"), &telemetryv1.ListMetricHistoryRequest{Run: run1, Key: "loss", PageSize: -1})
	want(t, err, codes.InvalidArgument, faultv1.Reason_REQUEST_INVALID)
}

// TestReconnectingWritersAndWatches breaks connections while batches are on their way; every batch is sent again on the next one, and
// every watch sees every point once (H5).
func TestReconnectingWritersAndWatches(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	const writers, batches, size = 4, 12, 40
	const total = writers * batches * size
	ctx, cancel := context.WithTimeout(l.as("ann"), 60*time.Second)
	defer cancel()
	watch := func() {
		client := l.metrics()
		stream, err := client.WatchMetrics(ctx, &telemetryv1.WatchMetricsRequest{Run: run1})
		if err != nil {
			t.Error(err)
			return
		}
		seen := map[int64]int{}
		for n := 0; n < total; {
			res, err := stream.Recv()
			if err != nil {
				t.Errorf("watch: %v after %d points", err, n)
				return
			}
			for _, m := range res.GetMetrics() {
				seen[m.GetStep()]++
				n++
			}
		}
		if len(seen) != total {
			t.Errorf("a watch saw %d points, want %d", len(seen), total)
		}
	}
	var wg sync.WaitGroup
	wg.Go(watch)
	for w := range writers {
		wg.Go(func() {
			var conn *grpc.ClientConn
			for b := 0; b < batches; {
				conn = l.dial("/service/gateway")
				stream, err := telemetryv1.NewMetricServiceClient(conn).LogRunData(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				first := b
				for ; b < batches; b++ {
					var ms []*telemetryv1.Metric
					for i := range size {
						step := int64((w*batches+b)*size + i)
						ms = append(ms, point(fmt.Sprintf("m%d", step%7), step, 1))
					}
					req := &telemetryv1.LogRunDataRequest{BatchId: fmt.Sprintf("%d-%d", w, b), Metrics: ms}
					if b == first {
						req.Run = run1
					}
					if err := stream.Send(req); err != nil {
						break
					}
					if (b+w)%3 == 0 && b > first { // the connection breaks before the answer; the batch comes again
						_ = conn.Close()
						break
					}
					if _, err := stream.Recv(); err != nil {
						t.Errorf("batch %d: %v", b, err)
						return
					}
				}
				_ = conn.Close()
			}
		})
	}
	wg.Go(watch)
	wg.Wait()
	watch()
}

func TestRunsAreAskedOfCompute(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	get := func(run string) error {
		_, err := l.metrics().GetRunData(l.as("ann"), &telemetryv1.GetRunDataRequest{Run: run})
		return err
	}
	must(t, get(run1))
	must(t, get(run1))
	l.runs.mu.Lock()
	if l.runs.calls != 1 {
		t.Errorf("compute was asked %d times", l.runs.calls)
	}
	l.runs.away = true
	l.runs.mu.Unlock()
	must(t, get(run1))
	want(t, get(run2), codes.Unavailable, faultv1.Reason_SERVICE_UNAVAILABLE)
	l.runs.mu.Lock()
	l.runs.away = false
	l.runs.mu.Unlock()
	must(t, get(run2))
	absent, hidden := get(ws1+"/runs/none"), get(ws2+"/runs/r1")
	want(t, absent, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	if a, h := strings.ReplaceAll(absent.Error(), ws1+"/runs/none", "X"), strings.ReplaceAll(hidden.Error(), ws2+"/runs/r1", "X"); a != h {
		t.Errorf("absent reads %q and hidden %q", a, h)
	}
}

// TestPurgeWorkspace removes metrics and key, and leaves the activity (H1, D1).
func TestPurgeWorkspace(t *testing.T) {
	l := newLab(t)
	l.assign("ann", grp1, authz.Owner)
	batch := &telemetryv1.LogRunDataRequest{BatchId: "b", Metrics: []*telemetryv1.Metric{point("loss", 1, 1)}}
	must(t, l.send("ann", run1, batch))
	must(t, l.send("ann", run3, batch))
	l.take(event(1, run1))
	req := &telemetryv1.PurgeWorkspaceRequest{WorkspaceUid: "ws_1"}
	for _, peer := range []string{"compute", "gateway", "telemetry"} {
		_, err := l.ingest(peer).PurgeWorkspace(t.Context(), req)
		want(t, err, codes.PermissionDenied, faultv1.Reason_PEER_NOT_ALLOWED)
	}
	for range 2 {
		_, err := l.ingest("workspace").PurgeWorkspace(t.Context(), req)
		must(t, err)
	}
	if _, err := l.metrics().GetRunData(l.as("ann"), &telemetryv1.GetRunDataRequest{Run: run1}); err == nil {
		t.Error("a workspace without a key gives data")
	}
	if err := l.send("ann", run1, batch); err == nil {
		t.Error("a workspace that was purged takes data")
	}
	data, err := l.metrics().GetRunData(l.as("ann"), &telemetryv1.GetRunDataRequest{Run: run3})
	if err != nil || len(data.GetLatest()) != 1 {
		t.Errorf("another workspace's data: %v, %v", data, err)
	}
	res, err := l.activity().ListActivity(l.as("ann"), &telemetryv1.ListActivityRequest{Scope: ws1})
	if err != nil || len(res.GetEvents()) != 1 {
		t.Errorf("the activity is gone: %v, %v", res, err)
	}
	var rows int
	must(t, l.db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM run_data WHERE workspace_uid = 'ws_1'").Scan(&rows))
	if rows != 0 {
		t.Errorf("%d runs are left", rows)
	}
	// Each refusal and each purge has its record, durable before the answer.
	purged, denied := 0, 0
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_ = l.outbox.Relay(ctx, func(_ context.Context, events []*audit.Event) (int64, error) {
		for _, ev := range events {
			if ev.GetMethod() == telemetryv1.IngestService_PurgeWorkspace_FullMethodName {
				switch ev.GetResult() {
				case telemetryv1.ActivityEvent_RESULT_SUCCEEDED:
					purged++
				case telemetryv1.ActivityEvent_RESULT_DENIED:
					denied++
				}
			}
		}
		cancel()
		return events[len(events)-1].GetSeq(), nil
	})
	if purged != 2 || denied < 2 {
		t.Errorf("%d purges and %d refusals are recorded", purged, denied)
	}
}
