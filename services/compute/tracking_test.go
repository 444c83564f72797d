package compute

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/pkg/authz"
)

const defaultExperiment = ws1 + "/experiments/0"

func (l *lab) experiments() computev1.ExperimentServiceClient {
	return computev1.NewExperimentServiceClient(l.dial("gateway"))
}

func (l *lab) tracking() computev1.TrackingServiceClient {
	return computev1.NewTrackingServiceClient(l.dial("gateway"))
}

func (l *lab) experiment(name string) *computev1.Experiment {
	l.t.Helper()
	e, err := l.experiments().CreateExperiment(l.as("owner"), &computev1.CreateExperimentRequest{Parent: ws1, DisplayName: name, Tags: map[string]string{"team": "a"}})
	must(l.t, err)
	l.advance(time.Millisecond)
	return e
}

func (l *lab) track(id, experiment string) *computev1.Run {
	l.t.Helper()
	r, err := l.tracking().CreateTrackedRun(l.as("owner"), &computev1.CreateTrackedRunRequest{Parent: ws1, RunId: id, Experiment: experiment, DisplayName: "name of " + id, User: "ann"})
	must(l.t, err)
	l.advance(time.Millisecond)
	return r
}

func TestExperiments(t *testing.T) {
	l := newLab(t)
	c := l.experiments()
	d, err := c.GetExperiment(l.as("reader"), &computev1.GetExperimentRequest{Name: defaultExperiment})
	must(t, err)
	if d.GetDisplayName() != "Default" || d.GetUid() != "" || d.GetDeleted() {
		t.Errorf("%v", d)
	}
	e := l.experiment("mine")
	for name, get := range map[string]func() (*computev1.Experiment, error){
		"by name": func() (*computev1.Experiment, error) {
			return c.GetExperiment(l.as("reader"), &computev1.GetExperimentRequest{Name: e.GetName()})
		},
		"by display name": func() (*computev1.Experiment, error) {
			return c.LookupExperiment(l.as("reader"), &computev1.LookupExperimentRequest{Parent: ws1, DisplayName: "mine"})
		},
	} {
		if got, err := get(); err != nil || !proto.Equal(got, e) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, e)
		}
	}
	_, err = c.LookupExperiment(l.as("reader"), &computev1.LookupExperimentRequest{Parent: ws2, DisplayName: "mine"})
	want(t, "in another workspace", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	_, err = c.GetExperiment(l.as("reader"), &computev1.GetExperimentRequest{Name: ws1 + "/experiments/1"})
	want(t, "absent", err, codes.NotFound, faultv1.Reason_RESOURCE_NOT_FOUND)
	_, err = c.CreateExperiment(l.as("reader"), &computev1.CreateExperimentRequest{Parent: ws1, DisplayName: "x"})
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	_, err = c.CreateExperiment(l.as("owner"), &computev1.CreateExperimentRequest{Parent: ws1, DisplayName: "mine"})
	want(t, "the name again", err, codes.AlreadyExists, 0)

	e, err = c.UpdateExperiment(l.as("owner"), &computev1.UpdateExperimentRequest{Name: e.GetName(), DisplayName: "renamed"})
	must(t, err)
	e, err = c.SetExperimentTag(l.as("owner"), &computev1.SetExperimentTagRequest{Name: e.GetName(), Key: "k", Value: "v"})
	must(t, err)
	if e.GetDisplayName() != "renamed" || e.GetTags()["k"] != "v" || e.GetTags()["team"] != "a" || !e.GetUpdateTime().AsTime().After(e.GetCreateTime().AsTime()) {
		t.Errorf("%v", e)
	}
	e, err = c.SetExperimentTag(l.as("owner"), &computev1.SetExperimentTagRequest{Name: e.GetName(), Key: "k", Remove: true})
	must(t, err)
	if _, has := e.GetTags()["k"]; has {
		t.Errorf("%v", e)
	}
	_, err = c.SetExperimentTag(l.as("owner"), &computev1.SetExperimentTagRequest{Name: e.GetName(), Key: "k", Remove: true})
	want(t, "a tag that is not there", err, codes.NotFound, 0)

	_, err = c.DeleteExperiment(l.as("owner"), &computev1.DeleteExperimentRequest{Name: defaultExperiment})
	want(t, "deleting Default", err, codes.FailedPrecondition, 0)
	_, err = c.DeleteExperiment(l.as("owner"), &computev1.DeleteExperimentRequest{Name: e.GetName()})
	must(t, err)
	for name, call := range map[string]func() error{
		"deleting it again": func() error {
			_, err := c.DeleteExperiment(l.as("owner"), &computev1.DeleteExperimentRequest{Name: e.GetName()})
			return err
		},
		"renaming": func() error {
			_, err := c.UpdateExperiment(l.as("owner"), &computev1.UpdateExperimentRequest{Name: e.GetName(), DisplayName: "x"})
			return err
		},
		"a tag": func() error {
			_, err := c.SetExperimentTag(l.as("owner"), &computev1.SetExperimentTagRequest{Name: e.GetName(), Key: "k"})
			return err
		},
		"a tracked run": func() error {
			_, err := l.tracking().CreateTrackedRun(l.as("owner"), &computev1.CreateTrackedRunRequest{Parent: ws1, Experiment: e.GetName()})
			return err
		},
	} {
		want(t, name+", deleted", call(), codes.FailedPrecondition, 0)
	}
	if got, err := c.GetExperiment(l.as("reader"), &computev1.GetExperimentRequest{Name: e.GetName()}); err != nil || !got.GetDeleted() {
		t.Errorf("%v, %v", got, err)
	}
	if e, err = c.RestoreExperiment(l.as("owner"), &computev1.RestoreExperimentRequest{Name: e.GetName()}); err != nil || e.GetDeleted() || e.GetDisplayName() != "renamed" {
		t.Errorf("%v, %v", e, err)
	}
	_, err = c.RestoreExperiment(l.as("owner"), &computev1.RestoreExperimentRequest{Name: e.GetName()})
	want(t, "restoring what is not deleted", err, codes.FailedPrecondition, 0)
}

// A job goes into the experiment that it names, as a tracked run does.
func TestRunsOfOneExperiment(t *testing.T) {
	l := newLab(t)
	target := l.target(computev1.Compute_KIND_LOCAL, 1)
	submit := func(user, experiment string) (*computev1.Run, error) {
		req := l.request(target, "")
		req.Experiment = experiment
		return l.runs().SubmitRun(l.as(user), req)
	}
	first, err := submit("owner", "digits")
	must(t, err)
	e, err := l.experiments().LookupExperiment(l.as("owner"), &computev1.LookupExperimentRequest{Parent: ws1, DisplayName: "digits"})
	must(t, err)
	second, err := submit("owner", "digits")
	must(t, err)
	tracked := l.track("t", e.GetName())
	none, err := submit("owner", "")
	must(t, err)
	for name, r := range map[string]*computev1.Run{"first": first, "second": second, "tracked": tracked} {
		if r.GetExperimentName() != e.GetName() || r.GetExperiment() != "digits" {
			t.Errorf("%s is in %s, %q", name, r.GetExperimentName(), r.GetExperiment())
		}
	}
	if none.GetExperimentName() != defaultExperiment || none.GetExperiment() != "Default" {
		t.Errorf("%v", none)
	}
	_, err = l.experiments().UpdateExperiment(l.as("owner"), &computev1.UpdateExperimentRequest{Name: e.GetName(), DisplayName: "letters"})
	must(t, err)
	if r, err := l.runs().GetRun(l.as("reader"), &computev1.GetRunRequest{Name: first.GetName()}); err != nil || r.GetExperiment() != "letters" {
		t.Errorf("after the experiment's new name: %v, %v", r, err)
	}
	list, err := l.runs().ListRuns(l.as("reader"), &computev1.ListRunsRequest{Parent: ws1})
	must(t, err)
	if n := len(list.GetRuns()); n != 4 {
		t.Errorf("%d runs", n)
	}

	// Who may submit and no more gets into no experiment by its name, and makes none.
	l.seq++
	must(t, l.engine.ApplyAuthorization(&workspacev1.WatchAuthorizationResponse{Seq: l.seq, Roles: []*workspacev1.RoleDefinition{{
		Name: "roleDefinitions/submitter", Actions: []string{"compute/runs/submit", "compute/computes/use", "workspace/snapshots/read"},
	}}}))
	l.assign("submitter", sub1, "roleDefinitions/submitter")
	for _, name := range []string{"new", "letters"} {
		_, err = submit("submitter", name)
		want(t, "into "+name, err, codes.PermissionDenied, faultv1.Reason_AUTHZ_ACTION_MISSING)
	}
	_, err = submit("submitter", "")
	must(t, err)
	_, err = l.experiments().LookupExperiment(l.as("owner"), &computev1.LookupExperimentRequest{Parent: ws1, DisplayName: "new"})
	want(t, "made by nobody", err, codes.NotFound, 0)
}

func TestTrackedRun(t *testing.T) {
	l := newLab(t)
	c := l.tracking()
	start := timestamppb.New(l.now().Add(-time.Hour))
	r, err := c.CreateTrackedRun(l.as("owner"), &computev1.CreateTrackedRunRequest{Parent: ws1, RunId: "Mine_1", DisplayName: "n", User: "ann", StartTime: start})
	must(t, err)
	if r.GetKind() != computev1.Run_KIND_TRACKED || r.GetState() != computev1.Run_STATE_RUNNING || !proto.Equal(r.GetStartTime(), start) || r.GetEndTime() != nil ||
		r.GetDisplayName() != "n" || r.GetUser() != "ann" || r.GetSubmitter() != "usr_owner" || r.GetName() != ws1+"/runs/Mine_1" || r.GetExperimentName() != defaultExperiment {
		t.Errorf("%v", r)
	}
	if r := l.track("", ""); !r.GetStartTime().AsTime().Equal(r.GetCreateTime().AsTime()) {
		t.Errorf("started without a time: %v", r)
	}
	for _, tc := range []struct {
		name string
		req  *computev1.CreateTrackedRunRequest
		code codes.Code
	}{
		{"the id again", &computev1.CreateTrackedRunRequest{RunId: "Mine_1"}, codes.AlreadyExists},
		{"a bad id", &computev1.CreateTrackedRunRequest{RunId: "../x"}, codes.InvalidArgument},
		{"a time before 1970", &computev1.CreateTrackedRunRequest{StartTime: &timestamppb.Timestamp{Seconds: -1}}, codes.InvalidArgument},
		{"an experiment of another workspace", &computev1.CreateTrackedRunRequest{Experiment: ws2 + "/experiments/0"}, codes.InvalidArgument},
		{"an experiment that is not there", &computev1.CreateTrackedRunRequest{Experiment: ws1 + "/experiments/1"}, codes.NotFound},
	} {
		tc.req.Parent = ws1
		_, err := c.CreateTrackedRun(l.as("owner"), tc.req)
		want(t, tc.name, err, tc.code, 0)
	}
	_, err = c.CreateTrackedRun(l.as("reader"), &computev1.CreateTrackedRunRequest{Parent: ws1})
	want(t, "by a reader", err, codes.PermissionDenied, 0)

	// The queue leaves it alone, whatever state the client gives it and however long it is silent.
	update := func(state computev1.Run_State, end *timestamppb.Timestamp) (*computev1.Run, error) {
		return c.UpdateTrackedRun(l.as("owner"), &computev1.UpdateTrackedRunRequest{Name: r.GetName(), State: state, EndTime: end})
	}
	end := timestamppb.New(l.now().Add(-time.Minute))
	for _, tc := range []struct {
		state computev1.Run_State
		end   *timestamppb.Timestamp
		ended bool
	}{
		{computev1.Run_STATE_QUEUED, nil, false}, {computev1.Run_STATE_RUNNING, nil, false}, {computev1.Run_STATE_COMPLETED, end, true}, {computev1.Run_STATE_UNSPECIFIED, end, true},
		{computev1.Run_STATE_RUNNING, nil, false}, {computev1.Run_STATE_FAILED, nil, true}, {computev1.Run_STATE_CANCELED, end, true}, {computev1.Run_STATE_QUEUED, end, false},
	} {
		got, err := update(tc.state, tc.end)
		must(t, err)
		state := tc.state
		if state == 0 {
			state = computev1.Run_STATE_COMPLETED
		}
		if got.GetState() != state || (got.GetEndTime() != nil) != tc.ended || tc.ended && tc.end != nil && !proto.Equal(got.GetEndTime(), tc.end) || !proto.Equal(got.GetStartTime(), start) {
			t.Errorf("%v: %v", tc.state, got)
		}
		l.advance(time.Hour)
		l.step()
		if got := l.stored(r.GetUid()); got.State != state {
			t.Errorf("%v: after a turn of the queue it is %v", tc.state, got.State)
		}
	}
	if len(l.driver.killed)+len(l.driver.cleaned)+len(l.peers.joins)+len(l.peers.revoked) > 0 {
		t.Errorf("the queue has touched it: %v %v %v %v", l.driver.killed, l.driver.cleaned, l.peers.joins, l.peers.revoked)
	}
	for _, state := range []computev1.Run_State{computev1.Run_STATE_STARTING, computev1.Run_STATE_FINALIZING, computev1.Run_STATE_LOST} {
		_, err := update(state, nil)
		want(t, state.String(), err, codes.InvalidArgument, 0)
	}
	_, err = l.runs().CancelRun(l.as("owner"), &computev1.CancelRunRequest{Name: r.GetName()})
	want(t, "cancelled", err, codes.FailedPrecondition, 0)
	got, err := c.UpdateTrackedRun(l.as("owner"), &computev1.UpdateTrackedRunRequest{Name: r.GetName(), DisplayName: proto.String("")})
	if err != nil || got.GetDisplayName() != "" || got.GetUser() != "ann" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestUpdateJob(t *testing.T) {
	l := newLab(t)
	target := l.target(computev1.Compute_KIND_LOCAL, 1)
	req := l.request(target, "job")
	req.DisplayName, req.RequestId = "first", "5b2f"
	r, err := l.runs().SubmitRun(l.as("owner"), req)
	must(t, err)
	for _, req := range []*computev1.UpdateTrackedRunRequest{{State: computev1.Run_STATE_COMPLETED}, {EndTime: timestamppb.New(l.now())}, {State: computev1.Run_STATE_QUEUED, DisplayName: proto.String("x")}} {
		req.Name = r.GetName()
		_, err := l.tracking().UpdateTrackedRun(l.as("owner"), req)
		want(t, req.String(), err, codes.FailedPrecondition, 0)
	}
	_, err = l.tracking().UpdateTrackedRun(l.as("reader"), &computev1.UpdateTrackedRunRequest{Name: r.GetName(), DisplayName: proto.String("x")})
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	got, err := l.tracking().UpdateTrackedRun(l.as("owner"), &computev1.UpdateTrackedRunRequest{Name: r.GetName(), DisplayName: proto.String("second")})
	if err != nil || got.GetDisplayName() != "second" || got.GetState() != computev1.Run_STATE_QUEUED {
		t.Errorf("%v, %v", got, err)
	}
	if again, err := l.runs().SubmitRun(l.as("owner"), req); err != nil || again.GetUid() != r.GetUid() {
		t.Errorf("the request again, after a new name: %v, %v", again, err)
	}
}

func TestDeleteRun(t *testing.T) {
	l := newLab(t)
	c := l.tracking()
	target := l.target(computev1.Compute_KIND_LOCAL, 1)
	job := l.submit(target, "job")
	_, err := c.DeleteRun(l.as("owner"), &computev1.DeleteRunRequest{Name: job.GetName()})
	want(t, "a job that waits", err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
	_, err = l.runs().CancelRun(l.as("owner"), &computev1.CancelRunRequest{Name: job.GetName()})
	must(t, err)
	r := l.track("r", "")
	_, err = c.DeleteRun(l.as("reader"), &computev1.DeleteRunRequest{Name: r.GetName()})
	want(t, "by a reader", err, codes.PermissionDenied, 0)
	for _, name := range []string{job.GetName(), r.GetName()} {
		_, err = c.DeleteRun(l.as("owner"), &computev1.DeleteRunRequest{Name: name})
		must(t, err)
		_, err = c.DeleteRun(l.as("owner"), &computev1.DeleteRunRequest{Name: name})
		want(t, "again", err, codes.FailedPrecondition, 0)
	}
	for show, n := range map[bool]int{false: 0, true: 2} {
		list, err := l.runs().ListRuns(l.as("reader"), &computev1.ListRunsRequest{Parent: ws1, ShowDeleted: show})
		if err != nil || len(list.GetRuns()) != n {
			t.Errorf("show_deleted %t: %v, %v", show, list, err)
		}
	}
	if got, err := l.runs().GetRun(l.as("reader"), &computev1.GetRunRequest{Name: r.GetName()}); err != nil || !got.GetDeleted() {
		t.Errorf("%v, %v", got, err)
	}
	d, err := computev1.NewRunInternalServiceClient(l.dial("telemetry")).DescribeRun(t.Context(), &computev1.DescribeRunRequest{WorkspaceUid: l.uids[ws1], RunId: "r"})
	if err != nil || !d.GetDeleted() || d.GetKind() != computev1.Run_KIND_TRACKED || d.GetState() != computev1.Run_STATE_RUNNING {
		t.Errorf("what telemetry hears: %v, %v", d, err)
	}
	_, err = c.UpdateTrackedRun(l.as("owner"), &computev1.UpdateTrackedRunRequest{Name: r.GetName(), State: computev1.Run_STATE_COMPLETED})
	want(t, "changing what is deleted", err, codes.FailedPrecondition, 0)
	if got, err := c.RestoreRun(l.as("owner"), &computev1.RestoreRunRequest{Name: r.GetName()}); err != nil || got.GetDeleted() {
		t.Errorf("%v, %v", got, err)
	}
	_, err = c.RestoreRun(l.as("owner"), &computev1.RestoreRunRequest{Name: r.GetName()})
	want(t, "restoring what is not deleted", err, codes.FailedPrecondition, 0)

	// Of a deleted experiment.
	e := l.experiment("e")
	in := l.track("in", e.GetName())
	_, err = l.experiments().DeleteExperiment(l.as("owner"), &computev1.DeleteExperimentRequest{Name: e.GetName()})
	must(t, err)
	if got, err := l.runs().GetRun(l.as("reader"), &computev1.GetRunRequest{Name: in.GetName()}); err != nil || !got.GetDeleted() {
		t.Errorf("%v, %v", got, err)
	}
	_, err = l.experiments().RestoreExperiment(l.as("owner"), &computev1.RestoreExperimentRequest{Name: e.GetName()})
	must(t, err)
	if got, err := l.runs().GetRun(l.as("reader"), &computev1.GetRunRequest{Name: in.GetName()}); err != nil || got.GetDeleted() {
		t.Errorf("%v, %v", got, err)
	}
}

// A workspace with tracked runs in it is purged without asking anybody about them.
func TestPurgeTracked(t *testing.T) {
	l := newLab(t)
	l.experiment("e")
	l.track("r", "")
	l.assign("other", ws2, authz.Owner)
	_, err := computev1.NewRunInternalServiceClient(l.dial("workspace")).PurgeWorkspace(t.Context(), &computev1.PurgeWorkspaceRequest{WorkspaceUid: l.uids[ws1]})
	must(t, err)
	for _, table := range []string{"runs", "experiments"} {
		var n int
		must(t, l.db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n))
		if n != 0 {
			t.Errorf("%s: %d rows", table, n)
		}
	}
	if len(l.driver.killed)+len(l.driver.cleaned) > 0 {
		t.Errorf("%v %v", l.driver.killed, l.driver.cleaned)
	}
}
