package jobs

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) runs() *cobra.Command {
	return app.Noun("run", "Training jobs", a.runSubmit(), a.runList(), a.runShow(), a.runLogs(), a.runCancel(), a.runMetrics(), a.runOutputs(), a.runDownload(), a.runSearch())
}

func (a verbs) runSubmit() *cobra.Command {
	var compute, snapshot, code, id, display, experiment, memory, scratch string
	var env map[string]string
	var processes int32
	var limit time.Duration
	var wait, follow bool
	cmd := &cobra.Command{
		Use: "submit --compute ID (--code FOLDER | --snapshot ID) -- COMMAND [ARGS]", Short: "Queue a run; what stands after -- is its command",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 0 || len(args) == 0 {
				return app.Usagef("the command of the run stands after --: %s", cmd.UseLine())
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&compute, "compute", "", "where it runs")
	f.StringVar(&snapshot, "snapshot", "", "the snapshot that is its working folder")
	f.StringVar(&code, "code", "", "a folder to upload and run; instead of --snapshot")
	f.StringVar(&id, "id", "", "the run's id; without it one is made")
	f.StringVar(&display, "display-name", "", "the name as people write it")
	f.StringVar(&experiment, "experiment", "", "what it belongs to")
	f.StringToStringVar(&env, "env", nil, "a variable for the command, NAME=VALUE, no secrets; can be repeated")
	f.StringVar(&memory, "memory", "", "how much memory it may take, as 2GiB")
	f.StringVar(&scratch, "scratch", "", "how much it may write, as 1GiB")
	f.Int32Var(&processes, "processes", 0, "how many processes it may have")
	f.DurationVar(&limit, "run-timeout", 0, "how long it may run")
	f.BoolVar(&wait, "wait", false, "wait for its end")
	f.BoolVar(&follow, "follow", false, "show its log as it comes, until its end")
	a.SuggestFlag(cmd, "compute", "computes")
	a.SuggestFlag(cmd, "snapshot", "snapshots")
	cmd.RunE = a.With(func(ctx context.Context, c *client.Client, args []string) error {
		switch {
		case compute == "":
			return app.Usagef("--compute says where it runs; `redoubt compute list` shows what there is")
		case (code == "") == (snapshot == ""):
			return app.Usagef("give the folder to run with --code, or a snapshot with --snapshot")
		}
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		limits := &computev1.RunLimits{Processes: processes}
		if limits.MemoryBytes, err = app.BytesFlag("memory", memory); err != nil {
			return err
		}
		if limits.ScratchBytes, err = app.BytesFlag("scratch", scratch); err != nil {
			return err
		}
		if limit > 0 {
			limits.Timeout = durationpb.New(limit)
		}
		req := &computev1.SubmitRunRequest{
			Parent: w, RunId: id, Command: args, DisplayName: display, Experiment: experiment, Environment: env, Limits: limits, RequestId: uuid.NewString(),
		}
		if req.Compute, err = a.Named(ctx, c, "computes", compute); err != nil {
			return err
		}
		if code != "" {
			s, err := a.Upload(ctx, c, w, code)
			if err != nil {
				return err
			}
			req.Snapshot = s.GetName()
		} else if req.Snapshot, err = a.Named(ctx, c, "snapshots", snapshot); err != nil {
			return err
		}
		r, err := c.Runs().SubmitRun(ctx, req)
		if err != nil {
			return err
		}
		return a.afterSubmit(ctx, c, r, wait, follow)
	})
	return cmd
}

// afterSubmit shows the run as it is, or waits for its end.
func (a verbs) afterSubmit(ctx context.Context, c *client.Client, r *computev1.Run, wait, follow bool) error {
	name := r.GetName()
	if !wait && !follow {
		if a.Structured() {
			return a.Answer(r, nil)
		}
		a.Say("watch it: redoubt run logs -f %s", show.Last(name))
		return a.showRun(r)
	}
	a.Say("submitted %s", show.Last(name))
	if follow && !a.Structured() {
		if _, err := c.FollowLogs(ctx, name, 0, true, a.Out); err != nil {
			return err
		}
	}
	r, err := c.WaitRun(ctx, name, func(r *computev1.Run) {
		if !follow {
			a.Say("%s", runState(r))
		}
	})
	if err != nil {
		return err
	}
	if a.Structured() {
		err = a.Answer(r, nil)
	} else if !follow {
		err = a.showRun(r)
	}
	if err == nil && r.GetState() != computev1.Run_STATE_COMPLETED {
		return &app.Exit{Code: app.ExitRefused, Message: fmt.Sprintf("the run %s is %s: %s", show.Last(name), runState(r), show.Text(r.GetMessage()))}
	}
	return err
}

// runState is the state as people say it.
func runState(r *computev1.Run) string {
	s := show.Enum(r.GetState().String(), "STATE_")
	switch {
	case r.GetState() == computev1.Run_STATE_FAILED && r.GetExitCode() != 0:
		s += " (exit " + strconv.Itoa(int(r.GetExitCode())) + ")"
	case r.GetCancelRequested() && !client.Ended(r):
		s += " (to be cancelled)"
	}
	return s
}

// runTime is how long it has run, or did.
func (a verbs) runTime(r *computev1.Run) string {
	if r.GetStartTime() == nil {
		return ""
	}
	end := a.Now()
	if r.GetEndTime() != nil {
		end = r.GetEndTime().AsTime()
	}
	return show.Duration(end.Sub(r.GetStartTime().AsTime()))
}

func (a verbs) showRun(r *computev1.Run) error {
	return show.Pairs(a.Out, "run", show.Last(r.GetName()), "name", r.GetName(), "uid", r.GetUid(), "state", runState(r), "message", r.GetMessage(), "reason", r.GetReason(),
		"display name", r.GetDisplayName(), "experiment", r.GetExperiment(), "compute", show.Last(r.GetCompute()), "snapshot", show.Last(r.GetSnapshot()),
		"command", strings.Join(r.GetCommand(), " "), "submitter", r.GetSubmitter(), "created", show.Clock(r.GetCreateTime()), "started", show.Clock(r.GetStartTime()),
		"ended", show.Clock(r.GetEndTime()), "took", a.runTime(r), "log", show.Bytes(r.GetLogBytes()))
}

func (a verbs) runList() *cobra.Command {
	limit, state := 0, ""
	cmd := &cobra.Command{Use: "list", Short: "The runs of the workspace, newest first", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		want := computev1.Run_STATE_UNSPECIFIED
		if state != "" {
			n, ok := computev1.Run_State_value["STATE_"+strings.ToUpper(state)]
			if !ok {
				return app.Usagef("there is no state %q of runs; they are queued, starting, running, finalizing, completed, failed, canceled and lost", state)
			}
			want = computev1.Run_State(n)
		}
		out := &computev1.ListRunsResponse{}
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*computev1.Run, string, error) {
			r, err := c.Runs().ListRuns(ctx, &computev1.ListRunsRequest{Parent: w, PageSize: size, PageToken: token, State: want})
			return r.GetRuns(), r.GetNextPageToken(), err
		}, func(r *computev1.Run) { out.Runs = append(out.Runs, r) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, r := range out.GetRuns() {
			rows = append(rows, []string{show.Last(r.GetName()), runState(r), r.GetExperiment(), show.Last(r.GetCompute()), show.Ago(a.Now(), r.GetCreateTime()), a.runTime(r)})
		}
		return a.Table([]string{"run", "state", "experiment", "compute", "created", "took"}, rows, out.GetNextPageToken())
	})}
	cmd.Flags().IntVar(&limit, "limit", 50, "how many at most; 0 for all")
	cmd.Flags().StringVar(&state, "state", "", "only those in this state")
	return cmd
}

// onRun is a command about one run.
func (a verbs) onRun(use, short string, args cobra.PositionalArgs, f func(ctx context.Context, c *client.Client, run string, rest []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: a.SuggestFirst("runs"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		run, err := a.Named(ctx, c, "runs", args[0])
		if err != nil {
			return err
		}
		return f(ctx, c, run, args[1:])
	})}
}

func (a verbs) runShow() *cobra.Command {
	return a.onRun("show ID", "One run", app.Exactly(1), func(ctx context.Context, c *client.Client, run string, _ []string) error {
		r, err := c.Runs().GetRun(ctx, &computev1.GetRunRequest{Name: run})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		return a.showRun(r)
	})
}

func (a verbs) runLogs() *cobra.Command {
	var follow bool
	var offset int64
	cmd := a.onRun("logs ID", "What the command printed, as it printed it", app.Exactly(1), func(ctx context.Context, c *client.Client, run string, _ []string) error {
		if offset < 0 {
			return app.Usagef("--offset is not less than 0")
		}
		_, err := c.FollowLogs(ctx, run, offset, follow, a.Out)
		return err
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the run has ended")
	cmd.Flags().Int64Var(&offset, "offset", 0, "the first byte")
	return cmd
}

func (a verbs) runCancel() *cobra.Command {
	var wait bool
	cmd := a.onRun("cancel ID", "Stop a run", app.Exactly(1), func(ctx context.Context, c *client.Client, run string, _ []string) error {
		r, err := c.Runs().CancelRun(ctx, &computev1.CancelRunRequest{Name: run})
		if err == nil && wait {
			r, err = c.WaitRun(ctx, run, nil)
		}
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		return a.showRun(r)
	})
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for its end")
	return cmd
}

func (a verbs) runMetrics() *cobra.Command {
	var follow bool
	var key string
	limit := 0
	cmd := a.onRun("metrics ID", "What the run measured: the latest of each metric, or the points of one", app.Exactly(1), func(ctx context.Context, c *client.Client, run string, _ []string) error {
		switch {
		case follow:
			return c.FollowMetrics(ctx, run, func(points []*telemetryv1.Metric) error { return a.points(points, key) })
		case key != "":
			out := &telemetryv1.ListMetricHistoryResponse{}
			var err error
			out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*telemetryv1.Metric, string, error) {
				r, err := c.Metrics().ListMetricHistory(ctx, &telemetryv1.ListMetricHistoryRequest{Run: run, Key: key, PageSize: size, PageToken: token})
				return r.GetMetrics(), r.GetNextPageToken(), err
			}, func(m *telemetryv1.Metric) { out.Metrics = append(out.Metrics, m) })
			if err != nil || a.Structured() {
				return a.Answer(out, err)
			}
			return a.metrics(out.GetMetrics(), out.GetNextPageToken())
		}
		r, err := c.Metrics().GetRunData(ctx, &telemetryv1.GetRunDataRequest{Run: run})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		if err := a.metrics(r.GetLatest(), ""); err != nil {
			return err
		}
		var rows [][]string
		for _, p := range r.GetParams() {
			rows = append(rows, []string{"parameter", p.GetKey(), p.GetValue()})
		}
		for _, t := range r.GetTags() {
			rows = append(rows, []string{"tag", t.GetKey(), t.GetValue()})
		}
		if len(rows) == 0 {
			return nil
		}
		_, _ = io.WriteString(a.Out, "\n")
		return show.Table(a.Out, []string{"kind", "key", "value"}, rows)
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "every point, as it comes, until the run has ended")
	cmd.Flags().StringVar(&key, "key", "", "only this metric")
	cmd.Flags().IntVar(&limit, "limit", 1000, "how many points at most; 0 for all")
	return cmd
}

func (a verbs) metrics(list []*telemetryv1.Metric, more string) error {
	rows := make([][]string, 0, len(list))
	for _, m := range list {
		rows = append(rows, []string{m.GetKey(), strconv.FormatInt(m.GetStep(), 10), strconv.FormatFloat(m.GetValue(), 'g', 6, 64), show.Clock(m.GetTime())})
	}
	return a.Table([]string{"metric", "step", "value", "time"}, rows, more)
}

// points writes points as they come.
func (a verbs) points(list []*telemetryv1.Metric, key string) error {
	for _, m := range list {
		if key != "" && m.GetKey() != key {
			continue
		}
		var err error
		if a.Structured() {
			err = a.Line(m)
		} else {
			_, err = fmt.Fprintf(a.Out, "%s  step %d  %s = %s\n", show.Clock(m.GetTime()), m.GetStep(), show.Text(m.GetKey()), strconv.FormatFloat(m.GetValue(), 'g', 6, 64))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a verbs) runOutputs() *cobra.Command {
	return a.onRun("outputs ID", "The files that the run left", app.Exactly(1), func(ctx context.Context, c *client.Client, run string, _ []string) error {
		r, err := c.Runs().ListOutputs(ctx, &computev1.ListOutputsRequest{Name: run})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		var rows [][]string
		for _, o := range r.GetOutputs() {
			rows = append(rows, []string{o.GetPath(), show.Bytes(o.GetSize()), fmt.Sprintf("%.16s", fmt.Sprintf("%x", o.GetDigest())), show.Ago(a.Now(), o.GetCreateTime())})
		}
		return a.Table([]string{"file", "size", "sha-256", "uploaded"}, rows, "")
	})
}

func (a verbs) runDownload() *cobra.Command {
	dir := ""
	cmd := a.onRun("download ID [PATH…]", "Fetch outputs of a run: those that are named, or all", cobra.MinimumNArgs(1), func(ctx context.Context, c *client.Client, run string, paths []string) error {
		to := dir
		if to == "" {
			to = show.Last(run)
		}
		bar := a.Bar(show.Last(run))
		defer bar.End()
		return c.DownloadOutputs(ctx, run, to, paths, a.Receiving(bar, to))
	})
	cmd.Flags().StringVarP(&dir, "dir", "d", "", "the folder to write below; without it one named as the run")
	return cmd
}
