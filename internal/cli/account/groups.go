package account

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

const groupCollection = "groups/"

func groupName(arg string) string { return groupCollection + strings.TrimPrefix(arg, groupCollection) }

// userGroups are the commands about groups of principals. The noun group is a resource group's.
func (a verbs) userGroups() *cobra.Command {
	var display string
	create := &cobra.Command{Use: "create NAME", Short: "Make a group without members", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		g, err := c.Directory().CreateGroup(ctx, &identityv1.CreateGroupRequest{GroupId: strings.TrimPrefix(args[0], groupCollection), DisplayName: display})
		return a.group(g, err)
	})}
	create.Flags().StringVar(&display, "display-name", "", "the name as people write it")

	limit := 0
	list := &cobra.Command{Use: "list", Short: "The groups", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		out := &identityv1.ListGroupsResponse{}
		var err error
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*identityv1.Group, string, error) {
			r, err := c.Directory().ListGroups(ctx, &identityv1.ListGroupsRequest{PageSize: size, PageToken: token})
			return r.GetGroups(), r.GetNextPageToken(), err
		}, func(g *identityv1.Group) { out.Groups = append(out.Groups, g) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetGroups()))
		for _, g := range out.GetGroups() {
			rows = append(rows, []string{show.Last(g.GetName()), g.GetDisplayName(), strconv.Itoa(len(g.GetMembers())), g.GetUid()})
		}
		return a.Table([]string{"name", "display name", "members", "uid"}, rows, out.GetNextPageToken())
	})}
	list.Flags().IntVar(&limit, "limit", 1000, "how many at most; 0 for all")

	one := &cobra.Command{Use: "show NAME", Short: "A group with its members", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		return a.group(c.Directory().GetGroup(ctx, &identityv1.GetGroupRequest{Name: groupName(args[0])}))
	})}
	add := &cobra.Command{Use: "add-member NAME MEMBER", Short: "Put a user, a program or a group into a group", Args: app.Exactly(2), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		uid, err := a.uid(ctx, c, args[1])
		if err != nil {
			return err
		}
		return a.group(c.Directory().AddGroupMember(ctx, &identityv1.AddGroupMemberRequest{Name: groupName(args[0]), Member: uid}))
	})}
	take := &cobra.Command{Use: "remove-member NAME MEMBER", Short: "Take someone out of a group; what it gave him is gone at once", Args: app.Exactly(2), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		uid, err := a.uid(ctx, c, args[1])
		if err != nil {
			return err
		}
		return a.group(c.Directory().RemoveGroupMember(ctx, &identityv1.RemoveGroupMemberRequest{Name: groupName(args[0]), Member: uid}))
	})}
	remove := &cobra.Command{Use: "delete NAME", Short: "Remove a group; what it gave its members is gone at once", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if err := a.Sure("remove the group " + args[0]); err != nil {
			return err
		}
		r, err := c.Directory().DeleteGroup(ctx, &identityv1.DeleteGroupRequest{Name: groupName(args[0])})
		return a.Done(r, err, "%s is removed", groupName(args[0]))
	})}
	return app.Noun("user-group", "Groups of people and programs, to whom roles are given", create, list, one, add, take, remove)
}

func (a verbs) group(g *identityv1.Group, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(g, err)
	}
	return show.Pairs(a.Out, "name", g.GetName(), "uid", g.GetUid(), "display name", g.GetDisplayName(), "members", strings.Join(g.GetMembers(), " "))
}

// uid is the member that a name stands for: users by their bare name, others with their collection; a uid stays one.
func (a verbs) uid(ctx context.Context, c *client.Client, who string) (string, error) {
	name := app.Principal(who)
	switch {
	case strings.HasPrefix(name, groupCollection):
		g, err := c.Directory().GetGroup(ctx, &identityv1.GetGroupRequest{Name: name})
		return g.GetUid(), err
	case strings.HasPrefix(name, principalCollection):
		p, err := c.Directory().GetServicePrincipal(ctx, &identityv1.GetServicePrincipalRequest{Name: name})
		return p.GetUid(), err
	case strings.HasPrefix(name, "users/"):
		u, err := c.Directory().GetUser(ctx, &identityv1.GetUserRequest{Name: name})
		return u.GetUid(), err
	}
	return name, nil
}
