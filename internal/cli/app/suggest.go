package app

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	computev1 "github.com/redoubt-ml/redoubt/gen/redoubt/compute/v1"
	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

const (
	// suggestLimit is how long a shell that completes a word waits for the installation.
	suggestLimit = 2 * time.Second
	// suggestMost is how many names are asked for: the newest.
	suggestMost = 200
)

// lister names what there is of one kind, in the order in which it is shown.
type lister func(ctx context.Context, a *App, c *client.Client) ([]string, error)

// listers are the kinds whose names a shell can complete, by their collections.
func listers() map[string]lister {
	return map[string]lister{
		"workspaces": func(ctx context.Context, _ *App, c *client.Client) ([]string, error) {
			r, err := c.Resources().ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{PageSize: suggestMost})
			return ids(r.GetWorkspaces()), err
		},
		"computes": inWorkspace(func(ctx context.Context, c *client.Client, w string) ([]string, error) {
			r, err := c.Computes().ListComputes(ctx, &computev1.ListComputesRequest{Parent: w, PageSize: suggestMost})
			return ids(r.GetComputes()), err
		}),
		"runs": inWorkspace(func(ctx context.Context, c *client.Client, w string) ([]string, error) {
			r, err := c.Runs().ListRuns(ctx, &computev1.ListRunsRequest{Parent: w, PageSize: suggestMost})
			return ids(r.GetRuns()), err
		}),
		"experiments": inWorkspace(func(ctx context.Context, c *client.Client, w string) ([]string, error) {
			r, err := c.Experiments().SearchExperiments(ctx, &computev1.SearchExperimentsRequest{Parent: w, PageSize: suggestMost})
			return ids(r.GetExperiments()), err
		}),
		"snapshots": inWorkspace(func(ctx context.Context, c *client.Client, w string) ([]string, error) {
			r, err := c.Snapshots().ListSnapshots(ctx, &workspacev1.ListSnapshotsRequest{Parent: w, PageSize: suggestMost})
			return ids(r.GetSnapshots()), err
		}),
		"models": inWorkspace(func(ctx context.Context, c *client.Client, w string) ([]string, error) {
			r, err := c.Models().ListModels(ctx, &inferencev1.ListModelsRequest{Parent: w, PageSize: suggestMost})
			return ids(r.GetModels()), err
		}),
		"endpoints": inWorkspace(func(ctx context.Context, c *client.Client, w string) ([]string, error) {
			r, err := c.Endpoints().ListEndpoints(ctx, &inferencev1.ListEndpointsRequest{Parent: w, PageSize: suggestMost})
			return ids(r.GetEndpoints()), err
		}),
		"deployments": inWorkspace(func(ctx context.Context, c *client.Client, w string) ([]string, error) {
			es, err := c.Endpoints().ListEndpoints(ctx, &inferencev1.ListEndpointsRequest{Parent: w, PageSize: suggestMost})
			if err != nil {
				return nil, err
			}
			var out []string
			for _, e := range es.GetEndpoints() {
				r, err := c.Endpoints().ListDeployments(ctx, &inferencev1.ListDeploymentsRequest{Parent: e.GetName(), PageSize: suggestMost})
				if err != nil {
					return out, err
				}
				for _, d := range ids(r.GetDeployments()) {
					out = append(out, show.Last(e.GetName())+"/"+d)
				}
			}
			return out, nil
		}),
	}
}

func inWorkspace(list func(ctx context.Context, c *client.Client, workspace string) ([]string, error)) lister {
	return func(ctx context.Context, a *App, c *client.Client) ([]string, error) {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return nil, err
		}
		return list(ctx, c, w)
	}
}

func ids[T interface{ GetName() string }](list []T) []string {
	out := make([]string, 0, len(list))
	for _, x := range list {
		out = append(out, show.Last(x.GetName()))
	}
	return out
}

// Suggest completes a word by the names of a collection, as the installation has them now. It says nothing where that cannot be
// known soon: whoever presses a key in a shell is not asked for anything, and sees no error.
func (a *App) Suggest(collection string) cobra.CompletionFunc {
	list := listers()[collection]
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), suggestLimit)
		defer cancel()
		if list == nil || a.Complete() != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.Connect(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer func() { _ = c.Close() }()
		names, _ := list(ctx, a, c) // what came before an error is better than nothing
		return fitting(names, word), cobra.ShellCompDirectiveNoFileComp
	}
}

// SuggestFirst is Suggest for the first argument of a command; the others are not completed.
func (a *App) SuggestFirst(collection string) cobra.CompletionFunc {
	suggest := a.Suggest(collection)
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return suggest(cmd, args, word)
	}
}

// SuggestFlag completes the value of a flag of cmd.
func (a *App) SuggestFlag(cmd *cobra.Command, flag, collection string) {
	a.complete(cmd, flag, a.Suggest(collection))
}

// complete gives a flag its completion. That can fail only for a flag that the command does not have.
func (a *App) complete(cmd *cobra.Command, flag string, by cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, by); err != nil {
		panic(err)
	}
}

// SuggestContexts completes a word by the contexts of the settings.
func (a *App) SuggestContexts(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	d, err := a.Folder()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	f, err := d.Read()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, c := range f.Contexts {
		names = append(names, c.Name)
	}
	return fitting(names, word), cobra.ShellCompDirectiveNoFileComp
}

// fitting are the names that begin with word, without what steers a terminal or divides the shell's own list.
func fitting(names []string, word string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.HasPrefix(n, word) || show.Text(n) != n })
}
