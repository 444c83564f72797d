package endpoints

import (
	"context"

	"github.com/spf13/cobra"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) credentials() *cobra.Command {
	return a.onEndpoint("get-credentials ID", "Show the two keys of an endpoint", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		return a.keys(c.Endpoints().GetCredentials(ctx, &inferencev1.GetCredentialsRequest{Name: name}))
	})
}

func (a verbs) regenerate() *cobra.Command {
	var kind string
	cmd := a.onEndpoint("regenerate-keys ID --key-type primary|secondary", "Replace one of the two keys; the other goes on", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		var which inferencev1.KeyType
		switch kind {
		case "primary":
			which = inferencev1.KeyType_KEY_TYPE_PRIMARY
		case "secondary":
			which = inferencev1.KeyType_KEY_TYPE_SECONDARY
		default:
			return app.Usagef("--key-type says which: primary or secondary")
		}
		if err := a.Sure("replacing the " + kind + " key of " + show.Last(name)); err != nil {
			return err
		}
		return a.keys(c.Endpoints().RegenerateKey(ctx, &inferencev1.RegenerateKeyRequest{Name: name, KeyType: which}))
	})
	cmd.Flags().StringVar(&kind, "key-type", "", "primary or secondary")
	if err := cmd.RegisterFlagCompletionFunc("key-type", cobra.FixedCompletions([]string{"primary", "secondary"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // only of a flag that is not there
	}
	return cmd
}

// keys shows what was asked for by name.
func (a verbs) keys(k *inferencev1.Credentials, err error) error {
	if err != nil || a.Structured() {
		return a.Answer(k, err)
	}
	return show.Pairs(a.Out, "primary key", k.GetPrimaryKey(), "secondary key", k.GetSecondaryKey())
}

func (a verbs) token() *cobra.Command {
	return a.onEndpoint("get-token ID", "Get a token for an endpoint whose authentication is by token", app.Exactly(1), func(ctx context.Context, c *client.Client, name string, _ []string) error {
		t, err := c.Endpoints().IssueEndpointToken(ctx, &inferencev1.IssueEndpointTokenRequest{Name: name})
		if err != nil || a.Structured() {
			return a.Answer(t, err)
		}
		return show.Pairs(a.Out, "token", t.GetAccessToken(), "until", show.Clock(t.GetExpireTime()), "refresh after", show.Clock(t.GetRefreshAfterTime()))
	})
}
