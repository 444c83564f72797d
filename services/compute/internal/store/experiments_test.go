package store

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	faultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/fault/v1"
	"github.com/redoubt-ml/redoubt/pkg/fault"
	"github.com/redoubt-ml/redoubt/pkg/resource"
	"github.com/redoubt-ml/redoubt/pkg/sqldb"
)

func (l *lab) experiment(name string) *Experiment {
	l.t.Helper()
	id, err := NewExperimentID()
	must(l.t, err)
	l.now = l.now.Add(time.Second)
	e := &Experiment{UID: resource.NewUID("exp"), Workspace: l.ws, ID: id, DisplayName: name, Tags: map[string]string{"tag-canary": "value-canary"}, Created: l.now, CreatedBy: "usr_1"}
	must(l.t, l.InsertExperiment(l.t.Context(), e, nothing))
	return e
}

// change changes an experiment.
func (l *lab) change(id string, fn func(e *Experiment)) (*Experiment, error) {
	l.now = l.now.Add(time.Second)
	return l.UpdateExperiment(l.t.Context(), l.ws, id, "usr_2", l.now, func(e *Experiment) error { fn(e); return nil }, nothing)
}

// tracked is a run that nobody carries.
func (l *lab) tracked(id, experiment string, started time.Time) *Run {
	l.t.Helper()
	r := l.spec(id)
	r.Kind, r.Compute, r.Experiment, r.State, r.Started = computev1.Run_KIND_TRACKED, "", experiment, computev1.Run_STATE_RUNNING, started
	r.Spec = &computev1.SubmitRunRequest{Parent: parent, RunId: id}
	r.Labels = &computev1.CreateTrackedRunRequest{DisplayName: "label-canary", User: "user-canary"}
	out, err := l.InsertRun(l.t.Context(), r, "", nothing)
	must(l.t, err)
	return out
}

func (l *lab) all(ws string) ([]*Experiment, error) {
	var out []*Experiment
	return out, l.EachExperiment(l.t.Context(), ws, func(e *Experiment) { out = append(out, e) })
}

func TestExperiments(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		d, err := l.Experiment(ctx, l.ws, DefaultExperiment)
		must(t, err)
		if d.UID != "" || d.DisplayName != DefaultName || !d.Created.IsZero() {
			t.Errorf("Default without a row: %+v", d)
		}
		e := l.experiment("name-canary")
		got, err := l.Experiment(ctx, l.ws, e.ID)
		must(t, err)
		if got.UID != e.UID || got.DisplayName != "name-canary" || got.Tags["tag-canary"] != "value-canary" || got.Version != 1 || !got.Created.Equal(l.now) || !got.Updated.Equal(l.now) || got.CreatedBy != "usr_1" || got.Deleted {
			t.Errorf("%+v", got)
		}
		if got, err = l.ExperimentByName(ctx, l.ws, "name-canary"); err != nil || got.ID != e.ID {
			t.Errorf("by name: %+v, %v", got, err)
		}
		_, err = l.ExperimentByName(ctx, resource.NewUID("ws"), "name-canary")
		want(t, "another workspace's", err, codes.NotFound, 0)
		_, err = l.Experiment(ctx, resource.NewUID("ws"), e.ID)
		want(t, "another workspace's id", err, codes.NotFound, 0)
		var content, mac []byte
		must(t, l.db.Reader().QueryRowContext(ctx, "SELECT content, name_mac FROM experiments").Scan(&content, &mac))
		if strings.Contains(string(content)+string(mac), "canary") {
			t.Error("D2: the experiment is stored in clear")
		}

		for _, name := range []string{"name-canary", DefaultName} {
			err := l.InsertExperiment(ctx, &Experiment{UID: resource.NewUID("exp"), Workspace: l.ws, ID: "1", DisplayName: name, Created: l.now}, nothing)
			want(t, "a second "+name, err, codes.AlreadyExists, 0)
		}
		other := l.experiment("other")
		for _, name := range []string{"name-canary", DefaultName} {
			_, err := l.change(other.ID, func(e *Experiment) { e.DisplayName = name })
			want(t, "renamed to "+name, err, codes.AlreadyExists, 0)
		}
		_, err = l.change(e.ID, func(e *Experiment) { e.Deleted = true })
		must(t, err)
		_, err = l.change(other.ID, func(e *Experiment) { e.DisplayName = "name-canary" })
		want(t, "renamed to what a deleted one has", err, codes.AlreadyExists, 0)
		_, err = l.change(other.ID, func(e *Experiment) { e.Tags = map[string]string{"a": strings.Repeat("a", MaxExperimentBytes)} })
		want(t, "tags without end", err, codes.ResourceExhausted, 0)
		_, err = l.change("1", func(*Experiment) {})
		want(t, "absent", err, codes.NotFound, 0)

		// Default gets its row when something is kept of it, and gives up its name with another one.
		d, err = l.change(DefaultExperiment, func(e *Experiment) { e.Tags = map[string]string{"a": "b"} })
		must(t, err)
		if d.UID == "" || d.CreatedBy != "usr_2" {
			t.Errorf("%+v", d)
		}
		_, err = l.change(DefaultExperiment, func(e *Experiment) { e.DisplayName = "renamed" })
		must(t, err)
		_, err = l.ExperimentByName(ctx, l.ws, DefaultName)
		want(t, "Default by a name that it lost", err, codes.NotFound, 0)
		_, err = l.change(other.ID, func(e *Experiment) { e.DisplayName = DefaultName })
		must(t, err)

		list, err := l.all(l.ws)
		must(t, err)
		ids := map[string]string{}
		for _, e := range list {
			ids[e.ID] = e.DisplayName
		}
		if !maps.Equal(ids, map[string]string{DefaultExperiment: "renamed", e.ID: "name-canary", other.ID: DefaultName}) {
			t.Errorf("%v", ids)
		}
		list, err = l.all(resource.NewUID("ws"))
		if err != nil || len(list) != 1 || list[0].ID != DefaultExperiment {
			t.Errorf("of an empty workspace: %v, %v", list, err)
		}
	})
}

// Rows that somebody has changed in the database do not open.
func TestExperimentIsBound(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		a, b := l.experiment("a"), l.experiment("b")
		l.exec("UPDATE experiments SET id = 'x' WHERE uid = $1", a.UID)
		l.exec("UPDATE experiments SET id = $2 WHERE uid = $1", b.UID, a.ID)
		_, err := l.Experiment(t.Context(), l.ws, a.ID)
		want(t, "another's id", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
		_, err = l.all(l.ws)
		want(t, "in a list", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
	})
}

func TestJoin(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		asked := []bool{}
		may := func(_ *Experiment, makes bool) error { asked = append(asked, makes); return nil }
		submit := func(id, name string, may func(*Experiment, bool) error) (*Run, error) {
			return l.Submit(ctx, l.spec(id), "", &Join{Name: name, May: may}, nothing)
		}
		none, err := submit("none", "", may)
		must(t, err)
		first, err := submit("first", "new", may)
		must(t, err)
		second, err := submit("second", "new", may)
		must(t, err)
		byDefault, err := submit("default", DefaultName, may)
		must(t, err)
		if none.Experiment != DefaultExperiment || byDefault.Experiment != DefaultExperiment || first.Experiment == DefaultExperiment || second.Experiment != first.Experiment {
			t.Errorf("%s %s %s %s", none.Experiment, first.Experiment, second.Experiment, byDefault.Experiment)
		}
		if !slices.Equal(asked, []bool{true, false, false}) {
			t.Errorf("asked to make: %v", asked)
		}
		e, err := l.Experiment(ctx, l.ws, first.Experiment)
		must(t, err)
		if e.DisplayName != "new" || e.CreatedBy != "usr_1" {
			t.Errorf("%+v", e)
		}

		no := fault.PermissionDenied("no")
		_, err = submit("refused", "never", func(*Experiment, bool) error { return no })
		want(t, "may not make", err, codes.PermissionDenied, 0)
		_, err = l.ExperimentByName(ctx, l.ws, "never")
		want(t, "what was refused is not made", err, codes.NotFound, 0)
		_, err = submit("first", "never", may)
		want(t, "a run that is there", err, codes.AlreadyExists, 0)
		_, err = l.ExperimentByName(ctx, l.ws, "never")
		want(t, "what a refused run made", err, codes.NotFound, 0)

		l.to(first, computev1.Run_STATE_COMPLETED)
		l.to(second, computev1.Run_STATE_COMPLETED)
		_, err = l.change(first.Experiment, func(e *Experiment) { e.Deleted = true })
		must(t, err)
		_, err = submit("late", "new", may)
		want(t, "a deleted experiment", err, codes.FailedPrecondition, 0)
		r := l.spec("tracked")
		r.Experiment = "1"
		_, err = l.InsertRun(ctx, r, "", nothing)
		want(t, "an experiment that is not there", err, codes.NotFound, 0)
	})
}

func TestDeletedWithExperiment(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		e := l.experiment("e")
		a, b, beside := l.tracked("a", e.ID, l.now), l.tracked("b", e.ID, l.now), l.tracked("beside", DefaultExperiment, l.now)
		_, err := l.Update(ctx, a.UID, func(ctx context.Context, tx *sqldb.Tx, r *Run) error {
			r.Deleted = DeletedItself
			return l.Mark(ctx, tx, r)
		}, nil)
		must(t, err)
		is := func(name string, want ...Deleted) {
			t.Helper()
			var got []Deleted
			for _, r := range []*Run{a, b, beside} {
				r, err := l.RunByUID(ctx, r.UID)
				must(t, err)
				got = append(got, r.Deleted)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		is("one by itself", DeletedItself, NotDeleted, NotDeleted)
		_, err = l.change(e.ID, func(e *Experiment) { e.Deleted = true })
		must(t, err)
		is("the experiment", DeletedItself, DeletedWithExperiment, NotDeleted)
		for deleted, n := range map[bool]int{false: 1, true: 3} {
			list, _, err := l.ListRuns(ctx, l.ws, 0, deleted, Cursor{}, 10)
			if err != nil || len(list) != n {
				t.Errorf("deleted %t: %d runs, %v", deleted, len(list), err)
			}
			if list, _, err = l.ListRuns(ctx, l.ws, computev1.Run_STATE_RUNNING, deleted, Cursor{}, 10); err != nil || len(list) != n {
				t.Errorf("deleted %t, in a state: %d runs, %v", deleted, len(list), err)
			}
		}
		_, err = l.change(e.ID, func(e *Experiment) { e.Deleted = false })
		must(t, err)
		is("restored", DeletedItself, NotDeleted, NotDeleted)

		// What the platform carries holds its experiment.
		r := l.spec("job")
		r.Experiment = e.ID
		job, err := l.InsertRun(ctx, r, "", nothing)
		must(t, err)
		_, err = l.change(e.ID, func(e *Experiment) { e.Deleted = true })
		want(t, "with a run that waits", err, codes.FailedPrecondition, faultv1.Reason_RESOURCE_IN_USE)
		is("refused", DeletedItself, NotDeleted, NotDeleted)
		l.to(job, computev1.Run_STATE_FAILED)
		_, err = l.change(e.ID, func(e *Experiment) { e.Deleted = true })
		must(t, err)
	})
}

// Nobody carries a tracked run, so nothing that looks after runs sees one.
func TestTrackedIsNotCarried(t *testing.T) {
	run(t, func(t *testing.T, l *lab) {
		ctx := t.Context()
		start := l.now.Add(-time.Hour)
		r := l.tracked("r", DefaultExperiment, start)
		if r.Kind != computev1.Run_KIND_TRACKED || r.DisplayName() != "label-canary" || r.Labels.GetUser() != "user-canary" || !r.Started.Equal(start) || r.State != computev1.Run_STATE_RUNNING {
			t.Errorf("%+v", r)
		}
		var labels []byte
		must(t, l.db.Reader().QueryRowContext(ctx, "SELECT labels FROM runs").Scan(&labels))
		if strings.Contains(string(labels), "canary") {
			t.Error("D2: the labels are stored in clear")
		}
		for _, state := range []computev1.Run_State{computev1.Run_STATE_RUNNING, computev1.Run_STATE_QUEUED, computev1.Run_STATE_FAILED} {
			r = l.to(r, state)
			active, err := l.Active(ctx)
			must(t, err)
			uids, err := l.ActiveUIDs(ctx)
			must(t, err)
			waited, err := l.WaitedFor(ctx)
			must(t, err)
			if len(active)+len(uids)+len(waited) > 0 {
				t.Errorf("%v: %v %v %v", state, active, uids, waited)
			}
		}
		_, err := l.Update(ctx, r.UID, func(ctx context.Context, tx *sqldb.Tx, r *Run) error {
			r.Labels = &computev1.CreateTrackedRunRequest{DisplayName: "again"}
			return l.Relabel(ctx, tx, r)
		}, nil)
		must(t, err)
		if r, err = l.Run(ctx, l.ws, "r"); err != nil || r.DisplayName() != "again" || r.Labels.GetUser() != "" {
			t.Errorf("%+v, %v", r, err)
		}
		l.exec("UPDATE runs SET kind = 1")
		_, err = l.RunByUID(ctx, r.UID)
		want(t, "made a job", err, codes.DataLoss, faultv1.Reason_DATA_DAMAGED)
	})
}
