package compute

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
	"github.com/redoubt-ml/redoubt/services/compute/internal/store"
	"github.com/redoubt-ml/redoubt/services/compute/internal/tracking"
)

// logged is telemetry, as far as compute asks it: what runs have logged, by uid.
type logged struct {
	mu    sync.Mutex
	of    map[string]*telemetryv1.RunData
	asked []int // how many runs each call was about
	most  int   // how many a call looks at
	away  error
}

func newLogged() *logged { return &logged{of: make(map[string]*telemetryv1.RunData), most: 1000} }

func (d *logged) set(uid string, metrics map[string]float64, params, tags map[string]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	data := &telemetryv1.RunData{}
	for k, v := range metrics {
		data.Latest = append(data.Latest, &telemetryv1.Metric{Key: k, Value: v})
	}
	for k, v := range params {
		data.Params = append(data.Params, &telemetryv1.Param{Key: k, Value: v})
	}
	for k, v := range tags {
		data.Tags = append(data.Tags, &telemetryv1.Tag{Key: k, Value: v})
	}
	d.of[uid] = data
}

func (d *logged) calls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.asked)
	d.asked = nil
	return n
}

func (d *logged) BatchGetRunData(_ context.Context, in *telemetryv1.BatchGetRunDataRequest, _ ...grpc.CallOption) (*telemetryv1.BatchGetRunDataResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away != nil {
		return nil, fault.ToStatus(d.away, trust, "").Err()
	}
	d.asked = append(d.asked, len(in.GetRunUids()))
	if in.GetParent() != ws1 && in.GetParent() != ws2 || len(in.GetRunUids()) > 1000 {
		return nil, fault.ToStatus(fault.InvalidArgument("%d runs of %s", len(in.GetRunUids()), in.GetParent()), trust, "").Err()
	}
	n := min(d.most, len(in.GetRunUids()))
	out := &telemetryv1.BatchGetRunDataResponse{Data: make(map[string]*telemetryv1.RunData), RemainingRunUids: in.GetRunUids()[n:]}
	for _, uid := range in.GetRunUids()[:n] {
		if data, ok := d.of[uid]; ok {
			out.Data[uid] = data
		}
	}
	return out, nil
}

// search gives the ids that fit, page by page.
func (l *lab) search(user string, req *computev1.SearchRunsRequest) ([]string, error) {
	l.t.Helper()
	req = proto.CloneOf(req)
	req.Parent = ws1
	var ids []string
	for range 1000 {
		res, err := l.tracking().SearchRuns(l.as(user), req)
		if err != nil {
			return nil, err
		}
		for _, r := range res.GetRuns() {
			ids = append(ids, r.GetRun().GetName()[len(ws1+"/runs/"):])
		}
		if req.PageToken = res.GetNextPageToken(); req.GetPageToken() == "" {
			return ids, nil
		}
		if n := int(req.GetPageSize()); n > 0 && len(res.GetRuns()) != n && l.s.bounds.Answer > 1 {
			l.t.Errorf("a page of %d, and there is more; want %d", len(res.GetRuns()), n)
		}
	}
	return nil, fault.Internal(nil, "pages without end")
}

func TestSearchRuns(t *testing.T) {
	l := newLab(t)
	target := l.target(computev1.Compute_KIND_LOCAL, 1)
	e := l.experiment("e")
	other := l.experiment("other")
	a, b := l.track("a", e.GetName()), l.track("b", "")
	l.track("c", e.GetName())
	gone := l.track("gone", e.GetName())
	job := l.submit(target, "job") // queued: it has not started, and stands where it was made
	_, err := l.tracking().DeleteRun(l.as("owner"), &computev1.DeleteRunRequest{Name: gone.GetName()})
	must(t, err)
	_, err = l.tracking().UpdateTrackedRun(l.as("owner"), &computev1.UpdateTrackedRunRequest{Name: b.GetName(), State: computev1.Run_STATE_COMPLETED, DisplayName: proto.String("Second")})
	must(t, err)
	l.data.set(a.GetUid(), map[string]float64{"loss": 0.5}, map[string]string{"lr": "0.1"}, map[string]string{"mlflow.user": "ann"})
	l.data.set(b.GetUid(), map[string]float64{"loss": math.NaN()}, map[string]string{"lr": "0.2"}, nil)
	l.data.set(job.GetUid(), map[string]float64{"loss": 0.25}, nil, nil)
	between, err := l.tracking().CreateTrackedRun(l.as("owner"), &computev1.CreateTrackedRunRequest{Parent: ws2, StartTime: &timestamppb.Timestamp{Nanos: 5_999_000}})
	must(t, err)
	for filter, n := range map[string]int{"start_time <= 5": 1, "start_time = 5": 1, "start_time < 6": 1, "start_time < 5.5": 1, "start_time < 5": 0, "start_time > 5": 0, "start_time >= 5": 1} {
		res, err := l.tracking().SearchRuns(l.as("reader"), &computev1.SearchRunsRequest{Parent: ws2, Filter: filter})
		if err != nil || len(res.GetRuns()) != n {
			t.Errorf("%s, started at %v: %d, %v", filter, between.GetStartTime(), len(res.GetRuns()), err)
		}
	}
	start := fmt.Sprint(b.GetStartTime().AsTime().UnixMilli())
	for _, tc := range []struct {
		name string
		req  *computev1.SearchRunsRequest
		want string
		asks bool // telemetry before the page is known
	}{
		{"all", &computev1.SearchRunsRequest{}, "job c b a", false},
		{"active", &computev1.SearchRunsRequest{View: computev1.View_VIEW_ACTIVE}, "job c b a", false},
		{"deleted", &computev1.SearchRunsRequest{View: computev1.View_VIEW_DELETED}, "gone", false},
		{"deleted and not", &computev1.SearchRunsRequest{View: computev1.View_VIEW_ALL}, "job gone c b a", false},
		{"one experiment", &computev1.SearchRunsRequest{Experiments: []string{e.GetName()}}, "c a", false},
		{"two experiments", &computev1.SearchRunsRequest{Experiments: []string{other.GetName(), defaultExperiment}}, "job b", false},
		{"an experiment that is not there", &computev1.SearchRunsRequest{Experiments: []string{ws1 + "/experiments/1"}}, "", false},
		{"status", &computev1.SearchRunsRequest{Filter: "attributes.status = 'FINISHED'"}, "b", false},
		{"scheduled", &computev1.SearchRunsRequest{Filter: "status = 'SCHEDULED'"}, "job", false},
		{"name", &computev1.SearchRunsRequest{Filter: "run_name ILIKE 'second'"}, "b", false},
		{"name of a job", &computev1.SearchRunsRequest{Filter: "run_name LIKE 'name of _'"}, "c a", false},
		{"name of what has none", &computev1.SearchRunsRequest{Filter: "run_name = 'job'"}, "job", false},
		{"name as a tag", &computev1.SearchRunsRequest{Filter: "tags.mlflow.runName LIKE 'name of%'", OrderBy: []string{"tags.`mlflow.runName`"}}, "a c", false},
		{"id", &computev1.SearchRunsRequest{Filter: "run_id IN ('a', 'job', 'x')"}, "job a", false},
		{"user", &computev1.SearchRunsRequest{Filter: "user_id = 'ann'"}, "c b a", false},
		{"who submitted", &computev1.SearchRunsRequest{Filter: "user_id = 'usr_owner'"}, "job", false},
		{"started since", &computev1.SearchRunsRequest{Filter: "start_time >= " + start}, "job c b", false},
		{"started after", &computev1.SearchRunsRequest{Filter: "start_time > " + start}, "job c", false},
		{"started before", &computev1.SearchRunsRequest{Filter: "created < " + start}, "a", false},
		{"started then", &computev1.SearchRunsRequest{Filter: "created = " + start}, "b", false},
		{"started not then", &computev1.SearchRunsRequest{Filter: "created != " + start}, "job c a", false},
		{"started a time ago that is none", &computev1.SearchRunsRequest{Filter: "created > -1e300 AND created < 1e300"}, "job c b a", false},
		{"ended", &computev1.SearchRunsRequest{Filter: "end_time > 0"}, "b", false},
		{"metric", &computev1.SearchRunsRequest{Filter: "metrics.loss < 1"}, "job a", true},
		{"metric and attribute", &computev1.SearchRunsRequest{Filter: "metrics.loss < 1 AND status = 'RUNNING'"}, "a", true},
		{"parameter", &computev1.SearchRunsRequest{Filter: "params.lr != '0.1'"}, "b", true},
		{"no parameter", &computev1.SearchRunsRequest{Filter: "params.lr IS NULL"}, "job c", true},
		{"tag", &computev1.SearchRunsRequest{Filter: "tags.`mlflow.user` = 'ann'"}, "a", true},
		{"by metric", &computev1.SearchRunsRequest{OrderBy: []string{"metrics.loss ASC"}}, "job a b c", true},
		{"by metric, down", &computev1.SearchRunsRequest{OrderBy: []string{"metrics.loss DESC"}}, "a job b c", true},
		{"by start", &computev1.SearchRunsRequest{OrderBy: []string{"attributes.start_time ASC"}}, "a b c job", false},
		{"by start, down", &computev1.SearchRunsRequest{OrderBy: []string{"start_time DESC"}}, "job c b a", false},
		{"by id", &computev1.SearchRunsRequest{OrderBy: []string{"run_id"}}, "a b c job", false},
		{"by status", &computev1.SearchRunsRequest{OrderBy: []string{"attributes.status", "start_time"}}, "b a c job", false},
	} {
		for _, size := range []int32{0, 1, 2, 3} {
			tc.req.PageSize = size
			got, err := l.search("owner", tc.req)
			if err != nil || strings.Join(got, " ") != tc.want {
				t.Errorf("%s, %d a page: %v, %v, want %s", tc.name, size, got, err, tc.want)
			}
		}
	}

	res, err := l.tracking().SearchRuns(l.as("owner"), &computev1.SearchRunsRequest{Parent: ws1, Filter: "run_id = 'a'"})
	must(t, err)
	if len(res.GetRuns()) != 1 || res.GetRuns()[0].GetRun().GetExperiment() != "e" || res.GetRuns()[0].GetRun().GetUid() != a.GetUid() || !proto.Equal(res.GetRuns()[0].GetData(), l.data.of[a.GetUid()]) {
		t.Errorf("%v", res)
	}
	for _, tc := range []struct {
		name string
		req  *computev1.SearchRunsRequest
		code codes.Code
	}{
		{"a bad filter", &computev1.SearchRunsRequest{Filter: "metrics.loss <"}, codes.InvalidArgument},
		{"a bad order", &computev1.SearchRunsRequest{OrderBy: []string{"loss"}}, codes.InvalidArgument},
		{"less than nothing", &computev1.SearchRunsRequest{PageSize: -1}, codes.InvalidArgument},
		{"a bad token", &computev1.SearchRunsRequest{PageToken: "x"}, codes.InvalidArgument},
		{"the experiment of another workspace", &computev1.SearchRunsRequest{Experiments: []string{ws2 + "/experiments/0"}}, codes.InvalidArgument},
		{"a long filter", &computev1.SearchRunsRequest{Filter: strings.Repeat("a", 1<<20)}, codes.InvalidArgument},
		{"a longer filter", &computev1.SearchRunsRequest{Filter: strings.Repeat("a", 1<<20+1)}, codes.InvalidArgument},
	} {
		tc.req.Parent = ws1
		_, err := l.tracking().SearchRuns(l.as("owner"), tc.req)
		want(t, tc.name, err, tc.code, 0)
	}

	// Nothing else is found where nothing of what was opened on the way has room, and where a page ends for its size.
	bounds := l.s.bounds
	for _, b := range []tracking.Bounds{{Answer: bounds.Answer}, {Answer: 1, Kept: bounds.Kept}, {}} {
		l.s.bounds = b
		for filter, want := range map[string]string{"": "job a b c", "metrics.loss < 1": "job a"} {
			req := &computev1.SearchRunsRequest{Filter: filter, OrderBy: []string{"metrics.loss"}}
			if got, err := l.search("owner", req); err != nil || strings.Join(got, " ") != want {
				t.Errorf("%+v, %q: %v, %v, want %s", b, filter, got, err, want)
			}
			res, err := l.tracking().SearchRuns(l.as("owner"), &computev1.SearchRunsRequest{Parent: ws1, Filter: filter, OrderBy: req.GetOrderBy()})
			must(t, err)
			if len(res.GetRuns()) == 0 || !proto.Equal(res.GetRuns()[0].GetData(), l.data.of[job.GetUid()]) || b.Answer == 1 && len(res.GetRuns()) != 1 {
				t.Errorf("%+v, %q: %v", b, filter, res)
			}
		}
	}
	l.s.bounds = bounds

	// A token belongs to its query and to its workspace.
	res, err = l.tracking().SearchRuns(l.as("owner"), &computev1.SearchRunsRequest{Parent: ws1, PageSize: 1})
	must(t, err)
	for name, req := range map[string]*computev1.SearchRunsRequest{
		"another filter": {Parent: ws1, Filter: "run_id = 'a'"}, "another order": {Parent: ws1, OrderBy: []string{"run_id"}}, "another view": {Parent: ws1, View: computev1.View_VIEW_ALL}, "another workspace": {Parent: ws2},
	} {
		req.PageToken = res.GetNextPageToken()
		_, err := l.tracking().SearchRuns(l.as("owner"), req)
		want(t, name, err, codes.InvalidArgument, faultv1.Reason_PAGE_TOKEN_INVALID)
	}

	// Telemetry is asked no more than there is need.
	l.data.calls()
	_, err = l.search("owner", &computev1.SearchRunsRequest{Filter: "run_id = 'none' AND metrics.loss < 1"})
	if n := l.data.calls(); err != nil || n != 0 {
		t.Errorf("asked %d times about nothing, %v", n, err)
	}
	_, err = l.tracking().SearchRuns(l.as("owner"), &computev1.SearchRunsRequest{Parent: ws1, OrderBy: []string{"metrics.loss"}})
	if n := l.data.calls(); err != nil || n != 1 {
		t.Errorf("asked %d times, %v", n, err)
	}
	l.data.most = 1
	if got, err := l.search("owner", &computev1.SearchRunsRequest{Filter: "metrics.loss < 1"}); err != nil || len(got) != 2 || l.data.calls() != 4 {
		t.Errorf("in parts: %v, %v", got, err)
	}
	l.data.most = 0
	_, err = l.search("owner", &computev1.SearchRunsRequest{})
	want(t, "telemetry looks at nothing", err, codes.Internal, 0)
	l.data.away = fault.Unavailable("telemetry is away")
	_, err = l.search("owner", &computev1.SearchRunsRequest{})
	want(t, "telemetry is away", err, codes.Unavailable, 0)
}

// Who may not read metrics sees runs without them, and does not search by them.
func TestSearchWithoutData(t *testing.T) {
	l := newLab(t)
	a := l.track("a", "")
	l.data.set(a.GetUid(), map[string]float64{"loss": 0.5}, nil, nil)
	l.seq++
	must(t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq, Roles: []*workspacev1.RoleDefinition{{
		Name: "roleDefinitions/lister", Actions: []string{"compute/runs/read"},
	}}}))
	l.assign("lister", sub1, "roleDefinitions/lister")
	res, err := l.tracking().SearchRuns(l.as("lister"), &computev1.SearchRunsRequest{Parent: ws1, Filter: "status = 'RUNNING' AND tags.mlflow.runName = 'name of a'"})
	must(t, err)
	if len(res.GetRuns()) != 1 || res.GetRuns()[0].GetData() != nil || l.data.calls() != 0 {
		t.Errorf("%v", res)
	}
	for _, req := range []*computev1.SearchRunsRequest{{Filter: "metrics.loss > 0"}, {Filter: "params.a IS NULL"}, {OrderBy: []string{"tags.a"}}} {
		_, err := l.search("lister", req)
		want(t, req.String(), err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	}
	_, err = l.search("lister", &computev1.SearchRunsRequest{Experiments: []string{defaultExperiment}})
	want(t, "an experiment", err, codes.NotFound, 0)
}

// made is a run as the test knows it.
type made struct {
	id, status string
	start      int64
	loss       float64
	has        bool
}

// Pages of any size, one after the other, are the list that the filter and the order say, also where many runs start at once.
func TestSearchPages(t *testing.T) {
	l := newLab(t)
	r := rand.New(rand.NewPCG(1, 2))
	var all []made
	for i := range 60 {
		m := made{id: fmt.Sprintf("r%d", i), start: 1_000_000 + r.Int64N(4), status: []string{"RUNNING", "FINISHED"}[r.IntN(2)], loss: float64(r.IntN(3)), has: r.IntN(4) > 0}
		run, err := l.tracking().CreateTrackedRun(l.as("owner"), &computev1.CreateTrackedRunRequest{Parent: ws1, RunId: m.id, StartTime: timestamppb.New(time.UnixMilli(m.start))})
		must(t, err)
		if m.status == "FINISHED" {
			_, err := l.tracking().UpdateTrackedRun(l.as("owner"), &computev1.UpdateTrackedRunRequest{Name: run.GetName(), State: computev1.Run_STATE_COMPLETED})
			must(t, err)
		}
		if m.has {
			l.data.set(run.GetUid(), map[string]float64{"loss": m.loss}, nil, nil)
		}
		all = append(all, m)
	}
	byStart := func(a, b made) int { return cmp.Or(-cmp.Compare(a.start, b.start), strings.Compare(a.id, b.id)) }
	filters := map[string]func(m made) bool{
		"": func(made) bool { return true }, "status = 'FINISHED'": func(m made) bool { return m.status == "FINISHED" },
		"metrics.loss >= 1 AND status != 'FINISHED'":  func(m made) bool { return m.has && m.loss >= 1 && m.status == "RUNNING" },
		"start_time <= 1000001 AND run_id LIKE 'r1%'": func(m made) bool { return m.start <= 1_000_001 && strings.HasPrefix(m.id, "r1") },
	}
	orders := map[string]func(a, b made) int{
		"": byStart, "start_time DESC": byStart,
		"start_time": func(a, b made) int { return cmp.Or(cmp.Compare(a.start, b.start), strings.Compare(a.id, b.id)) },
		"metrics.loss DESC": func(a, b made) int {
			if a.has != b.has {
				return map[bool]int{true: -1, false: 1}[a.has]
			}
			if a.has && a.loss != b.loss {
				return -cmp.Compare(a.loss, b.loss)
			}
			return byStart(a, b)
		},
		"status": func(a, b made) int { return cmp.Or(strings.Compare(a.status, b.status), byStart(a, b)) },
	}
	for filter, fits := range filters {
		for order, compare := range orders {
			var list []made
			for _, m := range all {
				if fits(m) {
					list = append(list, m)
				}
			}
			slices.SortFunc(list, compare)
			var ids []string
			for _, m := range list {
				ids = append(ids, m.id)
			}
			for _, size := range []int32{1, 7, 60, 1000} {
				req := &computev1.SearchRunsRequest{Filter: filter, PageSize: size}
				if order != "" {
					req.OrderBy = []string{order}
				}
				got, err := l.search("owner", req)
				if err != nil || !slices.Equal(got, ids) {
					t.Errorf("%q by %q, %d a page: %v, %v\nwant %v", filter, order, size, got, err, ids)
				}
			}
		}
	}

	// A run that comes in between moves nothing that was not seen yet.
	for _, order := range []string{"start_time DESC", "metrics.loss DESC"} {
		req := &computev1.SearchRunsRequest{Parent: ws1, OrderBy: []string{order}, PageSize: 30}
		first, err := l.tracking().SearchRuns(l.as("owner"), req)
		must(t, err)
		late := l.track("late-"+strings.Fields(order)[0][:4], "")
		l.data.set(late.GetUid(), map[string]float64{"loss": 99}, nil, nil)
		req.PageToken = first.GetNextPageToken()
		second, err := l.tracking().SearchRuns(l.as("owner"), req)
		must(t, err)
		last := first.GetRuns()[29].GetRun().GetName()
		if second.GetRuns()[0].GetRun().GetName() == last || len(second.GetRuns()) < 30 {
			t.Errorf("by %s: the second page has %d runs and begins with %s; the first ended with %s", order, len(second.GetRuns()), second.GetRuns()[0].GetRun().GetName(), last)
		}
	}
}

func TestSearchExperiments(t *testing.T) {
	l := newLab(t)
	a, b, gone := l.experiment("alpha"), l.experiment("Beta"), l.experiment("gone")
	_, err := l.experiments().DeleteExperiment(l.as("owner"), &computev1.DeleteExperimentRequest{Name: gone.GetName()})
	must(t, err)
	_, err = l.experiments().SetExperimentTag(l.as("owner"), &computev1.SetExperimentTagRequest{Name: b.GetName(), Key: "team", Value: "b"})
	must(t, err)
	search := func(req *computev1.SearchExperimentsRequest) string {
		t.Helper()
		req.Parent = ws1
		var names []string
		for {
			res, err := l.experiments().SearchExperiments(l.as("reader"), req)
			must(t, err)
			for _, e := range res.GetExperiments() {
				names = append(names, e.GetDisplayName())
			}
			if req.PageToken = res.GetNextPageToken(); req.GetPageToken() == "" {
				return strings.Join(names, " ")
			}
		}
	}
	since := fmt.Sprint(b.GetCreateTime().AsTime().UnixMilli())
	for _, tc := range []struct {
		name string
		req  *computev1.SearchExperimentsRequest
		want string
	}{
		{"all", &computev1.SearchExperimentsRequest{}, "Beta alpha Default"},
		{"deleted", &computev1.SearchExperimentsRequest{View: computev1.View_VIEW_DELETED}, "gone"},
		{"deleted and not", &computev1.SearchExperimentsRequest{View: computev1.View_VIEW_ALL}, "gone Beta alpha Default"},
		{"name", &computev1.SearchExperimentsRequest{Filter: "name ILIKE '%a' AND name != 'alpha'"}, "Beta"},
		{"tag", &computev1.SearchExperimentsRequest{Filter: "tags.team = 'a'"}, "alpha"},
		{"created since", &computev1.SearchExperimentsRequest{Filter: "creation_time >= " + since}, "Beta"},
		{"by name", &computev1.SearchExperimentsRequest{OrderBy: []string{"name"}}, "Beta Default alpha"},
		{"by time", &computev1.SearchExperimentsRequest{OrderBy: []string{"last_update_time ASC"}}, "alpha Beta Default"},
		{"one", &computev1.SearchExperimentsRequest{Filter: "experiment_id = '" + a.GetName()[len(ws1+"/experiments/"):] + "'"}, "alpha"},
	} {
		for _, size := range []int32{0, 1, 2} {
			tc.req.PageSize = size
			if got := search(tc.req); got != tc.want {
				t.Errorf("%s, %d a page: %s, want %s", tc.name, size, got, tc.want)
			}
		}
	}
	_, err = l.experiments().SearchExperiments(l.as("reader"), &computev1.SearchExperimentsRequest{Parent: ws1, Filter: "metrics.a = 1"})
	want(t, "a metric of an experiment", err, codes.InvalidArgument, 0)
}

// BenchmarkSearchRuns searches a workspace of 10,000 runs, each with what MLflow's clients usually log.
func BenchmarkSearchRuns(b *testing.B) {
	l := newLab(b)
	const runs = 10_000
	for i := range runs {
		id, uid := fmt.Sprintf("run-%d", i), resource.NewUID("run")
		_, err := l.s.store.InsertRun(b.Context(), &store.Run{
			UID: uid, Workspace: l.uids[ws1], Kind: computev1.Run_KIND_TRACKED, Submitter: "usr_owner", State: computev1.Run_STATE_COMPLETED, Created: l.now(), Started: l.now(), Ended: l.now(),
			Spec: &computev1.SubmitRunRequest{Parent: ws1, RunId: id}, Labels: &computev1.CreateTrackedRunRequest{DisplayName: id, User: "ann"},
		}, "", func(context.Context, *sqldb.Tx) error { return nil })
		must(b, err)
		metrics, params := map[string]float64{}, map[string]string{}
		for k := range 10 {
			metrics[fmt.Sprintf("metric-%d", k)], params[fmt.Sprintf("param-%d", k)] = float64((i*7+k)%1000), fmt.Sprint(i)
		}
		l.data.set(uid, metrics, params, map[string]string{"mlflow.user": "ann"})
		l.advance(time.Millisecond)
	}
	for _, tc := range []struct {
		name string
		req  *computev1.SearchRunsRequest
	}{
		{"newest 100", &computev1.SearchRunsRequest{PageSize: 100}},
		{"by name", &computev1.SearchRunsRequest{PageSize: 100, Filter: "run_name LIKE '%77'"}},
		{"best by metric", &computev1.SearchRunsRequest{PageSize: 100, Filter: "metrics.`metric-3` < 500 AND params.`param-1` LIKE '%7%'", OrderBy: []string{"metrics.`metric-3` DESC"}}},
		{"all", &computev1.SearchRunsRequest{PageSize: 50_000}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			tc.req.Parent = ws1
			for b.Loop() {
				if _, err := l.tracking().SearchRuns(l.as("owner"), tc.req, grpc.MaxCallRecvMsgSize(64<<20)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
