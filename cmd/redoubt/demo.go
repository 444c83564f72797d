package main

import (
	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/demo"
)

// demoCommand is `redoubt demo`. It stands here, since the demo is a client of the same library as the other commands.
func demoCommand() *cobra.Command {
	var cfg demo.Config
	c := &cobra.Command{
		Use: "demo [--data DIR] [--keep]", Short: "The walk: from sign-in to a trained model and back, with an installation of its own",
		Long: "demo starts an installation, trains a model on real data as a run in the sandbox, lets a Reader and a thief try what they may not,\n" +
			"checks the model, and takes everything down again. It needs python3, and leaves nothing behind.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Out = cmd.OutOrStdout()
			return demo.Run(cmd.Context(), cfg)
		},
	}
	c.Flags().StringVar(&cfg.Data, "data", "", "an empty folder for the state; without it one below the system's folder for temporary files")
	c.Flags().BoolVar(&cfg.Keep, "keep", false, "leave the folder, to look at it or to run `redoubt up` on")
	return c
}
