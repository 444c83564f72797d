package account

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func (a verbs) users() *cobra.Command {
	var display string
	var stdin, invite bool
	create := &cobra.Command{Use: "create NAME", Short: "Make a user", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		id := strings.TrimPrefix(args[0], "users/")
		var p redact.Secret
		if !invite {
			var err error
			if p, err = a.Password(ctx, "password for "+id+": ", stdin, true); err != nil {
				return err
			}
			defer p.Wipe()
		}
		u, err := c.Directory().CreateUser(ctx, &identityv1.CreateUserRequest{UserId: id, DisplayName: display, Password: p.RevealString()})
		if err != nil {
			return err
		}
		return a.user(u)
	})}
	create.Flags().StringVar(&display, "display-name", "", "the name as people write it")
	create.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	create.Flags().BoolVar(&invite, "invite", false, "make him without a password: with the code of redoubt user code he sets one")

	limit := 0
	list := &cobra.Command{Use: "list", Short: "The users", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		out := &identityv1.ListUsersResponse{}
		var err error
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*identityv1.User, string, error) {
			r, err := c.Directory().ListUsers(ctx, &identityv1.ListUsersRequest{PageSize: size, PageToken: token})
			return r.GetUsers(), r.GetNextPageToken(), err
		}, func(u *identityv1.User) { out.Users = append(out.Users, u) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetUsers()))
		for _, u := range out.GetUsers() {
			rows = append(rows, []string{show.Last(u.GetName()), u.GetDisplayName(), show.State(u.GetDisabled()), u.GetUid(), show.Ago(a.Now(), u.GetCreateTime())})
		}
		return a.Table([]string{"name", "display name", "state", "uid", "created"}, rows, out.GetNextPageToken())
	})}
	list.Flags().IntVar(&limit, "limit", 1000, "how many at most; 0 for all")

	disabled := func(use, short string, to bool) *cobra.Command {
		return &cobra.Command{Use: use + " NAME", Short: short, Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			u, err := c.Directory().SetUserDisabled(ctx, &identityv1.SetUserDisabledRequest{Name: app.Principal(args[0]), Disabled: to})
			if err != nil {
				return err
			}
			return a.user(u)
		})}
	}
	var newStdin bool
	set := &cobra.Command{Use: "set-password NAME", Short: "Give a user a new password; his sessions end", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		p, err := a.Password(ctx, "new password for "+args[0]+": ", newStdin, true)
		if err != nil {
			return err
		}
		defer p.Wipe()
		r, err := c.Directory().SetUserPassword(ctx, &identityv1.SetUserPasswordRequest{Name: app.Principal(args[0]), NewPassword: p.RevealString()})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		a.Say("the password of %s is set", args[0])
		return nil
	})}
	set.Flags().BoolVar(&newStdin, "password-stdin", false, "read the password from standard input")
	remove := &cobra.Command{Use: "delete NAME", Short: "Remove a user; his tokens die at once", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if err := a.Sure("remove the user " + args[0]); err != nil {
			return err
		}
		r, err := c.Directory().DeleteUser(ctx, &identityv1.DeleteUserRequest{Name: app.Principal(args[0])})
		return a.Done(r, err, "%s is removed", app.Principal(args[0]))
	})}
	return app.Noun("user", "People who sign in", create, list, disabled("disable", "Disable a user; his sessions end at once", true), disabled("enable", "Enable a user again", false), set, a.changePassword(), a.code(), a.redeem(), remove)
}

// changePassword is for whoever is signed in.
func (a verbs) changePassword() *cobra.Command {
	var stdin bool
	c := &cobra.Command{Use: "change-password", Short: "Change your own password; your other sessions end", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		current, next, err := a.twoPasswords(ctx, stdin)
		if err != nil {
			return err
		}
		defer current.Wipe()
		defer next.Wipe()
		r, err := c.Accounts().ChangePassword(ctx, &identityv1.ChangePasswordRequest{CurrentPassword: current.RevealString(), NewPassword: next.RevealString()})
		return a.Done(r, err, "your password is changed; sessions that were ended: %d", r.GetSessionsEnded())
	})}
	c.Flags().BoolVar(&stdin, "password-stdin", false, "read two lines of standard input: the current password, and the new one")
	return c
}

func (a verbs) twoPasswords(ctx context.Context, stdin bool) (current, next redact.Secret, err error) {
	if stdin {
		lines, err := a.Lines(app.MaxPassword, 2)
		if err != nil {
			return current, next, err
		}
		return lines[0], lines[1], nil
	}
	if current, err = a.Password(ctx, "current password: ", false, false); err != nil {
		return current, next, err
	}
	next, err = a.Password(ctx, "new password: ", false, true)
	return current, next, err
}

func (a verbs) user(u *identityv1.User) error {
	if a.Structured() {
		return a.Answer(u, nil)
	}
	return show.Pairs(a.Out, "name", u.GetName(), "uid", u.GetUid(), "display name", u.GetDisplayName(), "state", show.State(u.GetDisabled()), "created", show.Clock(u.GetCreateTime()))
}
