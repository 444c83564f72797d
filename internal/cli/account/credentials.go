package account

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// maxKeyFile bounds a public key or certificate, in bytes.
const maxKeyFile = 16 << 10

// credentials are the commands about what a service principal proves itself with.
func (a verbs) credentials(name func(string) string) []*cobra.Command {
	var life time.Duration
	add := &cobra.Command{Use: "add-key NAME FILE", Short: "Register a public key or a certificate (PEM); the private key stays where it is", Args: app.Exactly(2), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		f, err := os.Open(args[1])
		if err != nil {
			return app.Usagef("the key cannot be read: %v", err)
		}
		defer func() { _ = f.Close() }()
		b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
		if err != nil {
			return app.Usagef("the key cannot be read: %v", err)
		}
		req := &identityv1.AddServicePrincipalKeyRequest{Name: name(args[0]), Pem: string(b)}
		if life > 0 {
			req.ExpireTime = timestamppb.New(a.Now().Add(life))
		}
		k, err := c.Directory().AddServicePrincipalKey(ctx, req)
		if err != nil || a.Structured() {
			return a.Answer(k, err)
		}
		return show.Pairs(a.Out, "client id", k.GetClientId(), "credential", k.GetCredentialId(), "thumbprint", k.GetThumbprint(), "ends", show.Clock(k.GetExpireTime()))
	})}
	add.Flags().DurationVar(&life, "life", 0, "how long it is taken, such as 720h; without it 90 days")
	list := &cobra.Command{Use: "credentials NAME", Short: "Its secrets, keys and certificates, without the secrets themselves", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		r, err := c.Directory().ListServicePrincipalCredentials(ctx, &identityv1.ListServicePrincipalCredentialsRequest{Name: name(args[0])})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		rows := make([][]string, 0, len(r.GetCredentials()))
		for _, k := range r.GetCredentials() {
			rows = append(rows, []string{k.GetCredentialId(), show.Enum(k.GetKind().String(), "KIND_"), k.GetThumbprint(), show.Ago(a.Now(), k.GetCreateTime()), show.Clock(k.GetExpireTime())})
		}
		return a.Table([]string{"credential", "kind", "thumbprint", "created", "ends"}, rows, "")
	})}
	remove := &cobra.Command{Use: "delete-credential NAME CREDENTIAL", Short: "Remove one secret, key or certificate; the tokens that it gave die at once", Args: app.Exactly(2), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		r, err := c.Directory().DeleteServicePrincipalCredential(ctx, &identityv1.DeleteServicePrincipalCredentialRequest{Name: name(args[0]), CredentialId: args[1]})
		return a.Done(r, err, "%s is removed", args[1])
	})}
	disabled := func(use, short string, to bool) *cobra.Command {
		return &cobra.Command{Use: use + " NAME", Short: short, Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			p, err := c.Directory().SetServicePrincipalDisabled(ctx, &identityv1.SetServicePrincipalDisabledRequest{Name: name(args[0]), Disabled: to})
			return a.principal(p, err)
		})}
	}
	one := &cobra.Command{Use: "show NAME", Short: "A service principal", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		return a.principal(c.Directory().GetServicePrincipal(ctx, &identityv1.GetServicePrincipalRequest{Name: name(args[0])}))
	})}
	return []*cobra.Command{one, add, list, remove, disabled("disable", "Disable it; its tokens die at once", true), disabled("enable", "Enable it again", false)}
}

func (a verbs) principal(p *identityv1.ServicePrincipal, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(p, err)
	}
	return show.Pairs(a.Out, "name", p.GetName(), "client id", p.GetUid(), "display name", p.GetDisplayName(), "state", show.State(p.GetDisabled()), "created", show.Clock(p.GetCreateTime()))
}
