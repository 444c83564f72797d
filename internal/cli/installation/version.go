package installation

import (
	"github.com/spf13/cobra"

	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
	"github.com/redoubt-ml/redoubt/pkg/observe"
)

// Version is the command that says what this binary is.
func Version(a *app.App) *cobra.Command {
	return &cobra.Command{Use: "version", Short: "What this binary is", Args: app.Exactly(0), RunE: func(*cobra.Command, []string) error {
		v, revision, goVersion := observe.Build()
		return show.Pairs(a.Out, "redoubt", v, "revision", revision, "go", goVersion)
	}}
}
