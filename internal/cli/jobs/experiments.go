package jobs

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	telemetryv1 "github.com/redoubt-ml/redoubt/gen/redoubt/telemetry/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) experiments() *cobra.Command {
	var filter string
	var order []string
	var deleted bool
	limit := 0
	list := &cobra.Command{Use: "list", Short: "The experiments of the workspace", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		req := &computev1.SearchExperimentsRequest{Parent: w, Filter: filter, OrderBy: order, View: computev1.View_VIEW_ACTIVE}
		if deleted {
			req.View = computev1.View_VIEW_ALL
		}
		out := &computev1.SearchExperimentsResponse{}
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*computev1.Experiment, string, error) {
			req.PageSize, req.PageToken = size, token
			r, err := c.Experiments().SearchExperiments(ctx, req)
			return r.GetExperiments(), r.GetNextPageToken(), err
		}, func(e *computev1.Experiment) { out.Experiments = append(out.Experiments, e) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetExperiments()))
		for _, e := range out.GetExperiments() {
			rows = append(rows, []string{show.Last(e.GetName()), e.GetDisplayName(), life(e.GetDeleted()), show.Map(e.GetTags()), show.Ago(a.Now(), e.GetCreateTime())})
		}
		return a.Table([]string{"experiment", "name", "state", "tags", "created"}, rows, out.GetNextPageToken())
	})}
	list.Flags().StringVar(&filter, "filter", "", `only those that fit, as "name LIKE 'churn%' AND tags.team = 'a'"`)
	list.Flags().StringSliceVar(&order, "order-by", nil, `as "creation_time DESC"; can be repeated`)
	list.Flags().BoolVar(&deleted, "deleted", false, "those that are deleted as well")
	list.Flags().IntVar(&limit, "limit", 100, "how many at most; 0 for all")

	get := &cobra.Command{Use: "show ID", Short: "One experiment", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("experiments"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "experiments", args[0])
		if err != nil {
			return err
		}
		return a.experiment(c.Experiments().GetExperiment(ctx, &computev1.GetExperimentRequest{Name: name}))
	})}
	var tags map[string]string
	create := &cobra.Command{Use: "create NAME", Short: "Make an experiment", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		return a.experiment(c.Experiments().CreateExperiment(ctx, &computev1.CreateExperimentRequest{Parent: w, DisplayName: args[0], Tags: tags}))
	})}
	create.Flags().StringToStringVar(&tags, "tag", nil, "a tag, KEY=VALUE; can be repeated")
	remove := &cobra.Command{Use: "delete ID", Short: "Mark an experiment and its runs as deleted; `restore` takes that back", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("experiments"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "experiments", args[0])
		if err != nil {
			return err
		}
		r, err := c.Experiments().DeleteExperiment(ctx, &computev1.DeleteExperimentRequest{Name: name})
		return a.Done(r, err, "deleted %s", name)
	})}
	restore := &cobra.Command{Use: "restore ID", Short: "Take back that an experiment was deleted", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "experiments", args[0])
		if err != nil {
			return err
		}
		return a.experiment(c.Experiments().RestoreExperiment(ctx, &computev1.RestoreExperimentRequest{Name: name}))
	})}
	return app.Noun("experiment", "Named groups of runs", list, get, create, remove, restore)
}

func (a verbs) experiment(e *computev1.Experiment, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(e, err)
	}
	return show.Pairs(a.Out, "experiment", show.Last(e.GetName()), "full name", e.GetName(), "name", e.GetDisplayName(), "state", life(e.GetDeleted()), "tags", show.Map(e.GetTags()),
		"created", show.Clock(e.GetCreateTime()), "by", e.GetCreatedBy())
}

func life(deleted bool) string {
	if deleted {
		return "deleted"
	}
	return "active"
}

func (a verbs) runSearch() *cobra.Command {
	var filter string
	var order, experiments []string
	var deleted bool
	limit := 0
	cmd := &cobra.Command{Use: "search --filter FILTER", Short: "Runs that fit a filter, with what they measured", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		req := &computev1.SearchRunsRequest{Parent: w, Filter: filter, OrderBy: order, View: computev1.View_VIEW_ACTIVE}
		if deleted {
			req.View = computev1.View_VIEW_ALL
		}
		for _, e := range experiments {
			name, err := a.Named(ctx, c, "experiments", e)
			if err != nil {
				return err
			}
			req.Experiments = append(req.Experiments, name)
		}
		out := &computev1.SearchRunsResponse{}
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*computev1.TrackedRun, string, error) {
			req.PageSize, req.PageToken = size, token
			r, err := c.Tracking().SearchRuns(ctx, req)
			return r.GetRuns(), r.GetNextPageToken(), err
		}, func(r *computev1.TrackedRun) { out.Runs = append(out.Runs, r) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetRuns()))
		for _, r := range out.GetRuns() {
			rows = append(rows, []string{
				show.Last(r.GetRun().GetName()), r.GetRun().GetDisplayName(), runState(r.GetRun()), r.GetRun().GetExperiment(), latest(r.GetData()), params(r.GetData()),
				show.Ago(a.Now(), r.GetRun().GetCreateTime()),
			})
		}
		return a.Table([]string{"run", "name", "state", "experiment", "metrics", "parameters", "created"}, rows, out.GetNextPageToken())
	})}
	f := cmd.Flags()
	f.StringVar(&filter, "filter", "", `only those that fit, as "metrics.loss < 0.3 AND params.depth = '4'"`)
	f.StringSliceVar(&order, "order-by", nil, `as "metrics.loss ASC"; can be repeated`)
	f.StringSliceVar(&experiments, "experiment", nil, "only those of this experiment, by its id; can be repeated")
	f.BoolVar(&deleted, "deleted", false, "those that are deleted as well")
	f.IntVar(&limit, "limit", 100, "how many at most; 0 for all")
	a.SuggestFlag(cmd, "experiment", "experiments")
	return cmd
}

// latest are the last values of the metrics.
func latest(d *telemetryv1.RunData) string {
	var out []string
	for _, m := range d.GetLatest() {
		out = append(out, m.GetKey()+"="+strconv.FormatFloat(m.GetValue(), 'g', 6, 64))
	}
	return strings.Join(out, " ")
}

func params(d *telemetryv1.RunData) string {
	var out []string
	for _, p := range d.GetParams() {
		out = append(out, p.GetKey()+"="+p.GetValue())
	}
	return strings.Join(out, " ")
}
