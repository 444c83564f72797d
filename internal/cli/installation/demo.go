package installation

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/demo"
	"github.com/redoubt-ml/redoubt/internal/node"
	"github.com/redoubt-ml/redoubt/pkg/config"
	"github.com/redoubt-ml/redoubt/pkg/redact"
)

func (a verbs) demo() *cobra.Command {
	var there remoteDemo
	var blobs blobFlags
	cfg := demo.Config{Out: a.Out}
	c := &cobra.Command{
		Use: "demo [--server https://host:port --ca FILE]", Short: "Walk a real training job from sign-in to a model, step by step, and clean up",
		Long: "Walk a real training job from sign-in to a model, step by step, and clean up: with an installation of its own or, where --server is given, in one that runs already.",
		Args: app.Exactly(0),
	}
	f := c.Flags()
	f.StringVar(&cfg.Data, "data", "", "the folder to use; without it one below the system's folder for temporary files")
	f.BoolVar(&cfg.Keep, "keep", false, "leave the folder where it is; with --server, what was made there too if the walk breaks off")
	f.StringVar(&there.user, "user", "admin", "whom to sign in at --server: somebody who may make workspaces and service principals")
	f.StringVar(&there.passwordFile, "password-file", "", "his password, in a file that its owner alone can read; without it you are asked")
	f.StringVar(&cfg.Target, "target", "here", "the id of the target that the walk makes at --server, self-hosted")
	f.BoolVar(&cfg.Carry, "carry", false, "carry the runs of that target on this machine; without it some `redoubt compute serve` has to")
	blobs.add(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		// An address of the environment is not enough: the walk must not go to an installation by accident.
		if !cmd.Flags().Changed("server") {
			for _, only := range []string{"user", "password-file", "target", "carry"} {
				if cmd.Flags().Changed(only) {
					return app.Usagef("--%s belongs to --server", only)
				}
			}
			if err := blobs.absolute(); err != nil {
				return err
			}
			cfg.Blobs = blobs.Bucket
			a.tune()
			return demo.Run(cmd.Context(), cfg)
		}
		if blobs.Bucket != (node.Bucket{}) {
			return app.Usagef("--blobs is for an installation of the demo's own: that at --server has its blobs where it has them")
		}
		if err := there.complete(cmd.Context(), a, &cfg); err != nil {
			return err
		}
		defer cfg.Password.Wipe()
		return demo.Run(cmd.Context(), cfg)
	}
	return c
}

// remoteDemo is what the flags say of an installation that runs already.
type remoteDemo struct{ user, passwordFile string }

// complete fills in what the walk needs there.
func (r remoteDemo) complete(ctx context.Context, a verbs, cfg *demo.Config) (err error) {
	cfg.Server, cfg.User = a.Server, r.user
	if a.Workspace != "" {
		cfg.Workspace = a.Workspace
	}
	if a.CA != "" {
		if cfg.CAPEM, err = os.ReadFile(a.CA); err != nil {
			return app.Usagef("the installation's root cannot be read: %v", err)
		}
	}
	if r.passwordFile == "" {
		cfg.Password, err = a.Password(ctx, "password of "+r.user+" at "+a.Server+": ", false, false)
		return err
	}
	if cfg.Password, err = config.ReadSecret(r.passwordFile); err != nil {
		cfg.Password = redact.Secret{}
		return app.Usagef("the password cannot be read: %v", err)
	}
	return nil
}
