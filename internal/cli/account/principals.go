package account

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/fault"
)

const principalCollection = "servicePrincipals/"

// principals are the commands about programs that sign in by themselves.
func (a verbs) principals() *cobra.Command {
	name := func(arg string) string { return principalCollection + strings.TrimPrefix(arg, principalCollection) }
	var display string
	create := &cobra.Command{Use: "create NAME", Short: "Make a service principal; it can do nothing until it gets a role and a secret", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		p, err := c.Directory().CreateServicePrincipal(ctx, &identityv1.CreateServicePrincipalRequest{ServicePrincipalId: strings.TrimPrefix(args[0], principalCollection), DisplayName: display})
		if err != nil || a.Structured() {
			return a.Answer(p, err)
		}
		return show.Pairs(a.Out, "name", p.GetName(), "client id", p.GetUid(), "display name", p.GetDisplayName(), "created", show.Clock(p.GetCreateTime()))
	})}
	create.Flags().StringVar(&display, "display-name", "", "the name as people write it")

	limit := 0
	list := &cobra.Command{Use: "list", Short: "The service principals", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		out := &identityv1.ListServicePrincipalsResponse{}
		var err error
		out.NextPageToken, err = app.Pages(limit, func(token string, size int32) ([]*identityv1.ServicePrincipal, string, error) {
			r, err := c.Directory().ListServicePrincipals(ctx, &identityv1.ListServicePrincipalsRequest{PageSize: size, PageToken: token})
			return r.GetServicePrincipals(), r.GetNextPageToken(), err
		}, func(p *identityv1.ServicePrincipal) { out.ServicePrincipals = append(out.ServicePrincipals, p) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		rows := make([][]string, 0, len(out.GetServicePrincipals()))
		for _, p := range out.GetServicePrincipals() {
			rows = append(rows, []string{show.Last(p.GetName()), p.GetDisplayName(), show.State(p.GetDisabled()), p.GetUid(), show.Ago(a.Now(), p.GetCreateTime())})
		}
		return a.Table([]string{"name", "display name", "state", "client id", "created"}, rows, out.GetNextPageToken())
	})}
	list.Flags().IntVar(&limit, "limit", 1000, "how many at most; 0 for all")

	var file string
	var life time.Duration
	secret := &cobra.Command{Use: "add-secret NAME --secret-file FILE", Short: "Make a client secret, into a file that only you can read", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if file == "" {
			return app.Usagef("--secret-file says where the secret goes; it is not shown")
		}
		req := &identityv1.AddServicePrincipalSecretRequest{Name: name(args[0])}
		if life > 0 {
			req.ExpireTime = timestamppb.New(a.Now().Add(life))
		}
		// The file first: a secret that could not be kept would be one that nobody has.
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fault.FailedPrecondition("the secret's file cannot be made: %v", err)
		}
		s, err := c.Directory().AddServicePrincipalSecret(ctx, req)
		if err == nil {
			_, err = f.WriteString(s.GetSecret() + "\n")
			err = errors.Join(err, f.Sync())
		}
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(file)
			return err
		}
		s.Secret = "" // kept, not shown
		if a.Structured() {
			return a.Answer(s, nil)
		}
		return show.Pairs(a.Out, "client id", s.GetClientId(), "secret id", s.GetSecretId(), "ends", show.Clock(s.GetExpireTime()), "kept in", file)
	})}
	secret.Flags().StringVar(&file, "secret-file", "", "the file to make, mode 0600")
	secret.Flags().DurationVar(&life, "life", 0, "how long it is taken, such as 720h; without it 90 days")

	remove := &cobra.Command{Use: "delete NAME", Short: "Remove it; its tokens die at once", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		if err := a.Sure("remove the service principal " + args[0]); err != nil {
			return err
		}
		_, err := c.Directory().DeleteServicePrincipal(ctx, &identityv1.DeleteServicePrincipalRequest{Name: name(args[0])})
		if err != nil {
			return err
		}
		a.Say("%s is removed", name(args[0]))
		return nil
	})}
	return app.Noun("service-principal", "Programs that sign in by themselves", append([]*cobra.Command{create, list, secret, remove}, a.credentials(name)...)...)
}
