package jobs

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/agent/host"
	"github.com/redoubt-ml/redoubt/internal/agent/sandbox"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
)

func (a verbs) computeServe() *cobra.Command {
	var id, secret string
	var how serving
	c := &cobra.Command{
		Use: "serve ID", Short: "Carry runs of a self-hosted target on this machine, until stopped", Args: app.Exactly(1),
		ValidArgsFunction: a.SuggestFirst("computes"),
	}
	c.Flags().StringVar(&id, "client-id", "", "call as this service principal, by its uid, and not as who is signed in")
	c.Flags().StringVar(&secret, "client-secret-file", "", "its secret, in a file that its owner alone can read; it is read again for each token")
	c.Flags().BoolVar(&how.wait, "wait", false, "wait for a target that is not there yet, or not any more; ID is its full name then")
	c.Flags().StringVar(&how.gateway, "gateway", "", "host:port at which --server is dialled from this machine, where that is another address")
	c.Flags().StringVar(&how.beat, "beat-file", "", "a file that is made anew whenever the installation answers; `redoubt health --beat-file` looks at it")
	c.Flags().DurationVar(&how.drain, "drain", 10*time.Minute, "how long runs that are going may take to end when this is stopped; a second signal ends them at once")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if (id == "") != (secret == "") {
			return app.Usagef("--client-id and --client-secret-file belong together")
		}
		if id == "" && how.gateway != "" {
			return app.Usagef("--gateway belongs to --client-id")
		}
		if id == "" {
			return a.With(func(ctx context.Context, c *client.Client, args []string) error {
				return a.serveTarget(ctx, c, args[0], how)
			})(cmd, args)
		}
		cl, err := a.ConnectAs(id, secret, how.gateway)
		if err != nil {
			return err
		}
		defer func() { _ = cl.Close() }()
		return a.serveTarget(cmd.Context(), cl, args[0], how)
	}
	return c
}

// serving is how a target is served.
type serving struct {
	wait          bool
	gateway, beat string
	drain         time.Duration
}

// serveTarget carries the runs of a target.
func (a verbs) serveTarget(ctx context.Context, c *client.Client, id string, how serving) error {
	if err := sandbox.Check(ctx); err != nil {
		return err
	}
	name, err := a.Named(ctx, c, "computes", id)
	if err != nil {
		return err
	}
	roots, err := c.Context().Roots()
	if err != nil {
		return err
	}
	h, err := host.New(host.Config{
		Computes: c.Computes(), Server: c.Context().Server, Roots: roots, Target: name, Gateway: how.gateway, Wait: how.wait, Drain: how.drain, Say: a.Say, Beat: a.beat(how.beat),
		Logger: slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	return h.Serve(ctx)
}

// beat makes the file anew, whose time is what health looks at.
func (a verbs) beat(path string) func() {
	if path == "" {
		return nil
	}
	return func() {
		if err := os.WriteFile(path, nil, 0o600); err == nil {
			now := a.Now()
			_ = os.Chtimes(path, now, now) // an empty file that is written with nothing keeps its time
		}
	}
}
