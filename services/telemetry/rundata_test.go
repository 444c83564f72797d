package telemetry_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/pkg/audit"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

func (l *lab) logBatch(user string, req *telemetryv1.LogBatchRequest) error {
	_, err := l.metrics().LogBatch(l.as(user), req)
	return err
}

func (l *lab) runData(run string) *telemetryv1.RunData {
	l.t.Helper()
	data, err := l.metrics().GetRunData(l.as("ann"), &telemetryv1.GetRunDataRequest{Run: run})
	must(l.t, err)
	return data
}

func param(key, value string) *telemetryv1.Param { return &telemetryv1.Param{Key: key, Value: value} }
func tag(key, value string) *telemetryv1.Tag     { return &telemetryv1.Tag{Key: key, Value: value} }

// TestLogBatch: all or nothing, as MLflow's clients know it (INTERFACES 3a.8).
func TestLogBatch(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	l.assign("rita", ws1, authz.Reader)
	must(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{
		Run: run1, Metrics: []*telemetryv1.Metric{point("loss", 1, 0.5), point("loss", 1, 0.5), point("nan", 1, math.NaN())},
		Params: []*telemetryv1.Param{param("lr", "0.1")}, Tags: []*telemetryv1.Tag{tag("note", "a")},
	}))
	want1 := &telemetryv1.RunData{
		Latest: []*telemetryv1.Metric{point("loss", 1, 0.5), point("nan", 1, math.NaN())},
		Params: []*telemetryv1.Param{param("lr", "0.1")}, Tags: []*telemetryv1.Tag{tag("note", "a")},
	}
	if got := l.runData(run1); !proto.Equal(got, want1) {
		t.Fatalf("got %v, want %v", got, want1)
	}
	long := func(n int) string { return strings.Repeat("v", n) }
	many := func(n int) (ps []*telemetryv1.Param) {
		for i := range n {
			ps = append(ps, param(fmt.Sprint(i), "x"))
		}
		return ps
	}
	cases := []struct {
		name string
		who  string
		req  *telemetryv1.LogBatchRequest // besides a metric that must not be stored when it is refused
		code codes.Code
	}{
		{"the same parameter again", "ann", &telemetryv1.LogBatchRequest{Params: []*telemetryv1.Param{param("lr", "0.1")}}, codes.OK},
		{"a tag is overwritten", "ann", &telemetryv1.LogBatchRequest{Tags: []*telemetryv1.Tag{tag("note", "a")}}, codes.OK},
		{"nothing", "ann", &telemetryv1.LogBatchRequest{}, codes.OK},
		{"another value of a parameter", "ann", &telemetryv1.LogBatchRequest{Params: []*telemetryv1.Param{param("new", "1"), param("lr", "0.2")}}, codes.InvalidArgument},
		{"a parameter twice", "ann", &telemetryv1.LogBatchRequest{Params: []*telemetryv1.Param{param("twice", "1"), param("twice", "1")}}, codes.InvalidArgument},
		{"a tag twice", "ann", &telemetryv1.LogBatchRequest{Tags: []*telemetryv1.Tag{tag("twice", "1"), tag("twice", "2")}}, codes.InvalidArgument},
		{"101 parameters", "ann", &telemetryv1.LogBatchRequest{Params: many(101)}, codes.InvalidArgument},
		{"a parameter of 6,001 bytes", "ann", &telemetryv1.LogBatchRequest{Params: []*telemetryv1.Param{param("p", long(6001))}}, codes.InvalidArgument},
		{"a tag of 8,001 bytes", "ann", &telemetryv1.LogBatchRequest{Tags: []*telemetryv1.Tag{tag("p", long(8001))}}, codes.InvalidArgument},
		{"a name that climbs", "ann", &telemetryv1.LogBatchRequest{Params: []*telemetryv1.Param{param("../p", "1")}}, codes.InvalidArgument},
		{"a name of 251 bytes", "ann", &telemetryv1.LogBatchRequest{Params: []*telemetryv1.Param{param(long(251), "1")}}, codes.InvalidArgument},
		{"a reader", "rita", &telemetryv1.LogBatchRequest{}, codes.PermissionDenied},
		{"a run that is not there", "ann", &telemetryv1.LogBatchRequest{Run: ws1 + "/runs/none"}, codes.NotFound},
		{"a run of another workspace", "ann", &telemetryv1.LogBatchRequest{Run: run3}, codes.NotFound},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			key := fmt.Sprintf("case-%d", i)
			req := proto.CloneOf(c.req)
			if req.Run == "" {
				req.Run = run1
			}
			req.Metrics = []*telemetryv1.Metric{point(key, 1, 1)}
			err := l.logBatch(c.who, req)
			if got := codeOf(err); got != c.code {
				t.Fatalf("got %v, want %v", err, c.code)
			}
			data := l.runData(run1)
			stored := false
			for _, m := range data.GetLatest() {
				stored = stored || m.GetKey() == key
			}
			if stored != (c.code == codes.OK) || len(data.GetParams()) != 1 || len(data.GetTags()) != 1 {
				t.Errorf("stored %v: %v", stored, data)
			}
		})
	}
	// A batch with an id is stored once.
	for range 2 {
		must(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run2, BatchId: "b", Metrics: []*telemetryv1.Metric{point("loss", 1, 1)}}))
	}
	res, err := l.metrics().ListMetricHistory(l.as("ann"), &telemetryv1.ListMetricHistoryRequest{Run: run2, Key: "loss"})
	must(t, err)
	if len(res.GetMetrics()) != 1 {
		t.Errorf("a batch that came twice is there %d times", len(res.GetMetrics()))
	}
	want(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run2, BatchId: "b"}), codes.InvalidArgument, faultv1.Reason_REQUEST_ID_REUSED)
}

// TestLogBatchTogether logs from many callers at once: each batch is stored whole, and of those that disagree about a parameter one wins.
func TestLogBatchTogether(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	client := l.metrics()
	const callers, each = 16, 20
	var won, lost [callers]int
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				_, err := client.LogBatch(l.as("ann"), &telemetryv1.LogBatchRequest{
					Run: run1, Metrics: []*telemetryv1.Metric{point(fmt.Sprintf("m%d", c), int64(i), 1)},
					Params: []*telemetryv1.Param{param(fmt.Sprintf("p%d", i), fmt.Sprint(c))},
				})
				switch codeOf(err) {
				case codes.OK:
					won[c]++
				case codes.InvalidArgument:
					lost[c]++
				default:
					t.Errorf("caller %d: %v", c, err)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for c := range callers {
		total += won[c]
		res, err := client.ListMetricHistory(l.as("ann"), &telemetryv1.ListMetricHistoryRequest{Run: run1, Key: fmt.Sprintf("m%d", c)})
		must(t, err)
		if len(res.GetMetrics()) != won[c] || won[c]+lost[c] != each {
			t.Errorf("caller %d: %d points of %d batches that were answered", c, len(res.GetMetrics()), won[c])
		}
	}
	if total != each || len(l.runData(run1).GetParams()) != each {
		t.Errorf("%d batches were stored, want one for each of %d parameters", total, each)
	}
}

// TestBatchesAreRecorded: the first batch of a caller to a run has a record of its own, further ones share one; what is refused has its own
// again, and what is merely wrong none (G2).
func TestBatchesAreRecorded(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	l.assign("cora", ws1, authz.Owner)
	l.assign("rita", ws1, authz.Reader)
	batch := func(user, run string) error {
		return l.logBatch(user, &telemetryv1.LogBatchRequest{Run: run, Metrics: []*telemetryv1.Metric{point("loss", 1, 1)}})
	}
	for range 20 {
		must(t, batch("ann", run1))
	}
	must(t, batch("ann", run2))
	for range 2 {
		must(t, batch("cora", run1))
		want(t, batch("rita", run1), codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	}
	want(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run1, Params: []*telemetryv1.Param{param("../p", "1")}}), codes.InvalidArgument, faultv1.Reason_METRIC_INVALID)
	type kind struct {
		who, run, result string
		count            int64
	}
	count := func() map[kind]int {
		got := map[kind]int{}
		for _, ev := range l.recorded() {
			if ev.GetMethod() != telemetryv1.MetricService_LogBatch_FullMethodName {
				continue
			}
			got[kind{ev.GetPrincipal(), ev.GetScope(), ev.GetCode(), ev.GetCount()}]++
			if ev.GetCode() == "OK" && len(ev.GetDigest()) != 32 {
				t.Errorf("a record without a digest: %v", ev)
			}
		}
		return got
	}
	check := func(got, wanted map[kind]int) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(wanted) {
			t.Errorf("recorded are %v, want %v", got, wanted)
		}
	}
	// The last flush of a relay writes what was joined, and what was recorded stays to be seen.
	check(count(), map[kind]int{
		{"usr_ann", run1, "OK", 1}: 1, {"usr_ann", run2, "OK", 1}: 1, {"usr_cora", run1, "OK", 1}: 1, {"usr_rita", run1, "PERMISSION_DENIED", 1}: 2,
	})
	check(count(), map[kind]int{
		{"usr_ann", run1, "OK", 1}: 1, {"usr_ann", run1, "OK", 19}: 1, {"usr_ann", run2, "OK", 1}: 1, {"usr_cora", run1, "OK", 1}: 2, {"usr_rita", run1, "PERMISSION_DENIED", 1}: 2,
	})
}

func TestDeleteRunTag(t *testing.T) {
	l := newLab(t)
	l.assign("ann", grp1, authz.Owner)
	l.assign("rita", ws1, authz.Reader)
	for _, run := range []string{run1, run2, run3} {
		must(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run, Params: []*telemetryv1.Param{param("note", "p")}, Tags: []*telemetryv1.Tag{tag("note", "a"), tag("other", "b")}}))
	}
	remove := func(user, run, key string) error {
		_, err := l.metrics().DeleteRunTag(l.as(user), &telemetryv1.DeleteRunTagRequest{Run: run, Key: key})
		return err
	}
	want(t, remove("rita", run1, "note"), codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	want(t, remove("ann", run1, "none"), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	must(t, remove("ann", run1, "note"))
	want(t, remove("ann", run1, "note"), codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	for run, tags := range map[string]int{run1: 1, run2: 2, run3: 2} {
		if data := l.runData(run); len(data.GetTags()) != tags || len(data.GetParams()) != 1 {
			t.Errorf("%s: %v, want %d tags and the parameter", run, data, tags)
		}
	}
	// What it counted for is free again.
	for i := range 50 {
		must(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run1, Tags: []*telemetryv1.Tag{tag("note", strings.Repeat("x", 8000))}}))
		must(t, remove("ann", run1, "note"))
		if i == 0 {
			var texts, bytes int64
			must(t, l.db.Reader().QueryRowContext(t.Context(), "SELECT texts, text_bytes FROM run_data WHERE run_uid = 'run_1'").Scan(&texts, &bytes))
			if texts != 2 || bytes != int64(len("notep")+len("otherb")) {
				t.Errorf("the run counts %d texts of %d bytes", texts, bytes)
			}
		}
	}
	// Each has its record.
	removed := 0
	for _, ev := range l.recorded() {
		if ev.GetMethod() == telemetryv1.MetricService_DeleteRunTag_FullMethodName && ev.GetResult() == telemetryv1.ActivityEvent_RESULT_SUCCEEDED {
			removed++
		}
	}
	if removed != 51 {
		t.Errorf("%d removals are recorded, want 51", removed)
	}
}

// recorded is what the outbox holds: nothing of it is taken away, since the relay is ended before.
func (l *lab) recorded() (all []*audit.Event) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	var last int64
	must(l.t, l.db.Reader().QueryRowContext(ctx, "SELECT seq FROM outbox_head").Scan(&last))
	_ = l.outbox.Relay(ctx, func(_ context.Context, events []*audit.Event) (int64, error) {
		all = append(all, events...)
		seq := events[len(events)-1].GetSeq()
		if seq >= last {
			cancel()
		}
		return seq, nil
	})
	return all
}

func TestBatchGetRunData(t *testing.T) {
	l := newLab(t)
	l.assign("ann", grp1, authz.Owner)
	l.assign("otto", ws2, authz.Owner)
	for _, run := range []string{run1, run2, run3} {
		must(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run, Metrics: []*telemetryv1.Metric{point("loss", 1, 1)}, Params: []*telemetryv1.Param{param("of", run)}, Tags: []*telemetryv1.Tag{tag("a", "b")}}))
	}
	get := func(user string, uids ...string) (*telemetryv1.BatchGetRunDataResponse, error) {
		return l.metrics().BatchGetRunData(l.as(user), &telemetryv1.BatchGetRunDataRequest{Parent: ws1, RunUids: uids})
	}
	res, err := get("ann", "run_1", "run_2", "run_3", "run_none")
	must(t, err)
	if len(res.GetData()) != 2 || len(res.GetRemainingRunUids()) != 0 {
		t.Fatalf("got %v", res)
	}
	for uid, run := range map[string]string{"run_1": run1, "run_2": run2} {
		if !proto.Equal(res.GetData()[uid], l.runData(run)) {
			t.Errorf("%s: %v", uid, res.GetData()[uid])
		}
	}
	_, err = get("otto", "run_1")
	want(t, err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	// What does not fit is named, and comes when it is asked for.
	var tags []*telemetryv1.Tag
	for i := range 90 {
		tags = append(tags, tag(fmt.Sprintf("t%02d", i), strings.Repeat("x", 8000)))
	}
	for _, run := range []string{run1, run2} {
		must(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run, Tags: tags}))
	}
	ask := []string{"run_1", "run_2", "run_1", "run_2"}
	for calls := 0; len(ask) > 0; calls++ {
		res, err := get("ann", ask...)
		must(t, err)
		if len(res.GetData()) == 0 || calls > 3 || proto.Size(res) > 4<<20 {
			t.Fatalf("call %d: %d runs, %d left, %d bytes", calls, len(res.GetData()), len(res.GetRemainingRunUids()), proto.Size(res))
		}
		if calls == 0 && len(res.GetRemainingRunUids()) == 0 {
			t.Error("all came at once: the test does not reach the limit")
		}
		ask = res.GetRemainingRunUids()
	}
}

// A deleted run takes nothing, and shows what it has.
func TestDeletedRun(t *testing.T) {
	l := newLab(t)
	l.assign("ann", ws1, authz.Owner)
	must(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run1, Params: []*telemetryv1.Param{param("lr", "0.1")}, Tags: []*telemetryv1.Tag{tag("note", "a")}}))
	for _, deleted := range []bool{true, false} {
		l.runs.mu.Lock()
		l.runs.deleted = deleted
		l.runs.mu.Unlock()
		code, reason := codes.OK, faultv1.Reason_REASON_UNSPECIFIED
		if deleted {
			code, reason = codes.FailedPrecondition, faultv1.Reason_PRECONDITION_FAILED
		}
		stream, err := l.metrics().LogRunData(l.as("ann"))
		must(t, err)
		_ = stream.Send(&telemetryv1.LogRunDataRequest{Run: run1, BatchId: "1", Metrics: []*telemetryv1.Metric{point("loss", 1, 0.5)}})
		_, err = stream.Recv()
		want(t, err, code, reason)
		_ = stream.CloseSend()
		want(t, l.logBatch("ann", &telemetryv1.LogBatchRequest{Run: run1, Tags: []*telemetryv1.Tag{tag("note", "b")}}), code, reason)
		if data := l.runData(run1); deleted && data.GetTags()[0].GetValue() != "a" {
			t.Errorf("%v", data)
		}
		_, err = l.metrics().DeleteRunTag(l.as("ann"), &telemetryv1.DeleteRunTagRequest{Run: run1, Key: "note"})
		want(t, err, code, reason)
	}
}
