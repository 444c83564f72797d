package rotate

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	identityv1 "github.com/redoubt-ml/redoubt/gen/redoubt/identity/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

// verbs are the commands of this package, for one invocation.
type verbs struct{ *app.App }

// Commands are the nouns about keys of the installation.
func Commands(of *app.App) []*cobra.Command {
	a := verbs{of}
	return []*cobra.Command{a.keys(), a.ca()}
}

func (a verbs) keys() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "The keys that sign tokens and JWT-SVIDs, and when each does what", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		r, err := identityv1.NewKeyServiceClient(c.Conn()).ListSigningKeys(ctx, &identityv1.ListSigningKeysRequest{})
		return a.signing(r, err)
	})}
	var emergency bool
	rotate := &cobra.Command{
		Use: "rotate [--emergency]", Short: "Let the next key sign, as soon as everybody can know it; in an emergency drop all keys at once", Args: app.Exactly(0),
		Long: `rotate lets the next key sign as soon as it was published for long enough. Nothing else changes: tokens that the old key signed are
good until they end.

With --emergency every key is dropped at once and a new one signs. Use it when a key may be known to others. All tokens are dead in every
service when the command returns: everybody signs in again, and runs under way are lost.`,
		RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
			if emergency {
				if err := a.Sure("ending every session, and losing the runs under way,"); err != nil {
					return err
				}
			}
			r, err := identityv1.NewKeyServiceClient(c.Conn()).RotateSigningKeys(ctx, &identityv1.RotateSigningKeysRequest{Emergency: emergency})
			if err == nil && emergency {
				a.Say("every token is dead, this session's too: sign in again")
			}
			return a.signing(r, err)
		}),
	}
	rotate.Flags().BoolVar(&emergency, "emergency", false, "drop every key at once")
	c := &cobra.Command{Use: "keys", Short: "The keys that sign tokens"}
	c.AddCommand(list, rotate)
	return c
}

func (a verbs) signing(r *identityv1.ListSigningKeysResponse, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(r, err)
	}
	rows := make([][]string, 0, len(r.GetSigningKeys())+len(r.GetSvidKeys()))
	for i, k := range slices.Concat(r.GetSigningKeys(), r.GetSvidKeys()) {
		signs := "tokens"
		if i >= len(r.GetSigningKeys()) {
			signs = "JWT-SVIDs"
		}
		rows = append(rows, []string{
			k.GetKeyId(), signs, strings.ToLower(strings.TrimPrefix(k.GetState().String(), "KEY_STATE_")), show.Clock(k.GetPublishTime()), show.Clock(k.GetSignTime()),
			show.Clock(k.GetRetireTime()), show.Clock(k.GetRemoveTime()),
		})
	}
	return a.Table([]string{"key", "signs", "state", "published", "signs from", "until", "removed"}, rows, "")
}
