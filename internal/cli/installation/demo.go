package installation

import (
	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/demo"
)

func (a verbs) demo() *cobra.Command {
	var data string
	var keep bool
	c := &cobra.Command{Use: "demo", Short: "Walk a real training job from sign-in to a model, step by step, and clean up", Args: app.Exactly(0)}
	c.Flags().StringVar(&data, "data", "", "the folder to use; without it one below the system's folder for temporary files")
	c.Flags().BoolVar(&keep, "keep", false, "leave the folder where it is")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		a.tune()
		return demo.Run(cmd.Context(), demo.Config{Data: data, Keep: keep, Out: a.Out})
	}
	return c
}
