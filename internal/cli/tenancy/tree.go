package tenancy

import (
	"context"

	"github.com/google/uuid"

	"github.com/spf13/cobra"

	workspacev1 "github.com/redoubt-ml/redoubt/gen/redoubt/workspace/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) subscriptions() *cobra.Command {
	var display, region string
	create := &cobra.Command{Use: "create ID", Short: "Make a subscription", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		s, err := c.Resources().CreateSubscription(ctx, &workspacev1.CreateSubscriptionRequest{SubscriptionId: args[0], DisplayName: display, Region: region})
		return a.Done(s, err, "made %s", s.GetName())
	})}
	create.Flags().StringVar(&display, "display-name", "", "the name as people write it")
	create.Flags().StringVar(&region, "region", "", "where its resources are")
	list := &cobra.Command{Use: "list", Short: "The subscriptions that you may see", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		out := &workspacev1.ListSubscriptionsResponse{}
		_, err := app.Pages(0, func(token string, size int32) ([]*workspacev1.Subscription, string, error) {
			r, err := c.Resources().ListSubscriptions(ctx, &workspacev1.ListSubscriptionsRequest{PageSize: size, PageToken: token})
			return r.GetSubscriptions(), r.GetNextPageToken(), err
		}, func(s *workspacev1.Subscription) { out.Subscriptions = append(out.Subscriptions, s) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, s := range out.GetSubscriptions() {
			rows = append(rows, []string{show.Last(s.GetName()), s.GetDisplayName(), s.GetRegion(), show.Ago(a.Now(), s.GetCreateTime())})
		}
		return a.Table([]string{"subscription", "display name", "region", "created"}, rows, "")
	})}
	remove := &cobra.Command{Use: "delete ID", Short: "Remove an empty subscription", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if err := a.Sure("deleting the subscription " + args[0]); err != nil {
			return err
		}
		r, err := c.Resources().DeleteSubscription(ctx, &workspacev1.DeleteSubscriptionRequest{Name: "subscriptions/" + args[0]})
		return a.Done(r, err, "deleted subscription %s", args[0])
	})}
	return app.Noun("subscription", "The top of the tree of resources", create, list, remove)
}

func (a verbs) groups() *cobra.Command {
	var display string
	create := &cobra.Command{Use: "create SUBSCRIPTION/GROUP", Short: "Make a resource group", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		parent, id, err := a.splitGroup(c, args[0])
		if err != nil {
			return err
		}
		g, err := c.Resources().CreateResourceGroup(ctx, &workspacev1.CreateResourceGroupRequest{Parent: parent, ResourceGroupId: id, DisplayName: display})
		return a.Done(g, err, "made %s", g.GetName())
	})}
	create.Flags().StringVar(&display, "display-name", "", "the name as people write it")
	list := &cobra.Command{Use: "list SUBSCRIPTION", Short: "The resource groups of a subscription", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		out := &workspacev1.ListResourceGroupsResponse{}
		_, err := app.Pages(0, func(token string, size int32) ([]*workspacev1.ResourceGroup, string, error) {
			r, err := c.Resources().ListResourceGroups(ctx, &workspacev1.ListResourceGroupsRequest{Parent: "subscriptions/" + args[0], PageSize: size, PageToken: token})
			return r.GetResourceGroups(), r.GetNextPageToken(), err
		}, func(g *workspacev1.ResourceGroup) { out.ResourceGroups = append(out.ResourceGroups, g) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, g := range out.GetResourceGroups() {
			rows = append(rows, []string{show.Last(g.GetName()), g.GetDisplayName(), show.Ago(a.Now(), g.GetCreateTime())})
		}
		return a.Table([]string{"resource group", "display name", "created"}, rows, "")
	})}
	remove := &cobra.Command{Use: "delete SUBSCRIPTION/GROUP", Short: "Remove an empty resource group", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		parent, id, err := a.splitGroup(c, args[0])
		if err != nil {
			return err
		}
		if err := a.Sure("deleting the resource group " + args[0]); err != nil {
			return err
		}
		r, err := c.Resources().DeleteResourceGroup(ctx, &workspacev1.DeleteResourceGroupRequest{Name: parent + "/resourceGroups/" + id})
		return a.Done(r, err, "deleted resource group %s", args[0])
	})}
	return app.Noun("group", "Resource groups", create, list, remove)
}

func (a verbs) splitGroup(c *client.Client, arg string) (parent, id string, err error) {
	a.Group = arg
	name, err := a.GroupName(c)
	if err != nil {
		return "", "", err
	}
	id = show.Last(name)
	return name[:len(name)-len("/resourceGroups/")-len(id)], id, nil
}

func (a verbs) workspaces() *cobra.Command {
	var display, description string
	var tags map[string]string
	create := &cobra.Command{Use: "create ID", Short: "Make a workspace, with its identity, vault and storage", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		g, err := a.GroupName(c)
		if err != nil {
			return err
		}
		w, err := c.Resources().CreateWorkspace(ctx, &workspacev1.CreateWorkspaceRequest{
			Parent: g, WorkspaceId: args[0], DisplayName: display, Description: description, Tags: tags, RequestId: uuid.NewString(),
		})
		if err != nil || a.Structured() {
			return a.Answer(w, err)
		}
		if c.Context().Workspace == "" {
			if err := a.useWorkspace(w.GetName()); err != nil {
				return err
			}
		}
		return a.showWorkspace(w)
	})}
	create.Flags().StringVar(&display, "display-name", "", "the name as people write it")
	create.Flags().StringVar(&description, "description", "", "what it is for")
	create.Flags().StringToStringVar(&tags, "tag", nil, "a tag, KEY=VALUE; can be repeated")

	list := &cobra.Command{Use: "list", Short: "The workspaces that you may see", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		parent := ""
		if a.Group != "" {
			var err error
			if parent, err = a.GroupName(c); err != nil {
				return err
			}
		}
		out := &workspacev1.ListWorkspacesResponse{}
		_, err := app.Pages(0, func(token string, size int32) ([]*workspacev1.Workspace, string, error) {
			r, err := c.Resources().ListWorkspaces(ctx, &workspacev1.ListWorkspacesRequest{Parent: parent, PageSize: size, PageToken: token})
			return r.GetWorkspaces(), r.GetNextPageToken(), err
		}, func(w *workspacev1.Workspace) { out.Workspaces = append(out.Workspaces, w) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, w := range out.GetWorkspaces() {
			rows = append(rows, []string{show.Last(w.GetName()), w.GetDisplayName(), show.Enum(w.GetState().String(), "STATE_"), show.Ago(a.Now(), w.GetCreateTime()), w.GetName()})
		}
		return a.Table([]string{"workspace", "display name", "state", "created", "full name"}, rows, "")
	})}
	get := &cobra.Command{Use: "show [NAME]", Short: "One workspace", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.SuggestFirst("workspaces"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.namedWorkspace(ctx, c, args)
		if err != nil {
			return err
		}
		w, err := c.Resources().GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: name})
		if err != nil || a.Structured() {
			return a.Answer(w, err)
		}
		return a.showWorkspace(w)
	})}
	use := &cobra.Command{Use: "use NAME", Short: "Choose a workspace for the commands that follow", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("workspaces"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.FullWorkspace(ctx, c, args[0])
		if err != nil {
			return err
		}
		if _, err := c.Resources().GetWorkspace(ctx, &workspacev1.GetWorkspaceRequest{Name: name}); err != nil {
			return err
		}
		return a.useWorkspace(name)
	})}
	remove := &cobra.Command{Use: "delete NAME", Short: "Remove a workspace and everything in it, for good", Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("workspaces"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.FullWorkspace(ctx, c, args[0])
		if err != nil {
			return err
		}
		if err := a.Sure("deleting " + name + " with everything in it"); err != nil {
			return err
		}
		r, err := c.Resources().DeleteWorkspace(ctx, &workspacev1.DeleteWorkspaceRequest{Name: name})
		if err == nil && c.Context().Workspace == name {
			err = a.useWorkspace("")
		}
		return a.Done(r, err, "deleted %s", name)
	})}
	return app.Noun("workspace", "Workspaces", create, list, get, use, remove)
}

func (a verbs) namedWorkspace(ctx context.Context, c *client.Client, args []string) (string, error) {
	if len(args) == 1 {
		return a.FullWorkspace(ctx, c, args[0])
	}
	return a.WorkspaceName(ctx, c)
}

func (a verbs) showWorkspace(w *workspacev1.Workspace) error {
	return show.Pairs(a.Out, "name", w.GetName(), "uid", w.GetUid(), "display name", w.GetDisplayName(), "description", w.GetDescription(),
		"state", show.Enum(w.GetState().String(), "STATE_"), "managed identity", w.GetManagedIdentity(), "created", show.Clock(w.GetCreateTime()))
}

// useWorkspace keeps the workspace in the context, where there is one.
func (a verbs) useWorkspace(name string) error {
	chosen, err := a.Chosen()
	if err != nil || chosen.Name == "" {
		return err
	}
	d, err := a.Folder()
	if err != nil {
		return err
	}
	f, err := d.Read()
	if err != nil {
		return err
	}
	kept, ok := f.Find(chosen.Name)
	if !ok || kept.Server != chosen.Server {
		return nil
	}
	kept.Workspace = name
	f.Put(kept)
	if err := d.Write(f); err != nil {
		return err
	}
	if name != "" {
		a.Say("the commands that follow are about %s", name)
	}
	return nil
}
