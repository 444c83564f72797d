package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a *app) users() *cobra.Command {
	var display string
	var stdin bool
	create := &cobra.Command{Use: "create NAME", Short: "Make a user", Args: exactly(1), RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
		id := strings.TrimPrefix(args[0], "users/")
		p, err := a.password(ctx, "password for "+id+": ", stdin, true)
		if err != nil {
			return err
		}
		defer p.Wipe()
		u, err := c.Directory().CreateUser(ctx, &identityv1.CreateUserRequest{UserId: id, DisplayName: display, Password: p.RevealString()})
		if err != nil {
			return err
		}
		return a.user(u)
	})}
	create.Flags().StringVar(&display, "display-name", "", "the name as people write it")
	create.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")

	limit := 0
	list := &cobra.Command{Use: "list", Short: "The users", Args: exactly(0), RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
		out := &identityv1.ListUsersResponse{}
		var err error
		out.NextPageToken, err = pages(limit, func(token string, size int32) ([]*identityv1.User, string, error) {
			r, err := c.Directory().ListUsers(ctx, &identityv1.ListUsersRequest{PageSize: size, PageToken: token})
			return r.GetUsers(), r.GetNextPageToken(), err
		}, func(u *identityv1.User) { out.Users = append(out.Users, u) })
		if err != nil || a.json() {
			return a.orJSON(out, err)
		}
		rows := make([][]string, 0, len(out.GetUsers()))
		for _, u := range out.GetUsers() {
			rows = append(rows, []string{show.Last(u.GetName()), u.GetDisplayName(), state(u.GetDisabled()), u.GetUid(), show.Ago(a.now(), u.GetCreateTime())})
		}
		return a.table([]string{"name", "display name", "state", "uid", "created"}, rows, out.GetNextPageToken())
	})}
	list.Flags().IntVar(&limit, "limit", 1000, "how many at most; 0 for all")

	disabled := func(use, short string, to bool) *cobra.Command {
		return &cobra.Command{Use: use + " NAME", Short: short, Args: exactly(1), RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
			u, err := c.Directory().SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: principal(args[0]), Disabled: to})
			if err != nil {
				return err
			}
			return a.user(u)
		})}
	}
	var newStdin bool
	set := &cobra.Command{Use: "set-password NAME", Short: "Give a user a new password; his sessions end", Args: exactly(1), RunE: a.with(func(ctx context.Context, c *client.Client, args []string) error {
		p, err := a.password(ctx, "new password for "+args[0]+": ", newStdin, true)
		if err != nil {
			return err
		}
		defer p.Wipe()
		r, err := c.Directory().SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: principal(args[0]), NewPassword: p.RevealString()})
		if err != nil || a.json() {
			return a.orJSON(r, err)
		}
		a.say("the password of %s is set", args[0])
		return nil
	})}
	set.Flags().BoolVar(&newStdin, "password-stdin", false, "read the password from standard input")
	return noun("user", "People who sign in", create, list, disabled("disable", "Disable a user; his sessions end at once", true), disabled("enable", "Enable a user again", false), set)
}

func (a *app) user(u *identityv1.User) error {
	if a.json() {
		return show.JSON(a.out, u)
	}
	return show.Pairs(a.out, "name", u.GetName(), "uid", u.GetUid(), "display name", u.GetDisplayName(), "state", state(u.GetDisabled()), "created", show.Clock(u.GetCreateTime()))
}

func state(disabled bool) string {
	if disabled {
		return "disabled"
	}
	return "enabled"
}
