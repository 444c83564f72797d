package jobs

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) snapshots() *cobra.Command {
	create := &cobra.Command{Use: "create FOLDER", Short: "Upload a folder of code; what is there already is not sent", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		s, err := a.Upload(ctx, c, w, args[0])
		if err != nil || a.Structured() {
			return a.Answer(s, err)
		}
		return a.showSnapshot(s)
	})}
	limit := 0
	list := &cobra.Command{Use: "list", Short: "The snapshots of the workspace", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		out := &workspacev1.ListSnapshotsResponse{}
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*workspacev1.Snapshot, string, error) {
			r, err := c.Snapshots().ListSnapshots(ctx, &workspacev1.ListSnapshotsRequest{Parent: w, PageSize: size, PageToken: token})
			return r.GetSnapshots(), r.GetNextPageToken(), err
		}, func(s *workspacev1.Snapshot) { out.Snapshots = append(out.Snapshots, s) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, s := range out.GetSnapshots() {
			rows = append(rows, []string{show.Last(s.GetName()), show.Bytes(s.GetTotalBytes()), show.Ago(a.Now(), s.GetCreateTime()), s.GetCreatedBy()})
		}
		return a.Table([]string{"snapshot", "size", "created", "by"}, rows, out.GetNextPageToken())
	})}
	list.Flags().IntVar(&limit, "limit", 100, "how many at most; 0 for all")
	get := &cobra.Command{Use: "show ID", Short: "One snapshot and its files", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("snapshots"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "snapshots", args[0])
		if err != nil {
			return err
		}
		s, err := c.Snapshots().GetSnapshot(ctx, &workspacev1.GetSnapshotRequest{Name: name})
		if err != nil || a.Structured() {
			return a.Answer(s, err)
		}
		if err := a.showSnapshot(s); err != nil {
			return err
		}
		rows := make([][]string, 0, len(s.GetEntries()))
		for _, e := range s.GetEntries() {
			rows = append(rows, []string{e.GetPath(), show.Bytes(e.GetSize()), fmt.Sprintf("%x", e.GetDigest())[:16]})
		}
		return a.Table([]string{"file", "size", "sha-256"}, rows, "")
	})}
	return app.Noun("snapshot", "Folders of code, kept by content", create, list, get)
}

func (a verbs) showSnapshot(s *workspacev1.Snapshot) error {
	return show.Pairs(a.Out, "name", s.GetName(), "uid", s.GetUid(), "size", show.Bytes(s.GetTotalBytes()), "created", show.Clock(s.GetCreateTime()), "by", s.GetCreatedBy())
}

func (a verbs) computes() *cobra.Command {
	var selfHosted bool
	var maxRuns int32
	create := &cobra.Command{Use: "create ID", Short: "Make a compute target", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		kind := computev1.Compute_KIND_LOCAL
		if selfHosted {
			kind = computev1.Compute_KIND_SELF_HOSTED
		}
		t, err := c.Computes().CreateCompute(ctx, &computev1.CreateComputeRequest{Parent: w, ComputeId: args[0], Kind: kind, MaxRuns: maxRuns})
		if err != nil || a.Structured() {
			return a.Answer(t, err)
		}
		if selfHosted {
			a.Say("runs for it start where somebody types: redoubt compute serve %s", args[0])
		}
		return a.showCompute(t)
	})}
	create.Flags().BoolVar(&selfHosted, "self-hosted", false, "a machine of yours, on which redoubt compute serve runs; without it the installation's own machine")
	create.Flags().Int32Var(&maxRuns, "max-runs", 0, "how many runs it takes at once, 1 to 64")

	list := &cobra.Command{Use: "list", Short: "The compute targets of the workspace", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		out := &computev1.ListComputesResponse{}
		_, err = app.Pages(0, func(token string, size int32) ([]*computev1.Compute, string, error) {
			r, err := c.Computes().ListComputes(ctx, &computev1.ListComputesRequest{Parent: w, PageSize: size, PageToken: token})
			return r.GetComputes(), r.GetNextPageToken(), err
		}, func(t *computev1.Compute) { out.Computes = append(out.Computes, t) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, t := range out.GetComputes() {
			rows = append(rows, []string{show.Last(t.GetName()), show.Enum(t.GetKind().String(), "KIND_"), strconv.Itoa(int(t.GetMaxRuns())), show.Ago(a.Now(), t.GetCreateTime())})
		}
		return a.Table([]string{"compute", "kind", "max runs", "created"}, rows, "")
	})}
	get := &cobra.Command{Use: "show ID", Short: "One compute target", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("computes"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "computes", args[0])
		if err != nil {
			return err
		}
		t, err := c.Computes().GetCompute(ctx, &computev1.GetComputeRequest{Name: name})
		if err != nil || a.Structured() {
			return a.Answer(t, err)
		}
		return a.showCompute(t)
	})}
	remove := &cobra.Command{Use: "delete ID", Short: "Remove a target that no run needs", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("computes"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "computes", args[0])
		if err != nil {
			return err
		}
		r, err := c.Computes().DeleteCompute(ctx, &computev1.DeleteComputeRequest{Name: name})
		return a.Done(r, err, "deleted %s", name)
	})}
	return app.Noun("compute", "Where runs happen", create, list, get, remove, a.computeServe())
}

func (a verbs) showCompute(t *computev1.Compute) error {
	return show.Pairs(a.Out, "name", t.GetName(), "uid", t.GetUid(), "kind", show.Enum(t.GetKind().String(), "KIND_"), "max runs", strconv.Itoa(int(t.GetMaxRuns())),
		"created", show.Clock(t.GetCreateTime()), "by", t.GetCreatedBy())
}
