package endpoints

import (
	"context"

	"github.com/spf13/cobra"

	inferencev1 "github.com/redoubt-ml/redoubt/gen/redoubt/inference/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
)

// verbs are the commands of this package, for one invocation.
type verbs struct{ *app.App }

// Commands are the nouns of serving.
func Commands(of *app.App) []*cobra.Command {
	a := verbs{of}
	return []*cobra.Command{
		app.Noun("endpoint", "Addresses that are scored", a.create(), a.list(), a.show(), a.update(), a.remove(), a.traffic(), a.deploy("deploy"),
			a.credentials(), a.regenerate(), a.token(), a.score(), a.requests()),
		app.Noun("deployment", "Replicas of models behind endpoints", a.deploy("create"), a.deployments(), a.deployment(), a.updateDeployment(), a.removeDeployment(),
			a.hostLogs(), a.wait()),
	}
}

// onEndpoint is a command about one endpoint.
func (a verbs) onEndpoint(use, short string, args cobra.PositionalArgs, f func(ctx context.Context, c *client.Client, endpoint string, rest []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: a.SuggestFirst("endpoints"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "endpoints", args[0])
		if err != nil {
			return err
		}
		return f(ctx, c, name, args[1:])
	})}
}

// onDeployment is a command about one deployment.
func (a verbs) onDeployment(use, short string, f func(ctx context.Context, c *client.Client, deployment string) error) *cobra.Command {
	return &cobra.Command{Use: use + " ENDPOINT/DEPLOYMENT", Short: short, Args: app.Exactly(1), ValidArgsFunction: a.SuggestFirst("deployments"), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Deployment(ctx, c, args[0])
		if err != nil {
			return err
		}
		return f(ctx, c, name)
	})}
}

func get(ctx context.Context, c *client.Client, endpoint string) (*inferencev1.Endpoint, error) {
	return c.Endpoints().GetEndpoint(ctx, &inferencev1.GetEndpointRequest{Name: endpoint})
}
