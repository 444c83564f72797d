package cli

import (
	"context"
	"encoding/pem"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func (a *app) login() *cobra.Command {
	var user string
	var stdin bool
	c := &cobra.Command{
		Use: "login [--server https://host:port --ca FILE] [--user NAME]", Short: "Sign in, and keep the session for the commands that follow",
		Args: exactly(0),
	}
	c.Flags().StringVar(&user, "user", "", "whom to sign in; without it whoever signed in last")
	c.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		chosen, err := a.chosen()
		if err != nil {
			return err
		}
		if user == "" {
			user = chosen.User
		}
		if user = strings.TrimPrefix(user, "users/"); user == "" {
			return usagef("whom to sign in is not known: give --user")
		}
		if chosen, err = a.kept(chosen, user); err != nil {
			return err
		}
		cl, err := client.Dial(chosen.Client(), redact.Secret{}, a.dialOptions()...)
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close() }()
		password, err := a.password(ctx, "password of "+user+" at "+chosen.Server+": ", stdin, false)
		if err != nil {
			return err
		}
		defer password.Wipe()
		session, err := cl.SignIn(ctx, user, password)
		if err != nil {
			return err
		}
		d, err := a.folder()
		if err != nil {
			return err
		}
		f, err := d.Read()
		if err != nil {
			return err
		}
		f.Put(chosen)
		f.CurrentContext = chosen.Name
		if err := d.Write(f); err != nil {
			return err
		}
		if err := d.SetToken(chosen.Name, settings.Token{Server: chosen.Server, Value: session.GetAccessToken(), Expires: session.GetExpireTime().AsTime()}); err != nil {
			return err
		}
		if a.json() {
			session.AccessToken = "" // kept, not shown
			return show.JSON(a.out, session)
		}
		a.say("signed in at %s as %s, until %s", chosen.Server, session.GetPrincipal(), show.Clock(session.GetExpireTime()))
		return nil
	}
	return c
}

// kept is the context as login will keep it: with a name, and with the root itself instead of its file.
func (a *app) kept(c settings.Context, user string) (settings.Context, error) {
	c.User = "users/" + user
	if c.Name == "" {
		u, err := url.Parse(c.Server)
		if err != nil {
			return c, usagef("%q is no address", c.Server)
		}
		c.Name = u.Host
	}
	if c.CAFile == "" {
		return c, nil
	}
	b, err := os.ReadFile(c.CAFile)
	if err != nil {
		return c, usagef("the installation's root cannot be read: %v", err)
	}
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return c, usagef("%s holds more than certificates (%s); give the root's certificate alone", c.CAFile, block.Type)
		}
	}
	c.CA, c.CAFile = string(b), ""
	return c, nil
}

func (a *app) logout() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "End the session, here and at the installation", Args: exactly(0), RunE: func(cmd *cobra.Command, _ []string) error {
		chosen, err := a.chosen()
		if err != nil {
			return err
		}
		token, err := a.token(chosen)
		if err != nil {
			return err
		}
		if token.Empty() {
			a.say("nobody is signed in at %s", chosen.Server)
			return nil
		}
		c, err := client.Dial(chosen.Client(), token, a.dialOptions()...)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, remote := c.Identity().SignOut(cmd.Context(), &identityv1.SignOutRequest{})
		if chosen.Name != "" {
			d, err := a.folder()
			if err != nil {
				return err
			}
			if err := d.SetToken(chosen.Name, settings.Token{}); err != nil {
				return err
			}
		}
		if remote != nil {
			a.say("the token is forgotten here, but the installation did not end the session:")
			return remote
		}
		a.say("signed out")
		return nil
	}}
}

func (a *app) whoami() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Whom the installation takes you for", Args: exactly(0), RunE: a.with(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{})
		if err != nil {
			return err
		}
		if a.json() {
			return show.JSON(a.out, r)
		}
		return show.Pairs(a.out, "principal", r.GetPrincipal(), "uid", r.GetUid(), "name", r.GetDisplayName(), "type", show.Enum(r.GetType().String(), "PRINCIPAL_TYPE_"),
			"session until", show.Clock(r.GetTokenExpireTime()), "run", r.GetRunUid(), "installation", c.Context().Server, "context", c.Context().Name)
	})}
}

func (a *app) contexts() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "The installations in the settings", Args: exactly(0), RunE: func(*cobra.Command, []string) error {
		d, err := a.folder()
		if err != nil {
			return err
		}
		f, err := d.Read()
		if err != nil {
			return err
		}
		rows := make([][]string, 0, len(f.Contexts))
		for _, c := range f.Contexts {
			mark := ""
			if c.Name == f.CurrentContext {
				mark = "*"
			}
			rows = append(rows, []string{mark, c.Name, c.Server, c.User, c.Workspace})
		}
		return show.Table(a.out, []string{"", "name", "server", "user", "workspace"}, rows)
	}}
	use := &cobra.Command{Use: "use NAME", Short: "Make one of them the current one", Args: exactly(1), RunE: func(_ *cobra.Command, args []string) error {
		d, err := a.folder()
		if err != nil {
			return err
		}
		f, err := d.Read()
		if err != nil {
			return err
		}
		if _, ok := f.Find(args[0]); !ok {
			return usagef("there is no context %q; `redoubt context list` shows them", args[0])
		}
		f.CurrentContext = args[0]
		return d.Write(f)
	}}
	return noun("context", "Which installations the commands speak to", list, use)
}
