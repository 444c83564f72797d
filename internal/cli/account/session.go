package account

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/settings"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func (a verbs) login() *cobra.Command {
	var user string
	var stdin, ask bool
	var by way
	c := &cobra.Command{
		Use: "login [--server https://host:port --ca FILE] [--user NAME]", Short: "Sign in, and keep the session for the commands that follow",
		Args: app.Exactly(0),
	}
	c.Flags().StringVar(&user, "user", "", "whom to sign in; without it whoever signed in last, or in a browser whoever does there")
	c.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input, and from its next line a code if one is asked for")
	c.Flags().BoolVar(&ask, "ask-password", false, "ask for the password at the terminal")
	by.flags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		chosen, err := a.Chosen()
		if err != nil {
			return err
		}
		if !stdin && !ask || by.given() {
			return a.byProvider(ctx, chosen, by, user, stdin || ask)
		}
		if user == "" {
			user = chosen.User
		}
		if user = strings.TrimPrefix(user, "users/"); user == "" {
			return app.Usagef("whom to sign in is not known: give --user")
		}
		if chosen, err = a.kept(chosen, user); err != nil {
			return err
		}
		cl, err := client.Dial(chosen.Client(), redact.Secret{}, a.DialOptions()...)
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close() }()
		password, err := a.Password(ctx, "password of "+user+" at "+chosen.Server+": ", stdin, false)
		if err != nil {
			return err
		}
		defer password.Wipe()
		signed, err := a.signIn(ctx, cl, user, password, stdin)
		if err != nil {
			return err
		}
		if err := a.recovery(signed.GetRecoveryCodes()); err != nil {
			return err
		}
		session := signed.GetSession()
		d, err := a.Folder()
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
		if err := d.SetToken(ctx, chosen.Name, settings.Token{Server: chosen.Server, Value: session.GetAccessToken(), Expires: session.GetExpireTime().AsTime()}); err != nil {
			return err
		}
		if a.Structured() {
			session.AccessToken = "" // kept, not shown
			return a.Answer(session, nil)
		}
		a.Say("signed in at %s as %s, until %s", chosen.Server, session.GetPrincipal(), show.Clock(session.GetExpireTime()))
		return nil
	}
	return c
}

// kept is the context as login will keep it: with a name, and with the root itself instead of its file.
func (a verbs) kept(c settings.Context, user string) (settings.Context, error) {
	c.User = "users/" + user
	if c.Name == "" {
		u, err := url.Parse(c.Server)
		if err != nil {
			return c, app.Usagef("%q is no address", c.Server)
		}
		c.Name = u.Host
	}
	if c.CAFile == "" {
		return c, nil
	}
	b, err := os.ReadFile(c.CAFile)
	if err != nil {
		return c, app.Usagef("the installation's root cannot be read: %v", err)
	}
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return c, app.Usagef("%s holds more than certificates (%s); give the root's certificate alone", c.CAFile, block.Type)
		}
	}
	c.CA, c.CAFile = string(b), ""
	return c, nil
}

func (a verbs) logout() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "End the session, here and at the installation", Args: app.Exactly(0), RunE: func(cmd *cobra.Command, _ []string) error {
		chosen, err := a.Chosen()
		if err != nil {
			return err
		}
		if ended, err := a.endGrant(cmd.Context(), chosen); ended || err != nil {
			return err
		}
		token, err := a.Token(cmd.Context(), chosen)
		if err != nil {
			return err
		}
		if token.Empty() {
			a.Say("nobody is signed in at %s", chosen.Server)
			return nil
		}
		c, err := client.Dial(chosen.Client(), token, a.DialOptions()...)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, remote := c.Identity().SignOut(cmd.Context(), &identityv1.SignOutRequest{})
		if chosen.Name != "" {
			d, err := a.Folder()
			if err != nil {
				return err
			}
			if err := d.SetToken(cmd.Context(), chosen.Name, settings.Token{}); err != nil {
				return err
			}
		}
		if remote != nil {
			a.Say("the token is forgotten here, but the installation did not end the session:")
			return remote
		}
		a.Say("signed out")
		return nil
	}}
}

func (a verbs) whoami() *cobra.Command {
	return &cobra.Command{Use: "whoami", Short: "Whom the installation takes you for", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := c.Identity().WhoAmI(ctx, &identityv1.WhoAmIRequest{})
		if err != nil {
			return err
		}
		if a.Structured() {
			return a.Answer(r, nil)
		}
		return show.Pairs(a.Out, "principal", r.GetPrincipal(), "uid", r.GetUid(), "name", r.GetDisplayName(), "type", show.Enum(r.GetType().String(), "PRINCIPAL_TYPE_"),
			"session until", show.Clock(r.GetTokenExpireTime()), "run", r.GetRunUid(), "installation", c.Context().Server, "context", c.Context().Name)
	})}
}

func (a verbs) contexts() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "The installations in the settings", Args: app.Exactly(0), RunE: func(*cobra.Command, []string) error {
		d, err := a.Folder()
		if err != nil {
			return err
		}
		f, err := d.Read()
		if err != nil {
			return err
		}
		if a.Structured() {
			text, err := contextsJSON(f)
			if err != nil {
				return err
			}
			return a.AnswerJSON(text)
		}
		rows := make([][]string, 0, len(f.Contexts))
		for _, c := range f.Contexts {
			mark := ""
			if c.Name == f.CurrentContext {
				mark = "*"
			}
			rows = append(rows, []string{mark, c.Name, c.Server, c.User, c.Workspace})
		}
		return show.Table(a.Out, []string{"", "name", "server", "user", "workspace"}, rows)
	}}
	use := &cobra.Command{Use: "use NAME", Short: "Make one of them the current one", Args: app.Exactly(1), ValidArgsFunction: a.SuggestContexts, RunE: func(_ *cobra.Command, args []string) error {
		d, err := a.Folder()
		if err != nil {
			return err
		}
		f, err := d.Read()
		if err != nil {
			return err
		}
		if _, ok := f.Find(args[0]); !ok {
			return app.Usagef("there is no context %q; `redoubt context list` shows them", args[0])
		}
		f.CurrentContext = args[0]
		return d.Write(f)
	}}
	return app.Noun("context", "Which installations the commands speak to", list, use)
}

// contextsJSON are the contexts for programs, without the roots.
func contextsJSON(f *settings.File) ([]byte, error) {
	type row struct {
		Name      string `json:"name"`
		Current   bool   `json:"current,omitempty"`
		Server    string `json:"server"`
		User      string `json:"user,omitempty"`
		Workspace string `json:"workspace,omitempty"`
	}
	rows := make([]row, 0, len(f.Contexts))
	for _, c := range f.Contexts {
		rows = append(rows, row{Name: c.Name, Current: c.Name == f.CurrentContext, Server: c.Server, User: c.User, Workspace: c.Workspace})
	}
	b, err := json.MarshalIndent(map[string]any{"contexts": rows}, "", "  ")
	return append(b, '\n'), err
}
